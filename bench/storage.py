"""Operations on many rows: drop a month, erase a person, find a span, the dashboard's questions, and a rebuild."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg

from bench import path
from bench.consumers import MIXED, Run, command, database, filled, ours
from bench.prefill import fill, shared, without_sums
from bench.report import OURS, Goal, Key, Report
from bench.servers import ROOT, Servers
from consumer.store.database import connect
from consumer.store.partitions import drop_expired, interval_of
from consumer.store.schema import ANALYTICS_TABLES

T = TypeVar("T")

SUITE = "storage"
MONTHS = 5
TIMEOUT_S = 900.0
PROBE_EVERY_S = 0.005
ERASED = 3  # people, one after the other
FINDS = 7
PERSON = 10_000  # the first of them: of fifty thousand, with about the mean of rows
REBUILD_ROWS = 5_000_000
LIVE_RATE, LIVE_SECONDS = 2_000, 5.0
PANELS = json.loads((ROOT / "deploy/grafana/dashboards/product.json").read_text())["panels"]

GOALS = (
    Goal("storage, a month dropped: s", Key(SUITE, "a month dropped", OURS, "s"), 2),
    Goal("storage, a month dropped: writers waited, ms", Key(SUITE, "a month dropped", OURS, "ms writer waited"), 200),
    Goal("storage, a person erased: s", Key(SUITE, "a person erased", OURS, "s"), 5),
    Goal("storage, a span not found: ms", Key(SUITE, "a span not found", OURS, "ms"), 100),
    Goal("storage, slowest panel of the last day: ms", Key(SUITE, "slowest panel of the last day", OURS, "ms"), 500),
    Goal("storage, writers waited at a swap: ms", Key(SUITE, "rebuild", OURS, "ms writer waited"), 100),
)


async def measure(servers: Servers, report: Report, *, rows: int) -> None:
    """Each operation once or a few times, on `rows` rows over five months; the rebuild on a database of its own."""
    report.aim(*GOALS)
    report.say(f"storage: {rows:,} rows")
    topic = await servers.topics.create("storage")
    async with database(servers) as where:
        url = servers.postgres.url(where)
        now = datetime.now(UTC)
        since, until = interval_of("month").around(now - timedelta(days=30 * MONTHS))
        await fill(url, shared(rows), since, now, interval="month")
        async with without_sums(url) as connection:
            await _ask_dashboard(connection, report)
            environment = servers.environment(topic, ANALYTICS_DATABASE_URL=url)
            async with servers.running(servers.consumer(topic, where)):
                await _find(environment, report)
                await _erase(connection, environment, report)
                await _drop_month(url, until, report)
    await _rebuild(servers, report)


async def _ask_dashboard(connection: asyncpg.Connection, report: Report) -> None:
    """Run each panel's SQL over the last day twice, and report the second time. No day is added up."""
    slowest_ms = 0.0
    for panel in PANELS:
        sql = panel["targets"][0]["rawSql"]
        sql = sql.replace("$__timeFrom()", "(now() - interval '1 day')").replace("$__timeTo()", "now()")
        sql = sql.replace("${steps:sqlstring}", "'user_activity:login,feature_usage:feature-1/used'")
        sql = re.sub(r"\$\{\w+:sqlstring\}", "''", sql)
        sql = sql.replace("$k", "5").replace("$step", "day").replace("$within", "1 day")
        for _ in range(2):
            started_at = time.monotonic()
            await connection.fetch(sql, timeout=TIMEOUT_S)
            ms = (time.monotonic() - started_at) * 1000
        report.add(SUITE, f"panel: {panel['title']}", OURS, ms=ms)
        slowest_ms = max(slowest_ms, ms)
    report.add(SUITE, "slowest panel of the last day", OURS, ms=slowest_ms)


async def _find(environment: dict[str, str], report: Report) -> None:
    """Search every table for a span that is nowhere. The time of a command that stops at once is taken off."""
    for _ in range(FINDS):
        at_all_s, _ = await command(environment, "find", "x", "x", code=2)
        seconds, _ = await command(environment, "find", uuid.uuid4().hex, "00f067aa0ba902b7", code=1)
        report.add(SUITE, "a span not found", OURS, ms=(seconds - at_all_s) * 1000)


async def _erase(connection: asyncpg.Connection, environment: dict[str, str], report: Report) -> None:
    for number in range(ERASED):
        person = await connection.fetchval("SELECT left(md5('user-' || $1::int), 16)", PERSON + number)
        seconds, receipt = await command(environment, "erase", "--user-hash", person, "--yes", "--json")
        report.add(SUITE, "a person erased", OURS, s=seconds, rows=sum(receipt["rows"].values()))


async def _drop_month(url: str, until: datetime, report: Report) -> None:
    """Drop what retention drops, beside a writer. `consumer retain` would then delete single rows, too."""
    connection = await connect(url, application_name="bench")

    async def drop() -> tuple[int, float]:
        started_at = time.monotonic()
        rows = sum([await drop_expired(connection, table, until) for table in ANALYTICS_TABLES])
        return rows, time.monotonic() - started_at

    try:
        (rows, seconds), waited_ms = await _beside_a_writer(url, drop)
        report.add(SUITE, "a month dropped", OURS, s=seconds, ms_writer_waited=waited_ms, rows=rows)
    finally:
        await connection.close()


async def _rebuild(servers: Servers, report: Report) -> None:
    """Of a full topic, while more records come in."""
    report.say(f"storage: rebuild of {REBUILD_ROWS:,} rows")
    topic, records = await filled(servers, "events", REBUILD_ROWS)
    async with database(servers) as where, ours(servers, Run(topic, records, MIXED), where):
        environment = servers.environment(topic, ANALYTICS_DATABASE_URL=servers.postgres.url(where))
        async with servers.running(servers.receiver(topic)) as receiver:
            rebuilding = asyncio.create_task(command(environment, "rebuild", "--rate", "0", "--yes", "--json"))
            while not rebuilding.done():
                await path.send(servers, receiver, LIVE_RATE, LIVE_SECONDS)
            seconds, done = await rebuilding
        assert done["swapped"], done
        report.add(SUITE, "rebuild", OURS, s=seconds, ms_writer_waited=done["blocked_ms"], records=done["records"])


async def _beside_a_writer(url: str, work: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, float]:
    """What the work gives, and the longest that one INSERT took meanwhile, in milliseconds."""
    connection = await asyncpg.connect(url)
    longest_ms = 0.0
    task = asyncio.create_task(work())
    try:
        await connection.execute("SELECT set_config('telemetry.days_marked', 'on', false)")
        while not task.done():
            started_at = time.monotonic()
            await connection.execute(
                "INSERT INTO endpoint_usage (id, endpoint, timestamp, deployment_type, event_metadata) "
                "VALUES (gen_random_uuid(), '/probe', now(), 'cloud', '{}')"
            )
            longest_ms = max(longest_ms, (time.monotonic() - started_at) * 1000)
            await asyncio.sleep(PROBE_EVERY_S)
        return await task, longest_ms
    finally:
        await connection.close()
