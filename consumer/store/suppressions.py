"""Erased subjects: what they had sent until then is not stored again, whoever reads it from where.

The topic of erasures is the truth, because it outlives a restored backup of the database; the table
`ingest.suppressions` is what transactions read. `adopt` brings the table up to the topic.

Lock order: a writer's transaction reads the table, and so shares its lock until the commit; an erasure takes
the lock for itself. So it waits for the batches in flight, deletes what they stored, and every later batch
sees it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

from aiokafka import ConsumerRecord
from asyncpg import Connection

from consumer.store.schema import ANALYTICS_TABLES, at, us_of

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


async def adopt(connection: Connection, known: Mapping[Subject, int]) -> int:
    """Add what the table lacks, and delete those subjects' older rows and dead letters, in one transaction.

    How many suppressions were new. Idempotent.
    """
    lacking = await connection.fetch(
        """
        SELECT topic.kind, topic.hash, topic.erased_at
        FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS topic (kind, hash, erased_at)
        LEFT JOIN ingest.suppressions AS held USING (kind, hash)
        WHERE held.erased_at IS NULL OR held.erased_at < topic.erased_at
        """,
        [subject.kind for subject in known],
        [subject.hash for subject in known],
        [at(erased_at_us) for erased_at_us in known.values()],
    )
    if lacking:
        async with connection.transaction():
            await lock(connection)
            for kind, hashed, erased_at in lacking:
                subject = Subject(kind, hashed)
                await suppress(connection, subject, erased_at)
                await delete_subject(connection, subject, until=erased_at)
    return len(lacking)


async def unpublished(connection: Connection, known: Mapping[Subject, int]) -> Suppressions:
    """Those of the table that the topic lacks, or holds with an older date: it was lost, or cut short."""
    held = await connection.fetch("SELECT kind, hash, erased_at FROM ingest.suppressions")
    table = {Subject(row["kind"], row["hash"]): us_of(row["erased_at"]) for row in held}
    return {subject: erased_at for subject, erased_at in table.items() if known.get(subject, -1) < erased_at}


async def lock(connection: Connection) -> None:
    """Wait for the batches in flight, and hold back new ones until the end of the transaction."""
    await connection.execute("LOCK TABLE ingest.suppressions IN ACCESS EXCLUSIVE MODE")


async def suppress(connection: Connection, subject: Subject, erased_at: datetime) -> None:
    """Write the suppression down; of two, the later date stays."""
    await connection.execute(
        """
        INSERT INTO ingest.suppressions AS held (kind, hash, erased_at) VALUES ($1, $2, $3)
        ON CONFLICT (kind, hash) DO UPDATE SET erased_at = greatest(held.erased_at, EXCLUDED.erased_at)
        """,
        subject.kind,
        subject.hash,
        erased_at,
    )


async def delete_subject(
    connection: Connection, subject: Subject, *, until: datetime | None = None, schemas: Sequence[str] = ("public",)
) -> dict[str, int]:
    """Delete a subject's rows, with a timestamp up to `until` if given, and its dead letters; how many, by table."""
    deleted: dict[str, int] = {}
    for schema in schemas:
        for name in ANALYTICS_TABLES:
            status = await connection.execute(
                f"""
                DELETE FROM {schema}.{name}
                WHERE {COLUMN[subject.kind]} = $1 AND ($2::timestamptz IS NULL OR timestamp <= $2)
                """,  # noqa: S608  our own names
                subject.hash,
                until,
            )
            deleted[name] = deleted.get(name, 0) + int(status.rpartition(" ")[2])
    status = await connection.execute(
        """
        DELETE FROM ingest.dead_letters
        WHERE position(convert_to($1, 'UTF8') IN value) > 0 AND ($2::timestamptz IS NULL OR record_time <= $2)
        """,
        subject.hash,
        until,
    )
    return {**deleted, "dead_letters": int(status.rpartition(" ")[2])}


async def among(connection: Connection, events: Iterable[OfSubjects]) -> Suppressions:
    """The suppressions that any of these events may fall under. Shares the table's lock until the commit."""
    if not await connection.fetchval("SELECT EXISTS (SELECT 1 FROM ingest.suppressions)"):
        return {}
    subjects = {subject for event in events for subject in _subjects(event)}
    found = await connection.fetch(
        """
        SELECT kind, hash, erased_at FROM ingest.suppressions
        WHERE kind = 'user' AND hash = ANY($1::text[]) OR kind = 'organization' AND hash = ANY($2::text[])
        """,
        [subject.hash for subject in subjects if subject.kind == "user"],
        [subject.hash for subject in subjects if subject.kind == "organization"],
    )
    return {Subject(row["kind"], row["hash"]): us_of(row["erased_at"]) for row in found}


def is_suppressed(event: OfSubjects, record_time_ms: int, suppressions: Mapping[Subject, int]) -> bool:
    """Did this come, or happen, at or before its subject's erasure?"""
    if not suppressions:
        return False
    earlier_us = min(event.timestamp_us, record_time_ms * 1000)
    subjects = _subjects(event)
    return any(earlier_us <= suppressions[subject] for subject in subjects if subject in suppressions)


def _subjects(event: OfSubjects) -> list[Subject]:
    subjects = []
    if event.user_id is not None:
        subjects.append(Subject("user", event.user_id))
    if event.organization_id is not None:
        subjects.append(Subject("organization", event.organization_id))
    return subjects


async def suppressed_letters(connection: Connection, records: Sequence[ConsumerRecord]) -> set[tuple[int, int]]:
    """Places of those records that no row can be made of, but that hold the hash of somebody erased since."""
    if not records:
        return set()
    found: list[Any] = await connection.fetch(
        """
        SELECT DISTINCT letter.partition, letter."offset"
        FROM unnest($1::int[], $2::bigint[], $3::bytea[], $4::timestamptz[])
            AS letter (partition, "offset", value, record_time)
        JOIN ingest.suppressions AS erased ON position(convert_to(erased.hash, 'UTF8') IN letter.value) > 0
            AND letter.record_time <= erased.erased_at
        """,
        [record.partition for record in records],
        [record.offset for record in records],
        [record.value for record in records],
        [at(record.timestamp * 1000) for record in records],
    )
    return {(row["partition"], row["offset"]) for row in found}
