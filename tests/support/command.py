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


EACH_IN_A_FORK = """
import json, os, sys
import consumer.__main__

answers = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["consumer", *arguments]
    pipes = [os.pipe(), os.pipe()]
    if not (pid := os.fork()):
        for number, (_, end) in enumerate(pipes, 1):
            os.dup2(end, number)
        consumer.__main__.main()
        sys.exit(0)
    texts = []
    for ours, theirs in pipes:
        os.close(theirs)
        with os.fdopen(ours) as pipe:
            texts.append(pipe.read())
    answers.append([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *texts])
print(json.dumps(answers))
"""


async def commands(stack: Stack, *each: tuple[str, ...], **settings: str) -> list[tuple[int, str, str]]:
    """As `command` for each of them, in processes of their own that share one start of Python and its imports.

    For commands that say a few lines: standard error is read after standard output has ended.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", EACH_IN_A_FORK, json.dumps(each)),
        cwd=ROOT,
        env={**os.environ, **stack.environment(**settings)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode == 0, err.decode()
    return [(code, told, wrong) for code, told, wrong in json.loads(out.decode().splitlines()[-1])]


async def answered(stack: Stack, *arguments: str, code: int = 0, **settings: str) -> Any:
    """The JSON that a command prints."""
    exit_code, out, err = await command(stack, *arguments, "--json", **settings)
    assert exit_code == code, err + out
    return json.loads(out)
