"""Erase a person or organization for good, or export what is stored of them."""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from consumer.operations.operation import Operation, Refused, WrongUse
from consumer.settings import ConsumerSettings
from consumer.store import erasures, suppressions, suppressions_topic
from consumer.store.copies import Copy, copies
from consumer.store.database import check_clock
from consumer.store.erasures import Erasure
from consumer.store.schema import ANALYTICS_TABLES, from_microseconds, to_microseconds
from consumer.store.suppressions import COLUMN, Kind, Subject
from shared.broker import KAFKA_ERRORS, ensure_topics, new_producer, topic_settings
from shared.errors import BrokerUnavailable, WrongTopic
from shared.identity import hashes_of
from shared.lifecycle import stop_within

START_TIMEOUT_S = 10.0
READER_PAUSE_MAX = "1h"  # of who pages through an export, in Postgres's words
PUBLISH_TIMEOUT_S = 5.0  # writers stand still for as long; below the limit for an idle transaction
LOCK_ATTEMPTS = 6
TURN_ATTEMPTS = 20
LOCK_PAUSE_S = 0.5
TOPIC_ATTEMPTS = 3
TOPIC_PAUSE_S = 1.0
STOP_TIMEOUT_S = 5.0
_HASH = re.compile(r"[0-9a-f]{16}")
EXPIRY_MARGIN_MS = 600_000  # the broker looks for old segments every few minutes


def subjects_of(settings: ConsumerSettings, kind: Kind, *, raw: str | None, hashed: str | None) -> list[Subject]:
    """Everything that this person or organization may be stored as, the present hash first.

    A raw id is hashed by the present key, by each previous one, and by none. A given hash is taken as it is.
    """
    if (raw is None) == (hashed is None):
        raise WrongUse("give one id or one hash")
    if hashed is not None:
        if not _HASH.fullmatch(hashed):  # a raw id here would stay in the compacted topic for ever
            raise WrongUse("a hash is 16 lower-case hex digits, as the tables have it; give a raw id with --user-id")
        return [Subject(kind, hashed)]
    if not raw or not raw.strip():
        raise WrongUse("the id is empty: give the person's or organization's id")
    previous = [key.get_secret_value().encode() for key in settings.id_hash_keys_previous]
    keys = [key for key in (settings.hash_key, *previous) if key]
    return [Subject(kind, found) for found in hashes_of(raw, mode=settings.id_hashing, keys=[*keys, b""])]


Progress = Callable[[int, int], None]  # deleted so far, of how many; 0: unknown


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an erasure did, or in a dry run would do. `topic_expires_at`: when the last record is gone from Kafka."""

    subject_hash: str
    subject_hashes: list[str]
    rows: dict[str, int]
    dead_letters: int
    topic_expires_at: datetime | None
    dry_run: bool


async def erase(
    operation: Operation, subjects: Sequence[Subject], *, dry_run: bool, progress: Progress = lambda *_: None
) -> Receipt:
    """Delete the subjects' rows and dead letters, and keep replays from bringing them back.

    One short transaction publishes the suppression to Kafka, so that it survives a restored backup of the database, and
    writes it to the table. It waits for batches in flight and holds back later ones. After it, no older event of the
    subject is stored. The deletion follows in batches, in every schema with copies of the tables. This command or a
    consumer ends it. Idempotent: a second erasure keeps the later date.

    Raises:
        Refused: this role cannot erase everywhere; nothing was done.
        BrokerUnavailable: nothing was deleted.
        DatabaseUnavailable, DatabaseRefused: the suppression may be published; a consumer then carries it out. Run
            the command again to be sure.
    """
    expires_at = await _topic_expires_at(operation)
    tables = await _tables(operation)
    counts = dict.fromkeys((*ANALYTICS_TABLES, "dead_letters"), 0)
    if dry_run:
        for subject in subjects:
            await _count(operation, subject, tables, counts)
    else:
        await check_clock(operation.database)
        await _take_turn(operation)
        begun = await _suppressed(operation, subjects, tables, counts)

        def deleted(table: str, count: int) -> None:
            counts[table] += count
            progress(sum(counts.values()), 0)

        for erasure in begun:
            await erasures.carry_out(operation.database, erasure, tables, deleted)
            await erasures.finish(operation.database, erasure)
    letters = counts.pop("dead_letters")
    hashes = [subject.hash for subject in subjects]
    return Receipt(hashes[0], hashes, counts, letters, expires_at, dry_run)


async def _take_turn(operation: Operation) -> None:
    """Keep consumers from carrying this erasure out, so that the receipt counts all of it.

    One that is busy with an earlier erasure is waited for, but not for ever: both may delete side by side.
    """
    for _ in range(TURN_ATTEMPTS):
        if await operation.database.fetchval("SELECT pg_try_advisory_lock($1)", erasures.ADVISORY_LOCK):
            return
        await asyncio.sleep(LOCK_PAUSE_S)


async def _suppressed(
    operation: Operation, subjects: Sequence[Subject], tables: Sequence[Copy], counts: dict[str, int]
) -> list[Erasure]:
    """Publish and write the suppressions, under the lock; tries again while a long batch holds it."""

    def deleted(table: str, count: int) -> None:
        counts[table] += count

    async with _publisher(operation.settings) as publish:
        for attempt in range(1, LOCK_ATTEMPTS + 1):
            try:
                async with operation.database.transaction():
                    await suppressions.lock(operation.database)
                    # Under the lock, so that all that is stored came before, and what comes after is stored.
                    erased_at = {subject: await _erased_at_us(operation, subject) for subject in subjects}
                    await publish(erased_at)
                    begun = [
                        Erasure(subject, from_microseconds(erased_at_us)) for subject, erased_at_us in erased_at.items()
                    ]
                    for erasure in begun:
                        await erasures.suppress(operation.database, erasure)
                        await erasures.delete_ahead(operation.database, erasure, tables, deleted)
                    return begun
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                if attempt == LOCK_ATTEMPTS:
                    raise
                await asyncio.sleep(LOCK_PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


async def _count(operation: Operation, subject: Subject, tables: Sequence[Copy], counts: dict[str, int]) -> None:
    """What would be deleted now."""
    for table in tables:
        counts[table.table] += await operation.database.fetchval(
            f"SELECT count(*) FROM {table.name} WHERE {COLUMN[subject.kind]} = $1",  # noqa: S608  our own names
            subject.hash,
        )
    counts["dead_letters"] += await operation.database.fetchval(
        "SELECT count(*) FROM ingest.dead_letters WHERE position(convert_to($1, 'UTF8') IN value) > 0", subject.hash
    )


async def export(operation_database: Any, subjects: Sequence[Subject]) -> AsyncGenerator[str]:
    """The subjects' rows as JSON, one a line, oldest first within each table."""
    kind = subjects[0].kind
    async with operation_database.transaction(readonly=True):
        await operation_database.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{READER_PAUSE_MAX}'")
        for table in ANALYTICS_TABLES:
            sql = f"SELECT * FROM public.{table} WHERE {COLUMN[kind]} = ANY($1::text[]) ORDER BY timestamp, id"  # noqa: S608  our own names
            async for row in operation_database.cursor(sql, [subject.hash for subject in subjects]):
                columns = {**row, "event_metadata": json.loads(row["event_metadata"])}
                yield json.dumps({"table": table, **columns}, default=_plain)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


