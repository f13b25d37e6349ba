"""Dead letters, looked at and tried again with today's code."""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg

from consumer.operations.operation import REBUILD_LOCK, Refused
from consumer.store import suppressions
from consumer.store.database import DATABASE_ERRORS, ENCODER_ERRORS, Fate, fate_of
from consumer.store.schema import ANALYTICS_TABLES, DAY_US, KEY, row_of
from shared.errors import Undecodable
from shared.events import BaseEvent
from shared.wire import decode

PAGE = 500
PLACE = 'topic_id, topic, partition, "offset"'


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters; a field of None leaves nothing out."""

    reason: str | None = None
    since: datetime | None = None  # record time
    until: datetime | None = None
    partition: int | None = None
    offset: int | None = None
    redriven: bool | None = False

    def where(self) -> tuple[str, list[Any]]:
        """A condition, and its arguments from $1 on."""
        tests = {
            "reason = {}": self.reason,
            "record_time >= {}": self.since,
            "record_time < {}": self.until,
            "partition = {}": self.partition,
            '"offset" = {}': self.offset,
        }
        given = [(test, value) for test, value in tests.items() if value is not None]
        conditions = [test.format(f"${number}") for number, (test, _) in enumerate(given, 1)]
        if self.redriven is not None:
            conditions.append(f"redriven_at IS {'NOT ' if self.redriven else ''}NULL")
        return " AND ".join(conditions) or "true", [value for _, value in given]


async def listed(connection: asyncpg.Connection, chosen: Filter, *, limit: int) -> list[dict[str, Any]]:
    """Places, times and reasons; no content."""
    where, arguments = chosen.where()
    rows = await connection.fetch(
        f"""
        SELECT topic, partition, "offset", reason, record_time, first_seen_at, redriven_at, length(value) AS bytes
        FROM ingest.dead_letters WHERE {where} ORDER BY partition, "offset" LIMIT {int(limit)}
        """,  # noqa: S608  the condition is made of our own words
        *arguments,
    )
    return [dict(row) for row in rows]


async def shown(connection: asyncpg.Connection, partition: int, offset: int) -> list[dict[str, Any]]:
    """Whole letters at a place: more than one when the topic was recreated. Text as it is, else base64."""
    rows = await connection.fetch(
        'SELECT * FROM ingest.dead_letters WHERE partition = $1 AND "offset" = $2 ORDER BY first_seen_at',
        partition,
        offset,
    )
    return [
        {
            **row,
            "key": _readable(row["key"]),
            "value": _readable(row["value"]),
            "headers": json.loads(row["headers"]),
        }
        for row in rows
    ]


def _readable(content: bytes | None) -> str | None:
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(content).decode()


@dataclass(slots=True)
class Redriven:
    """What became of the letters. `still` counts those that stay, by their reason now."""

    stored: int = 0
    already_there: int = 0
    suppressed: int = 0
    expired: int = 0
    still: Counter[str] = field(default_factory=Counter)


async def redrive(
    connection: asyncpg.Connection,
    chosen: Filter,
    *,
    dry_run: bool,
    rate: float,
    retention_days: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Redriven:
    """Decode the letters again; what is an event now becomes a row, with the mark in one transaction.

    Inserts only: where a row with that id is there, it stays, for it is of a later record. `rate` is letters a
    second, 0 for no limit. A letter that is still bad stays, with its reason of today.

    Raises:
        Refused: a rebuild is running.
    """
    if not dry_run and not await connection.fetchval("SELECT pg_try_advisory_lock_shared($1)", REBUILD_LOCK):
        raise Refused("a rebuild is running, and its swap might lose what is redriven meanwhile: wait for its end")
    done = Redriven()
    started_at, seen = time.monotonic(), 0
    async for letters in _pages(connection, chosen):
        for letter in letters:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await _redrive_one(connection, letter, done, retention_days)
            except BaseException:
                await transaction.rollback()
                raise
            await (transaction.rollback() if dry_run else transaction.commit())
            seen += 1
            progress(seen)
            if rate and (ahead_s := seen / rate - (time.monotonic() - started_at)) > 0:
                await asyncio.sleep(ahead_s)
    return done


async def _pages(connection: asyncpg.Connection, chosen: Filter) -> AsyncIterator[Sequence[asyncpg.Record]]:
    """By key, so that letters which leave the filter meanwhile shift nothing."""
    where, arguments = chosen.where()
    after: tuple[Any, ...] | None = None
    while True:
        beyond = ""
        if after is not None:
            numbers = range(len(arguments) + 1, len(arguments) + 5)
            beyond = f"AND ({PLACE}) > ({', '.join(f'${number}' for number in numbers)})"
        page = await connection.fetch(
            f"""
            SELECT * FROM ingest.dead_letters WHERE {where} {beyond}
            ORDER BY {PLACE} LIMIT {PAGE}
            """,  # noqa: S608  the condition is made of our own words
            *arguments,
            *(after or ()),
        )
        if not page:
            return
        yield page
        after = tuple(page[-1][name] for name in ("topic_id", "topic", "partition", "offset"))


async def _redrive_one(
    connection: asyncpg.Connection, letter: asyncpg.Record, done: Redriven, retention_days: int
) -> None:
    try:
        event = decode(letter["value"] or b"")
    except Undecodable as undecodable:
        await _stays(connection, letter, undecodable.reason)
        done.still[undecodable.reason] += 1
        return
    record_time = letter["record_time"] or letter["first_seen_at"]
    await suppressions.share(connection)
    erased = await suppressions.among(connection, lambda: suppressions.subjects_of(event))
    if suppressions.is_suppressed(event, int(record_time.timestamp() * 1000), erased):
        done.suppressed += 1
        return
    if retention_days and event.timestamp_us < time.time_ns() // 1000 - retention_days * DAY_US:
        done.expired += 1
        return
    try:
        async with connection.transaction():  # a savepoint
            is_new = await _insert(connection, event)
    except (*DATABASE_ERRORS, *ENCODER_ERRORS) as error:
        if fate_of(error) is not Fate.POISON:
            raise
        await _stays(connection, letter, "database_refused")
        done.still["database_refused"] += 1
        return
    done.stored += is_new
    done.already_there += not is_new
    await connection.execute(
        f"UPDATE ingest.dead_letters SET redriven_at = now() WHERE ({PLACE}) = ($1, $2, $3, $4)",  # noqa: S608  our own names
        *(letter[name] for name in ("topic_id", "topic", "partition", "offset")),
    )


async def _insert(connection: asyncpg.Connection, event: BaseEvent) -> bool:
    columns = [column.name for column in ANALYTICS_TABLES[event.table].columns]
    places = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    key = ", ".join(KEY)
    status = await connection.execute(
        f"INSERT INTO public.{event.table} ({', '.join(columns)}) VALUES ({places}) ON CONFLICT ({key}) DO NOTHING",  # noqa: S608  our own names
        *row_of(event),
    )
    return bool(status.endswith(" 1"))


async def _stays(connection: asyncpg.Connection, letter: asyncpg.Record, reason: str) -> None:
    await connection.execute(
        f"UPDATE ingest.dead_letters SET reason = $5 WHERE ({PLACE}) = ($1, $2, $3, $4)",  # noqa: S608  our own names
        *(letter[name] for name in ("topic_id", "topic", "partition", "offset")),
        reason,
    )
