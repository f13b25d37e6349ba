"""docs/add-a-table.md, followed to the letter on a copy of the project."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from opentelemetry.sdk.trace.export import SpanExportResult

from deploy.local.server import free_port
from support.spans import Shop, exporter, hashed
from support.stack import Stack, eventually

ROOT = Path(__file__).resolve().parents[2]


async def test_the_worked_example_leads_from_a_span_to_a_row_of_the_new_table(stack: Stack, tmp_path: Path) -> None:
    """The first thing that a team wants is a table of its own; the page must not lie about how."""
    copy = tmp_path / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".local", "__pycache__", ".*_cache"))
    page = (ROOT / "docs/add-a-table.md").read_text()
    patches = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    assert len(patches) == 4
    environment = {**os.environ, **stack.environment(), "PYTHONPATH": str(copy)}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for patch in patches:
        (copy / "step.diff").write_text(patch)
        await asyncio.to_thread(run, "git", "apply", "step.diff")
    [migrating] = [block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "autogenerate" in block]
    for line in migrating.strip().splitlines():
        arguments = [part.strip('"') for part in re.findall(r'"[^"]*"|\S+', line)]
        assert arguments[0] == "alembic"
        await asyncio.to_thread(run, sys.executable, "-m", *arguments)
    port = free_port()
    environment |= {"PORT": str(port), "RECEIVER_METRICS_PORT": "0", "CONSUMER_METRICS_PORT": "0"}
    processes = []
    for module in ("receiver", "consumer"):
        with (tmp_path / f"{module}.log").open("wb") as log:
            processes.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", module), cwd=copy, env=environment, stdout=log, stderr=log
                )
            )
    try:
        span = Shop(1).span({"event.category": "page_view", "page.name": "pricing", "user.id": "user-42"})
        client = exporter(port, timeout_s=20)
        assert await asyncio.to_thread(client.export, [span]) is SpanExportResult.SUCCESS
        client.shutdown()

        async def rows() -> list[dict[str, object]]:
            return await stack.fetch("SELECT page, referrer, user_id FROM page_view")

        found = await eventually(rows, 30, "the row of the new table")
        assert found == [{"page": "pricing", "referrer": None, "user_id": hashed("user-42")}]
    finally:
        for process in processes:
            process.terminate()
        await asyncio.gather(*(process.wait() for process in processes))
