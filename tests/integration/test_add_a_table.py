"""docs/add-a-table.md, followed to the letter on a copy of the project."""

import asyncio
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace.export import SpanExportResult

from deploy.local.server import free_port
from support.command import answered
from support.project import Copy, sections
from support.records import made
from support.spans import Shop, exporter, hashed
from support.stack import Stack, eventually

VERSIONS = """
from pathlib import Path
from shared.wire import decode
golden = sorted(Path("tests/golden").glob("*.v?.json"))
print([decode(path.read_bytes()).schema_version for path in golden])
"""


async def test_the_worked_example_leads_from_a_span_to_a_row_of_the_new_table(stack: Stack, tmp_path: Path) -> None:
    """The first thing that a team wants is a table of its own; the page must not lie about how."""
    copy = Copy(tmp_path / "project", stack.environment())
    await copy.follow(sections("add-a-table.md")["Add an analytics table"], patches=4)
    port = free_port()
    environment = copy.environment | {
        "PORT": str(port),
        "HTTP_PORT": "0",
        "RECEIVER_METRICS_PORT": "0",
        "CONSUMER_METRICS_PORT": "0",
    }
    processes = []
    for module in ("receiver", "consumer"):
        with (tmp_path / f"{module}.log").open("wb") as log:
            processes.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", module), cwd=copy.folder, env=environment, stdout=log, stderr=log
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


async def test_records_of_a_newer_version_wait_as_dead_letters_for_the_upgrade(stack: Stack, tmp_path: Path) -> None:
    """Receivers and consumers are never upgraded in the same second, and nothing may be lost or lessened by that."""
    section = sections("add-a-table.md")["A new version of an event"]
    [golden] = re.findall(r"```json\n(.*)\n```", section)
    newer: dict[str, Any] = json.loads(golden)
    await stack.create_topic()
    stack.consumer()
    old = [made(random.Random(seed)) for seed in range(200)]

    async def dead_letters() -> list[str]:
        return [row["reason"] for row in await stack.fetch("SELECT reason FROM ingest.dead_letters ORDER BY reason")]

    await stack.send([(record.partition(), record.value) for record in old[:100]])
    await stack.settled(100)
    upgraded = Copy(tmp_path / "project", stack.environment())
    await upgraded.follow(section, patches=3)
    # The old consumer meets the migrated tables on a new connection too, with rows fresh and known.
    await stack.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'telemetry-consumer'"
    )
    await stack.send([(record.partition(), record.value) for record in old])
    await stack.send([(0, golden.encode())])
    await stack.settled(301)
    assert await stack.row_count() == len(old)
    assert await dead_letters() == ["newer_schema"]
    assert (await answered(stack, "dead-letters", "redrive", code=1))["still"] == {"newer_schema": 1}

    await upgraded.python("consumer", "dead-letters", "redrive")
    rows = await stack.rows("feature_usage")
    [row] = [row for row in rows.values() if str(row["id"]) == newer["id"]]
    assert {name: row[name] for name in ("feature_name", "action", "variant")} == {
        "feature_name": "export",
        "action": "created",
        "variant": "b",
    }
    (upgraded.folder / "tests/golden/feature_usage.v2.json").write_text(golden)
    assert await upgraded.run(sys.executable, "-c", VERSIONS) == "[1, 1, 2, 1]\n"
