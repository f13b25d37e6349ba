"""suppressions -> deletions: rows and dead letters of erased subjects, in every schema that has copies of the tables.

A suppression is written under a short lock. The deletion follows in small batches that hold up no writer. Its progress
is in `ingest.erasures`, so that a consumer finishes what a command or a crashed consumer has left.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from asyncpg import Connection

from consumer.store import rollups
from consumer.store.copies import Copy, copies
from consumer.store.database import DATABASE_ERRORS, connect, counting
from consumer.store.schema import from_microseconds
from consumer.store.suppressions import COLUMN, Subject, lock
from shared.lifecycle import sleep_or_stop
from shared.logs import error_facts

log = structlog.get_logger("consumer.store.erasures")

BATCH_ROWS = 5_000
PAUSE_S = 0.02  # between batches, so that the consumer's statements come in between
EVERY_S = 2.0
AFTER_ERROR_S = 10.0
BARRED_S = 60.0
ADVISORY_LOCK = 0x7E1E_0003  # who deletes: a command, or one consumer of all

Deleted = Callable[[str, int], None]  # table or dead_letters, rows of a batch


@dataclass(frozen=True, slots=True)
class Erasure:
    subject: Subject
    erased_at: datetime


async def adopt(connection: Connection, known: Mapping[Subject, int]) -> int:
    """Add the suppressions that the table lacks, or holds with an older date; how many. Idempotent.

    Their rows and dead letters go afterwards, by `carry_out`.
    """
    erasures = await lacking(connection, known)
    if erasures:
        async with connection.transaction():
            await lock(connection)
            # In a restored backup everything was received before: so a sender's clock that was ahead saves no row.
            newest: datetime | None = await connection.fetchval(
                "SELECT max(last_record_time) FROM ingest.partition_offsets"
            )
            for erasure in erasures:
                await suppress(connection, erasure)
                if newest is not None and newest <= erasure.erased_at:
                    await delete_ahead(connection, erasure, await _reachable(connection))
    return len(erasures)


async def lacking(connection: Connection, known: Mapping[Subject, int]) -> list[Erasure]:
    """Erasures of the topic that the table does not know, or knows with an older date."""
    rows = await connection.fetch(
        """
        SELECT topic.kind, topic.hash, topic.erased_at
        FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS topic (kind, hash, erased_at)
        LEFT JOIN ingest.suppressions AS held USING (kind, hash)
        WHERE held.erased_at IS NULL OR held.erased_at < topic.erased_at
        """,
        [subject.kind for subject in known],
        [subject.hash for subject in known],
        [from_microseconds(erased_at_us) for erased_at_us in known.values()],
    )
    return [Erasure(Subject(row["kind"], row["hash"]), row["erased_at"]) for row in rows]


async def suppress(connection: Connection, erasure: Erasure) -> None:
    """Write the suppression and the deletion that it asks for; of two dates the later one stays."""
    for sql in (
        """
        INSERT INTO ingest.suppressions AS held (kind, hash, erased_at) VALUES ($1, $2, $3)
        ON CONFLICT (kind, hash) DO UPDATE SET erased_at = greatest(held.erased_at, EXCLUDED.erased_at)
        """,
        """
        INSERT INTO ingest.erasures AS held (kind, hash, erased_at) VALUES ($1, $2, $3)
        ON CONFLICT (kind, hash) DO UPDATE SET erased_at = greatest(held.erased_at, EXCLUDED.erased_at),
            started_at = now(), deleted = 0, done_at = NULL
        """,
    ):
        await connection.execute(sql, erasure.subject.kind, erasure.subject.hash, erasure.erased_at)


async def delete_ahead(
    connection: Connection, erasure: Erasure, tables: Iterable[Copy], deleted: Deleted = lambda *_: None
) -> None:
    """Delete the subject's rows from after the erasure, by senders' clocks that were ahead. Few, mostly none.

    Only under the lock, when all that is stored was received before.
    """
    for table in tables:
        sql = f"DELETE FROM {table.name} WHERE {COLUMN[erasure.subject.kind]} = $1 AND timestamp > $2"  # noqa: S608  our own names
        count = await connection.fetchval(rollups.marking(sql), erasure.subject.hash, erasure.erased_at)
        deleted(table.table, count or 0)


async def carry_out(
    connection: Connection, erasure: Erasure, tables: Iterable[Copy], deleted: Deleted = lambda *_: None
) -> None:
    """Delete the subject's rows and dead letters up to the erasure, batch by batch, each with its progress."""
    for table in tables:
        await _in_batches(
            connection,
            erasure,
            table.table,
            rollups.marking(
                f"""
                DELETE FROM {table.name} WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM {table.name} WHERE {COLUMN[erasure.subject.kind]} = $1 AND timestamp <= $2
                    LIMIT {BATCH_ROWS} FOR UPDATE
                ))
                """  # noqa: S608  our own names
            ),
            deleted,
        )
    await _in_batches(
        connection,
        erasure,
        "dead_letters",
        counting(
            f"""
            DELETE FROM ingest.dead_letters WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM ingest.dead_letters
                WHERE position(convert_to($1, 'UTF8') IN value) > 0 AND coalesce(record_time, first_seen_at) <= $2
                LIMIT {BATCH_ROWS} FOR UPDATE
            ))
            """  # noqa: S608  our own names
        ),
        deleted,
    )


