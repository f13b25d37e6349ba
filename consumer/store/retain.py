"""Drop partitions and delete rows past their retention, without holding up writers. A replay counts them as expired."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import structlog
from asyncpg import Connection

from consumer.store import rollups
from consumer.store.copies import copies
from consumer.store.database import DATABASE_ERRORS, check_clock, connect, counting
from consumer.store.partitions import drop_expired
from consumer.store.schema import ANALYTICS_TABLES
from shared.lifecycle import sleep_or_stop
from shared.logs import error_facts

log = structlog.get_logger("consumer.store.retain")

EVERY_S = 3600.0
AFTER_TROUBLE_S = 60.0
ADVISORY_LOCK = 0x7E1E_0002
BATCH_ROWS = 5_000
PAUSE_S = 0.05  # between batches, so that the consumer's statements come in between


async def retain_now_and_then(database_url: str, *, days: int, stop: asyncio.Event) -> None:
    """At once and every hour, on the one consumer that gets the advisory lock."""
    while True:
        is_done = await _retain_once(database_url, days=days)
        if await sleep_or_stop(stop, EVERY_S if is_done else AFTER_TROUBLE_S):
            return


async def _retain_once(database_url: str, *, days: int) -> bool:
    """False when it failed. True also when another consumer has the lock."""
    connection = None
    try:
        connection = await connect(database_url, application_name="telemetry-retain")
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
            log.info("rows_expired", **await retain(connection, days=days))
    except DATABASE_ERRORS as error:
        log.warning("retention_put_off", **error_facts(error))
        return False
    finally:
        if connection is not None:
            connection.terminate()
    return True


async def retain(
    connection: Connection, *, days: int, dry_run: bool = False, progress: Callable[[str, int], None] = lambda *_: None
) -> dict[str, int]:
    """Drop partitions that are past their time, then delete rows and dead letters one by one; how many, by table.

    Each batch is its own transaction, so it may be interrupted at any time and done again. A dead letter without a
    record time counts from when it was first seen.

    Raises:
        ClocksDiffer: nothing was deleted.
    """
    if not dry_run:
        await check_clock(connection)
    until = datetime.now(UTC) - timedelta(days=days)
    counts = Counter(dict.fromkeys((*ANALYTICS_TABLES, "dead_letters"), 0))

    def deleted(table: str, count: int) -> None:
        counts[table] += count
        progress(table, counts[table])

    if not dry_run:
        for table in ANALYTICS_TABLES:
            deleted(table, await drop_expired(connection, table, until))
    expired = [(copy.table, copy.name, "timestamp") for copy in await copies(connection, ("public",))]
    expired.append(("dead_letters", "ingest.dead_letters", "coalesce(record_time, first_seen_at)"))
    for table, name, column in expired:
        if dry_run:
            sql = f"SELECT count(*) FROM {name} WHERE {column} < $1"  # noqa: S608  our own names
            deleted(table, await connection.fetchval(sql, until))
        else:
            async for count in _delete_rows(connection, name, column, until):
                deleted(table, count)
    return dict(counts)


async def _delete_rows(connection: Connection, name: str, column: str, until: datetime) -> AsyncIterator[int]:
    """Batch by batch, from one table that holds rows: a ctid is unique in that one alone."""
    sql = f"""
        DELETE FROM {name} WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM {name} WHERE {column} < $1 LIMIT {BATCH_ROWS} FOR UPDATE SKIP LOCKED
        ))
    """  # noqa: S608  our own names
    sql = rollups.marking(sql) if column == "timestamp" else counting(sql)
    count = BATCH_ROWS
    while count == BATCH_ROWS:
        count = await connection.fetchval(sql, until) or 0
        yield count
        if count == BATCH_ROWS:
            await asyncio.sleep(PAUSE_S)
