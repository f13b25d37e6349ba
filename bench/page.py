"""The page over many rows: each page's first view, with closed days added up, alone and beside a steady load."""

import asyncio
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import asyncpg

from bench import path
from bench.consumers import database
from bench.report import OURS, Report
from bench.servers import Servers
from consumer.store import rollups
from consumer.store.database import connect
from consumer.store.partitions import Known, interval_of
from consumer.store.schema import to_microseconds
from viewer.catalogue import PAGES

SUITE = "page"
DAYS = 30
PREFILL_ROWS = 250_000
TIMEOUT_S = 600.0
RATE = path.RATES[0]
SECONDS = 30.0

# Fifty thousand people in a thousand organizations; a few people use most of a product. Ids are as good as random.
_PREFILL = """
    INSERT INTO {table} (
        id, user_id, organization_id, timestamp, deployment_type, service_name, service_version, event_metadata, {names}
    )
    SELECT gen_random_uuid(), left(md5('user-' || person), 16), left(md5('org-' || person % 1000), 16),
        $3::timestamptz + number * ($4::timestamptz - $3) / $5::bigint, 'cloud',
        (ARRAY['orders', 'billing', 'search'])[1 + number % 50 % 3], '2.' || number * 3 / $5, '{{}}', {values}
    FROM (
        SELECT number, floor(50000 * random() ^ 2)::int AS person FROM generate_series($1::bigint, $2::bigint) AS number
    ) AS people
"""
_OWN = {  # share of all rows, columns, values
    "endpoint_usage": (
        0.6,
        "endpoint, method, status_code, duration_ms",
        """
        '/api/v1/thing-' || number % 50 || '/x', 'GET', (ARRAY[200, 200, 200, 404, 500])[1 + number % 5],
        (1 + number % 50) * exp(sqrt(-2 * ln(1 - random())) * cos(6.28 * random()) / 2)
        """,
    ),
    "feature_usage": (0.2, "feature_name, action", "'feature-' || number % 20, 'used'"),
    "user_activity": (0.15, "event_type", "(ARRAY['login', 'logout'])[1 + number % 2]"),
    "model_usage": (
        0.05,
        "operation, provider, model, input_tokens, output_tokens, duration_ms",
        "'chat', 'openai', 'gpt-' || number % 5, number % 1000, number % 300, 500 * exp(random())",
    ),
}


async def measure(servers: Servers, report: Report, *, rows: int) -> None:
    """Seconds until each page has answered, asked once and for thirty days."""
    async with database(servers) as name:
        url = servers.postgres.url(name)
        report.say(f"page: {rows:,} rows")
        await _fill(url, rows)
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


async def _fill(url: str, rows: int) -> None:
    until = datetime.now(UTC)
    since = until.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=DAYS - 1)
    connection = await connect(url, application_name="bench")
    try:
        known = Known("public", interval_of("month"))
        await known.load(connection)
        for table in _OWN:
            await known.make_for(connection, table, [to_microseconds(since), to_microseconds(until)])
    finally:
        await connection.close()
    plain = await asyncpg.connect(url)
    try:
        for table, (share, names, values) in _OWN.items():
            count = int(rows * share)
            for first in range(0, count, PREFILL_ROWS):
                last = min(count, first + PREFILL_ROWS) - 1
                sql = _PREFILL.format(table=table, names=names, values=values)
                await plain.execute(sql, first, last, since, until, count, timeout=TIMEOUT_S)
        await plain.execute("VACUUM ANALYZE", timeout=TIMEOUT_S)
    finally:
        await plain.close()


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