async def _erased_at_us(operation: Operation, subject: Subject) -> int:
    """Now, or the later date of an erasure before: compaction keeps the last record, whatever its date."""
    held: datetime | None = await operation.database.fetchval(
        "SELECT erased_at FROM ingest.suppressions WHERE kind = $1 AND hash = $2", *subject
    )
    now_us = time.time_ns() // 1000
    return now_us if held is None else max(now_us, to_microseconds(held))


Publish = Callable[[suppressions.Suppressions], Awaitable[None]]


@asynccontextmanager
async def _publisher(settings: ConsumerSettings) -> AsyncIterator[Publish]:
    """A way to publish suppressions, with the broker and the topic there already.

    Raises:
        BrokerUnavailable: nothing was published, or who knows.
    """
    producer = new_producer(settings)
    try:
        with _as_unpublished():
            await _ensure_topic(settings)
            await asyncio.wait_for(producer.start(), START_TIMEOUT_S)

        async def publish(erased: suppressions.Suppressions) -> None:
            with _as_unpublished():
                async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                    await suppressions_topic.publish(producer, settings.kafka_suppressions_topic, erased)

        yield publish
    finally:
        await stop_within(producer.stop(), STOP_TIMEOUT_S)


async def _ensure_topic(settings: ConsumerSettings) -> None:
    """Made here too, should nothing have run yet: the broker's own way to make a topic would not compact it."""
    for attempt in range(1, TOPIC_ATTEMPTS + 1):
        try:
            await ensure_topics(settings)
        except BrokerUnavailable:  # perhaps just made, and not known everywhere
            if attempt == TOPIC_ATTEMPTS:
                raise
            await asyncio.sleep(TOPIC_PAUSE_S)
        else:
            return


@contextmanager
def _as_unpublished() -> Iterator[None]:
    try:
        yield
    except (*KAFKA_ERRORS, BrokerUnavailable, WrongTopic) as error:
        raise BrokerUnavailable(
            f"the suppression was not published, so nothing was deleted: {type(error).__name__}"
        ) from error


async def _tables(operation: Operation) -> list[Copy]:
    """Every table that holds analytics rows: live ones, those of a rebuild, and what a rebuild replaced.

    Raises:
        Refused: this role may not delete in one of the schemas, so the erasure would not be whole.
    """
    found = await copies(operation.database)
    barred = sorted({table.schema for table in found if not table.may_delete})
    if barred:
        raise Refused(f"this role may not delete in {', '.join(barred)}: erase as the owner of the tables")
    return found


async def _topic_expires_at(operation: Operation) -> datetime | None:
    """When retention has taken the youngest record of today; None when it never does."""
    config = await topic_settings(operation.settings, operation.topic)
    retention_ms = int(config.get("retention.ms") or -1)
    if retention_ms < 0:
        return None
    lasts_ms = retention_ms + int(config.get("segment.ms") or 0) + EXPIRY_MARGIN_MS
    return datetime.now(UTC) + timedelta(milliseconds=lasts_ms)
