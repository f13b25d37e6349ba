"""The page over many rows: each page's first view, with closed days added up, alone and beside a steady load."""

import asyncio
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import asyncpg

from bench import path
from bench.consumers import database
from bench.prefill import fill, shared
from bench.report import OURS, Report
from bench.servers import Servers
from consumer.store import rollups
from consumer.store.partitions import interval_of
from viewer.catalogue import PAGES

SUITE = "page"
DAYS = 30
TIMEOUT_S = 600.0
RATE = path.RATES[0]
SECONDS = 30.0


async def measure(servers: Servers, report: Report, *, rows: int) -> None:
    """Seconds until each page has answered, asked once and for thirty days."""
    async with database(servers) as name:
        url = servers.postgres.url(name)
        report.say(f"page: {rows:,} rows")
        now = datetime.now(UTC)
        since, _ = interval_of("day").around(now - timedelta(days=DAYS - 1))
        await fill(url, shared(rows), since, now, interval="month")
        connection = await asyncpg.connect(url)
        try:
            started_at = time.monotonic()
            days = await rollups.roll_up(connection, asyncio.Event())
            seconds = time.monotonic() - started_at
            report.add(SUITE, "adding up", OURS, s=seconds, s_a_day=seconds / days)
        finally:
            await connection.close()
        await _ask(servers, report, url, "days added up")
        await _ask_beside_ingest(servers, report, name)


async def _ask_beside_ingest(servers: Servers, report: Report, name: str) -> None:
    """The same while a steady load comes in; and how long its rows took."""
    case = f"beside {path.case_of(RATE)}"
    topic = await servers.topics.create("page")
    connection = await asyncpg.connect(servers.postgres.url(name))
    try:
        async with path.both(servers, topic, name) as (receiver, _), asyncio.TaskGroup() as group:
            await path.send(servers, receiver, RATE, path.WARM_UP_S)
            since_s = time.time()
            sending = group.create_task(path.send(servers, receiver, RATE, SECONDS))
            await _ask(servers, report, servers.postgres.url(name), case)
            sent = await sending
            stored = await path.settled(connection, since_s, sent.acknowledged_spans)
            _, p99_ms = await connection.fetchval(f"SELECT ms FROM ({path.LATENCIES}) AS found", since_s)
        report.add(SUITE, case, OURS, p99_ms_to_row=p99_ms, rows_missing=sent.acknowledged_spans - stored)
    finally:
        await connection.close()


async def _ask(servers: Servers, report: Report, url: str, case: str) -> None:
    async with servers.running(servers.viewer(url)) as viewer:
        for page in PAGES:
            name = "" if page == "overview" else page
            address = f"http://127.0.0.1:{viewer.server.port_of('VIEWER_PORT')}/{name}?days={DAYS}"
            started_at = time.monotonic()
            text = await asyncio.to_thread(_get, address)
            seconds = time.monotonic() - started_at
            report.add(SUITE, f"{page}, {case}", OURS, s=seconds, unanswered=text.count("No answer within"))


def _get(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError as refusal:  # a page whose one answer did not come
        return str(refusal.read().decode())
