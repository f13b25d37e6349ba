"""closed days of the tables -> their sums, which the functions of schema `analytics` read instead of the rows.

Whoever changes rows marks their days in the same transaction. A marked day is read from the rows until it is rolled up
again, so the sums are never older than the rows. The functions of schema `ingest` do it with the owner's rights.
"""

import asyncio
import time
from collections.abc import Iterable
from datetime import date

import asyncpg
import structlog
from asyncpg import Connection

from consumer.store.database import DATABASE_ERRORS, connect
from consumer.store.schema import DAY_US, from_microseconds
from consumer.store.suppressions import Subject
from shared.lifecycle import sleep_or_stop
from shared.logs import error_facts

log = structlog.get_logger("consumer.store.rollups")

EVERY_S = 60.0
KEEP_DAYS = 400  # older days are always read from the rows
STATEMENT_TIMEOUT_S = 600  # of one day, which may have millions of rows
ADVISORY_LOCK = 0x7E1E_0005  # who rolls up: one consumer of all


async def mark(connection: Connection, times: Iterable[int]) -> None:
    """Mark the UTC days of rows that this transaction changes. `times` are microseconds since 1970."""
    await mark_days(connection, [from_microseconds(day * DAY_US).date() for day in {time // DAY_US for time in times}])


async def mark_days(connection: Connection, days: list[date] | None) -> None:
    """None is every day."""
    await connection.execute("SELECT ingest.mark_days($1)", days)


def marking(delete: str) -> str:
    """The DELETE of rows of a table as a query that marks their days; it gives one number, or no row for none."""
    return f"""
        WITH gone AS ({delete} RETURNING timestamp)
        SELECT count(*), ingest.mark_days(array_agg(DISTINCT (timestamp AT TIME ZONE 'UTC')::date)) FROM gone
        HAVING count(*) > 0
    """  # noqa: S608  our own statement


async def forget(connection: Connection, subject: Subject) -> None:
    """Take an erased subject's number away, when its rows are gone."""
    await connection.execute("SELECT ingest.forget($1, $2)", *subject)


async def keep_rolled_up(database_url: str, stop: asyncio.Event) -> None:
    """At once and every minute, on the one consumer that gets the advisory lock."""
    while True:
        connection = None
        try:
            connection = await connect(
                database_url, application_name="telemetry-rollups", statement_timeout_s=STATEMENT_TIMEOUT_S
            )
            if await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
                await roll_up(connection, stop)
        except DATABASE_ERRORS as error:
            log.warning("rollups_put_off", **error_facts(error))
        finally:
            if connection is not None:
                connection.terminate()
        if await sleep_or_stop(stop, EVERY_S):
            return


async def roll_up(connection: Connection, stop: asyncio.Event, *, keep_days: int = KEEP_DAYS) -> int:
    """Roll up the closed days whose sums are missing or old, the latest first; how many."""
    started_at = time.monotonic()
    days = [row[0] for row in await connection.fetch("SELECT ingest.days_to_roll_up($1)", keep_days)]
    done = 0
    for day in days:
        if stop.is_set():
            break
        await connection.execute("SELECT ingest.number_people($1)", day)
        try:
            async with connection.transaction(isolation="repeatable_read"):
                await connection.execute("SELECT ingest.roll_up($1)", day)
        except asyncpg.SerializationError:
            log.info("day_not_rolled_up", day=day.isoformat(), reason="its rows changed meanwhile; tried again later")
        else:
            done += 1
    if done or not days:
        await connection.execute("SELECT ingest.forget_unseen()")
    if done:
        seconds = round(time.monotonic() - started_at, 1)
        log.info("days_rolled_up", days=done, latest=days[0].isoformat(), seconds=seconds)
    return done
