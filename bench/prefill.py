"""Rows of an earlier time in the four tables, made by Postgres itself, for growth, storage and page."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg

from consumer.store import rollups
from consumer.store.partitions import interval_of, partitions_of

TIMEOUT_S = 1_800.0
CHUNK_ROWS = 250_000
CONNECTIONS = 2
SHARES = {"endpoint_usage": 0.6, "feature_usage": 0.2, "user_activity": 0.15, "model_usage": 0.05}

# Fifty thousand people in a thousand organizations; a few people use most of a product. Ids are as good as random.
_ROWS = """
    INSERT INTO {table} (
        id, user_id, organization_id, timestamp, deployment_type, service_name, service_version, event_metadata, {names}
    )
    SELECT gen_random_uuid(), left(md5('user-' || person), 16), left(md5('org-' || person % 1000), 16),
        $3::timestamptz + number::float8 / $5::bigint * ($4::timestamptz - $3), 'cloud',
        (ARRAY['orders', 'billing', 'search'])[1 + number % 50 % 3], '2.' || number * 3 / $5, '{{}}', {values}
    FROM (
        SELECT number, floor(50000 * random() ^ 2)::int AS person FROM generate_series($1::bigint, $2::bigint) AS number
    ) AS people
"""
_OWN = {  # columns, values
    "endpoint_usage": (
        "endpoint, method, status_code, duration_ms",
        """
        '/api/v1/thing-' || number % 50 || '/x', 'GET', (ARRAY[200, 200, 200, 404, 500])[1 + number % 5],
        (1 + number % 50) * exp(sqrt(-2 * ln(1 - random())) * cos(6.28 * random()) / 2)
        """,
    ),
    "feature_usage": ("feature_name, action", "'feature-' || number % 20, 'used'"),
    "user_activity": ("event_type", "(ARRAY['login', 'logout'])[1 + number % 2]"),
    "model_usage": (
        "operation, provider, model, input_tokens, output_tokens, duration_ms",
        "'chat', 'openai', 'gpt-' || number % 5, number % 1000, number % 300, 500 * exp(random())",
    ),
}


def shared(rows: int) -> dict[str, int]:
    """So many rows over the four tables, as a product has them."""
    return {table: int(rows * share) for table, share in SHARES.items()}


async def fill(url: str, counts: Mapping[str, int], since: datetime, until: datetime, *, interval: str) -> None:
    """Rows at even distances from `since` to `until`, in new partitions; the tables have been empty until now.

    The indexes are built afterwards, so they are as dense as they can be. Nothing is rolled up.
    """
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET maintenance_work_mem = '1GB'")
        for table, count in counts.items():
            await _repartition(connection, table, since, until, interval)
            rebuild = await _drop_indexes(connection, table)
            chunks = asyncio.Queue[int]()
            for first in range(0, count, CHUNK_ROWS):
                chunks.put_nowait(first)
            await asyncio.gather(
                *(_insert_chunks(url, table, chunks, (since, until, count)) for _ in range(CONNECTIONS))
            )
            for statement in rebuild:
                await connection.execute(statement, timeout=TIMEOUT_S)
        await connection.execute("VACUUM ANALYZE", timeout=TIMEOUT_S)
        await connection.execute("CHECKPOINT", timeout=TIMEOUT_S)
    finally:
        await connection.close()


async def _repartition(
    connection: asyncpg.Connection, table: str, since: datetime, until: datetime, interval: str
) -> None:
    for partition in await partitions_of(connection, "public", table):
        await connection.execute(f"DROP TABLE {partition.name}")
    lower, upper = interval_of(interval).around(since)
    while lower < until:
        await connection.execute("SELECT ingest.attach_partition($1::text::regclass, $2, $3)", table, lower, upper)
        lower, upper = interval_of(interval).around(upper)


async def _drop_indexes(connection: asyncpg.Connection, table: str) -> list[str]:
    """The statements that build them again."""
    rows = await connection.fetch(
        """
        SELECT index.indexrelid::regclass::text AS name, key.conname AS key,
            coalesce(
                'ALTER TABLE ' || $1 || ' ADD CONSTRAINT ' || key.conname || ' ' || pg_get_constraintdef(key.oid),
                replace(pg_get_indexdef(index.indexrelid), ' ON ONLY ', ' ON ')
            ) AS rebuild
        FROM pg_index AS index LEFT JOIN pg_constraint AS key ON key.conindid = index.indexrelid
        WHERE index.indrelid = $1::text::regclass
        """,
        table,
    )
    for row in rows:
        drop = f"ALTER TABLE {table} DROP CONSTRAINT {row['key']}" if row["key"] else f"DROP INDEX {row['name']}"
        await connection.execute(drop)
    return [row["rebuild"] for row in rows]


async def _insert_chunks(
    url: str, table: str, chunks: asyncio.Queue[int], bounds: tuple[datetime, datetime, int]
) -> None:
    names, values = _OWN[table]
    sql = _ROWS.format(table=table, names=names, values=values)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT set_config('telemetry.days_marked', 'on', false)")  # there are no sums to mark
        while not chunks.empty():
            first = chunks.get_nowait()
            await connection.execute(sql, first, min(bounds[2], first + CHUNK_ROWS) - 1, *bounds, timeout=TIMEOUT_S)
    finally:
        await connection.close()


@asynccontextmanager
async def without_sums(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Hold the lock of whoever adds up days, so that nobody does it within the block."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", rollups.ADVISORY_LOCK)
        yield connection
    finally:
        await connection.close()
