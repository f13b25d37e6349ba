"""docs/add-a-table.md, followed to the letter on a copy of the project: to rows, by both engines and shipped roles."""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanKind

from deploy.local.server import free_port
from shared.engine import is_native_built
from support.command import answered
from support.project import Copy, sections
from support.records import made
from support.spans import Shop, exporter, hashed
from support.stack import Stack, eventually

ROOT = Path(__file__).resolve().parents[2]
PAGE = sections("add-a-table.md")
ENGINES = ["python", *(["native"] if is_native_built() else [])]
PASSWORD = "consumer-pass"

# One span by every rule: attributes, kind, and the table it must come to.
BY_EVERY_RULE: list[tuple[dict[str, Any], SpanKind, str]] = [
    ({"event.category": "user_activity", "event.type": "login"}, SpanKind.INTERNAL, "user_activity"),
    ({"event.category": "feature_usage", "feature.name": "export"}, SpanKind.INTERNAL, "feature_usage"),
    ({"feature.name": "export", "feature.action": "created"}, SpanKind.INTERNAL, "feature_usage"),
    ({"http.request.method": "GET", "http.route": "/orders/{id}"}, SpanKind.SERVER, "endpoint_usage"),
    ({"http.method": "GET", "http.target": "/orders/17"}, SpanKind.SERVER, "endpoint_usage"),
    ({"rpc.system": "grpc", "rpc.service": "s", "rpc.method": "m"}, SpanKind.SERVER, "endpoint_usage"),
    ({"gen_ai.operation.name": "chat"}, SpanKind.CLIENT, "model_usage"),
    ({"openinference.span.kind": "LLM"}, SpanKind.INTERNAL, "model_usage"),
]


@pytest.fixture
async def role_url(stack: Stack) -> AsyncIterator[str]:
    """The database as the shipped role of the consumer, made before the page's migrations."""
    passwords = {"ANALYTICS_CONSUMER_PASS": PASSWORD, "ANALYTICS_OPERATOR_PASS": "operator-pass"}
    script = [
        stack.postgres.bin_dir / "psql",
        stack.database_url,
        "-v",
        "ON_ERROR_STOP=1",
        "-qf",
        "deploy/postgres/roles.sql",
    ]
    await asyncio.to_thread(subprocess.run, script, cwd=ROOT, env={**os.environ, **passwords}, check=True)
    owner = stack.database_url.split("//")[1].split("@")[0]
    yield stack.database_url.replace(owner, f"analytics_consumer:{PASSWORD}")
    stack.close()
    for role in ("analytics_consumer", "analytics_operator"):
        await stack.fetch(f"DROP OWNED BY {role}")
        await stack.fetch(f"DROP ROLE {role}")


class Sender:
    """Sends to the processes of a copy, and knows which rows there must be."""

    def __init__(self, stack: Stack, copy: Copy, role_url: str) -> None:
        self._stack = stack
        self._copy = copy
        self._role_url = role_url
        self._shop = Shop(1)
        self._rows: dict[str, int] = {}

    async def send(self, *more: tuple[dict[str, Any], SpanKind, str], engines: Sequence[str] = ENGINES) -> None:
        """Spans by every rule and `more` through receiver and consumer of the copy as it is now; waits for the rows."""
        for engine in engines:
            async with self._running(engine) as port:
                spans = [
                    self._shop.span({"user.id": "user-42", "metadata.engine": engine, **attributes}, kind)
                    for attributes, kind, _ in (*BY_EVERY_RULE, *more)
                ]
                client = exporter(port, timeout_s=20)
                assert await asyncio.to_thread(client.export, spans) is SpanExportResult.SUCCESS
                client.shutdown()
                for _, _, table in (*BY_EVERY_RULE, *more):
                    self._rows[table] = self._rows.get(table, 0) + 1
                await eventually(self._are_all_there, 30, f"{self._rows} by {engine}")

    async def _are_all_there(self) -> bool:
        counts = {t: (await self._stack.fetch(f"SELECT count(*) FROM public.{t}"))[0]["count"] for t in self._rows}
        return counts == self._rows

    @asynccontextmanager
    async def _running(self, engine: str) -> AsyncIterator[int]:
        port = free_port()
        ports = {"PORT": str(port), "HTTP_PORT": "0", "RECEIVER_METRICS_PORT": "0", "CONSUMER_METRICS_PORT": "0"}
        environment = {**self._copy.environment, **ports, "ENGINE": engine, "ANALYTICS_DATABASE_URL": self._role_url}
        processes = []
        for module in ("receiver", "consumer"):
            with (self._copy.folder / f"{module}.log").open("ab") as log:
                processes.append(
                    await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", module), cwd=self._copy.folder, env=environment, stdout=log, stderr=log
                    )
                )
        try:
            yield port
        finally:
            for process in processes:
                process.terminate()
            await asyncio.gather(*(process.wait() for process in processes))


