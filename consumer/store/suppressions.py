"""Erased subjects: what they had sent until then is not stored again, whoever reads it from where.

The topic of erasures is the truth, because it outlives a restored backup of the database; the table
`ingest.suppressions` is what transactions read, and `erasures` deletes what they ask for.

Lock order: a writer's transaction shares the table's lock until the commit; an erasure takes the lock for itself
while it writes the suppression. So it waits for the batches in flight, and every later batch sees it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from aiokafka import ConsumerRecord
from asyncpg import Connection

from consumer.store.schema import at, us_of

Kind = Literal["user", "organization"]
COLUMN: dict[Kind, str] = {"user": "user_id", "organization": "organization_id"}


class Subject(NamedTuple):
    """Whom an erasure is about: the hash of a user's or an organization's id."""

    kind: Kind
    hash: str


Suppressions = dict[Subject, int]  # erased at, in microseconds since 1970 UTC


class OfSubjects(Protocol):
    """An event, or the row of one."""

    @property
    def user_id(self) -> str | None: ...
    @property
    def organization_id(self) -> str | None: ...
    @property
    def timestamp_us(self) -> int: ...


async def unpublished(connection: Connection, known: Mapping[Subject, int]) -> Suppressions:
    """Those of the table that the topic lacks, or holds with an older date: it was lost, or cut short."""
    held = await connection.fetch("SELECT kind, hash, erased_at FROM ingest.suppressions")
    table = {Subject(row["kind"], row["hash"]): us_of(row["erased_at"]) for row in held}
    return {subject: erased_at for subject, erased_at in table.items() if known.get(subject, -1) < erased_at}


async def lock(connection: Connection) -> None:
    """Wait for the batches in flight, and hold back new ones until the end of the transaction.

    Readers and pg_dump are not in the way: they share no mode with this one.
    """
    await connection.execute("LOCK TABLE ingest.suppressions IN EXCLUSIVE MODE")


async def share(connection: Connection) -> None:
    """Until the end of the transaction no erasure comes in between what it reads here and what it stores."""
    await connection.execute("LOCK TABLE ingest.suppressions IN ROW SHARE MODE")


async def among(connection: Connection, subjects: Callable[[], Collection[Subject]]) -> Suppressions:
    """The suppressions of any of these subjects, who are asked for only when there are suppressions."""
    if not await connection.fetchval("SELECT EXISTS (SELECT 1 FROM ingest.suppressions)"):
        return {}
    wanted = subjects()
    found = await connection.fetch(
        """
        SELECT kind, hash, erased_at FROM ingest.suppressions
        WHERE kind = 'user' AND hash = ANY($1::text[]) OR kind = 'organization' AND hash = ANY($2::text[])
        """,
        [subject.hash for subject in wanted if subject.kind == "user"],
        [subject.hash for subject in wanted if subject.kind == "organization"],
    )
    return {Subject(row["kind"], row["hash"]): us_of(row["erased_at"]) for row in found}


def is_suppressed(event: OfSubjects, record_time_ms: int, suppressions: Mapping[Subject, int]) -> bool:
    """Did this come, or happen, at or before its subject's erasure?"""
    if not suppressions:
        return False
    earlier_us = min(event.timestamp_us, record_time_ms * 1000)
    subjects = subjects_of(event)
    return any(earlier_us <= suppressions[subject] for subject in subjects if subject in suppressions)


def subjects_of(event: OfSubjects) -> list[Subject]:
    subjects = []
    if event.user_id is not None:
        subjects.append(Subject("user", event.user_id))
    if event.organization_id is not None:
        subjects.append(Subject("organization", event.organization_id))
    return subjects


async def suppressed_letters(connection: Connection, records: Sequence[ConsumerRecord]) -> set[tuple[int, int]]:
    """Places of those records that no row can be made of, but that hold the hash of somebody erased since.

    A record without a time counts as received now.
    """
    if not records:
        return set()
    found: list[Any] = await connection.fetch(
        """
        SELECT DISTINCT letter.partition, letter."offset"
        FROM unnest($1::int[], $2::bigint[], $3::bytea[], $4::timestamptz[])
            AS letter (partition, "offset", value, record_time)
        JOIN ingest.suppressions AS erased ON position(convert_to(erased.hash, 'UTF8') IN letter.value) > 0
            AND coalesce(letter.record_time, now()) <= erased.erased_at
        """,
        [record.partition for record in records],
        [record.offset for record in records],
        [record.value for record in records],
        [at(record.timestamp * 1000) if record.timestamp >= 0 else None for record in records],
    )
    return {(row["partition"], row["offset"]) for row in found}