async def _in_batches(connection: Connection, erasure: Erasure, table: str, sql: str, deleted: Deleted) -> None:
    while True:
        async with connection.transaction():
            count = await connection.fetchval(sql, erasure.subject.hash, erasure.erased_at) or 0
            if count:
                await connection.execute(
                    "UPDATE ingest.erasures SET deleted = deleted + $3 WHERE kind = $1 AND hash = $2",
                    *erasure.subject,
                    count,
                )
        deleted(table, count)
        if count < BATCH_ROWS:
            return
        await asyncio.sleep(PAUSE_S)


async def finish(connection: Connection, erasure: Erasure) -> None:
    """Forget the subject's number and mark the erasure as done, unless the subject was erased again meanwhile."""
    async with connection.transaction():
        await rollups.forget(connection, erasure.subject)
        await connection.execute(
            "UPDATE ingest.erasures SET done_at = now() WHERE kind = $1 AND hash = $2 AND erased_at = $3",
            *erasure.subject,
            erasure.erased_at,
        )


async def pending(connection: Connection) -> list[Erasure]:
    rows = await connection.fetch(
        "SELECT kind, hash, erased_at FROM ingest.erasures WHERE done_at IS NULL ORDER BY started_at"
    )
    return [Erasure(Subject(row["kind"], row["hash"]), row["erased_at"]) for row in rows]


async def listed(connection: Connection) -> list[dict[str, object]]:
    rows = await connection.fetch(
        "SELECT kind, hash, erased_at, started_at, deleted, done_at FROM ingest.erasures ORDER BY started_at"
    )
    return [dict(row) for row in rows]


async def _reachable(connection: Connection) -> Sequence[Copy]:
    return [table for table in await copies(connection) if table.may_delete]


# ---- beside a consumer


async def carry_out_pending(database_url: str, stop: asyncio.Event) -> None:
    """Finish erasures that were begun and not ended, on the one consumer that gets the advisory lock."""
    connection = None
    while not stop.is_set():
        pause_s = EVERY_S
        try:
            if connection is None or connection.is_closed():
                connection = await connect(database_url, application_name="telemetry-erase")
            if not await _carry_out_pending(connection):
                pause_s = BARRED_S
        except DATABASE_ERRORS as error:
            log.warning("erasure_put_off", **error_facts(error))
            if connection is not None:
                connection.terminate()
            pause_s = AFTER_ERROR_S
        await sleep_or_stop(stop, pause_s)
    if connection is not None:
        connection.terminate()


async def _carry_out_pending(connection: Connection) -> bool:
    """False when this role may not delete everywhere, so that something is left."""
    waiting = await pending(connection)
    if not waiting or not await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
        return True
    try:
        tables = await copies(connection)
        barred = {table.schema for table in tables if not table.may_delete}
        for erasure in waiting:
            await carry_out(connection, erasure, [table for table in tables if table.may_delete])
            if not barred:
                await finish(connection, erasure)
        if barred:
            log.warning("erasure_incomplete", schemas=sorted(barred), erasures=len(waiting))
        else:
            log.info("erasures_carried_out", erasures=len(waiting))
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", ADVISORY_LOCK)
    return not barred