async def test_an_attribute_name_is_one_word(stack: Stack, role_url: str, tmp_path: Path) -> None:
    """Every company has a name of its own for the user."""
    copy = Copy(tmp_path / "project", stack.environment())
    sender = Sender(stack, copy, role_url)
    await sender.send(engines=ENGINES[-1:])
    assert changed_lines(PAGE["Add an attribute name"]) == 1
    await copy.follow(PAGE["Add an attribute name"], patches=1)
    named = ({"feature.name": "import", "user.id": "", "usr.id": "user-43"}, SpanKind.INTERNAL, "feature_usage")
    await sender.send(named)
    rows = await stack.fetch("SELECT user_id FROM feature_usage WHERE feature_name = 'import'")
    assert {row["user_id"] for row in rows} == {hashed("user-43")}
    assert len(rows) == len(ENGINES)


async def test_a_column_is_three_places_and_a_migration(stack: Stack, role_url: str, tmp_path: Path) -> None:
    """Inferred spans too: their table has one field more than when the receiver was written."""
    copy = Copy(tmp_path / "project", stack.environment())
    sender = Sender(stack, copy, role_url)
    await sender.send(engines=ENGINES[-1:])
    await copy.follow(PAGE["Add a column"], patches=3)
    varied = {"feature.name": "export", "feature.variant": "b"}
    marked = {**varied, "event.category": "feature_usage"}
    await sender.send(*((each, SpanKind.INTERNAL, "feature_usage") for each in (varied, marked)))
    [row] = await stack.fetch("SELECT count(*), min(user_id) AS who FROM feature_usage WHERE variant = 'b'")
    assert (row["count"], row["who"]) == (2 * len(ENGINES), hashed("user-42"))


async def test_a_table_is_four_places_and_a_rule_is_one(stack: Stack, role_url: str, tmp_path: Path) -> None:
    """The first thing that a team wants is a table of its own; the page must not lie about how."""
    copy = Copy(tmp_path / "project", stack.environment())
    sender = Sender(stack, copy, role_url)
    await sender.send(engines=ENGINES[-1:])
    await copy.follow(PAGE["Add an analytics table"], patches=4)
    [golden] = re.findall(r"```json\n(.*)\n```", PAGE["Add an analytics table"])
    (copy.folder / "tests/golden/page_view.v2.json").write_text(golden)
    await copy.python("pytest", "-q", "-k", "golden", "tests/unit/shared/test_wire.py")
    viewed = {"event.category": "page_view", "page.name": "pricing", "page.referrer": "a@b.co"}
    await sender.send((viewed, SpanKind.INTERNAL, "page_view"))
    assert changed_lines(PAGE["Add a rule"]) == 1
    await copy.follow(PAGE["Add a rule"], patches=1)
    inferred = ({"page.name": "home"}, SpanKind.INTERNAL, "page_view")
    await sender.send((viewed, SpanKind.INTERNAL, "page_view"), inferred)
    rows = await stack.fetch("SELECT DISTINCT page, referrer, user_id FROM page_view ORDER BY page")
    user = hashed("user-42")
    assert rows == [
        {"page": "home", "referrer": None, "user_id": user},
        {"page": "pricing", "referrer": "[redacted]", "user_id": user},
    ]
    told = json.loads(await copy.run(sys.executable, "-c", MISSING))
    assert told == ["missing_page", "page_view"]


MISSING = """
import json
from receiver.translate.outcome import REJECT_REASONS
from receiver.translate.mapping import TABLES
print(json.dumps([reason for reason in REJECT_REASONS if reason == "missing_page"] + [TABLES[-1].name]))
"""


def changed_lines(section: str) -> int:
    [patch] = re.findall(r"```diff\n(.*?)```", section, re.DOTALL)
    return len(re.findall(r"^\+(?!\+\+)", patch, re.MULTILINE))


VERSIONS = """
from pathlib import Path
from shared.wire import decode
golden = sorted(Path("tests/golden").glob("feature_usage.v?.json"))
print([decode(path.read_bytes()).schema_version for path in golden])
"""


async def test_records_of_a_newer_version_wait_as_dead_letters_for_the_upgrade(stack: Stack, tmp_path: Path) -> None:
    """Receivers and consumers are never upgraded in the same second, and nothing may be lost or lessened by that."""
    section = PAGE["A new version of an event"]
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
    await upgraded.follow(PAGE["Add a column"], patches=3)
    await upgraded.follow(section, patches=1)
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
    (upgraded.folder / "tests/golden/feature_usage.v3.json").write_text(golden)
    assert await upgraded.run(sys.executable, "-c", VERSIONS) == "[1, 2, 3]\n"
