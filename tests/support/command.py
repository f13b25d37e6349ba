"""The operator's commands, as the processes that operators start."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.stack import Stack

ROOT = Path(__file__).resolve().parents[2]


async def started(
    stack: Stack, *arguments: str, stdout: int = subprocess.PIPE, **settings: str
) -> asyncio.subprocess.Process:
    """`python -m consumer ...` on the test's own stack."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "consumer", *arguments),
        cwd=ROOT,
        env={**os.environ, **stack.environment(**settings)},
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


async def command(stack: Stack, *arguments: str, stdin: str = "", **settings: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await started(stack, *arguments, **settings)
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 240)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def answered(stack: Stack, *arguments: str, code: int = 0, **settings: str) -> Any:
    """The JSON that a command prints."""
    exit_code, out, err = await command(stack, *arguments, "--json", **settings)
    assert exit_code == code, err + out
    return json.loads(out)
