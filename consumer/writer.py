"""rows -> one transaction a batch: the ledger's lines locked, rows upserted, dead letters kept, the lines moved.

All of it commits or none of it does. One connection, one caller at a time.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import asyncpg
from aiokafka import ConsumerRecord
from sqlalchemy import Table

from consumer import dead_letters
from consumer.database import DATABASE_ERRORS, ENCODER_ERRORS, Fate, connect, fate_of
from consumer.dead_letters import Breaker, DeadLetter
from consumer.ledger import Ledger, Line, Move
from consumer.tables import ANALYTICS_TABLES, Row, row_of
from shared.errors import DatabaseUnavailable, Undecodable
from shared.wire import decode

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A record and what it is: a row of a table, a dead letter, or a tombstone (neither)."""

    record: ConsumerRecord
    table: str | None = None
    row: Row = ()
    dead_letter: DeadLetter | None = None


def decoded(record: ConsumerRecord) -> Decoded:
    """One record -> one row, or why it is none. Never raises for any bytes."""
    if record.value is None:
        return Decoded(record)
    try:
        event = decode(record.value)
    except Undecodable as undecodable:
        return Decoded(record, dead_letter=DeadLetter(record, undecodable.reason))
    return Decoded(record, table=event.table, row=row_of(event))


@dataclass(frozen=True, slots=True)
class Batch:
    """Records in the order of their offsets within each partition, and the lines that they start from."""

    records: Sequence[Decoded]
    lines: dict[int, Line]

    def cut(self, length: int) -> "Batch":
        """The first `length` records."""
        return Batch(self.records[:length], self.lines)

    def next_offsets(self) -> dict[int, int]:
        return {decoded.record.partition: decoded.record.offset + 1 for decoded in self.records}


@dataclass(slots=True)
class Written:
    """What a commit has made durable."""

    moves: dict[int, Move]
    fates: Counter[tuple[str, str]] = field(default_factory=Counter)  # (fate, table)
    reasons: Counter[str] = field(default_factory=Counter)  # of new dead letters
    cut_at: int | None = None  # the breaker let only so many records pass


class Writer:
    """Owns one connection, and makes a new one when it breaks."""

    def __init__(self, *, database_url: str, application_name: str, ledger: Ledger, breaker: Breaker) -> None:
        self._database_url = database_url
        self._application_name = application_name
        self._ledger = ledger
        self._breaker = breaker
        self._connection: asyncpg.Connection | None = None

    async def _open(self) -> asyncpg.Connection:
        """The connection, with the staging tables that fresh rows are copied into."""
        if self._connection is None or self._connection.is_closed():
            connection = await connect(self._database_url, application_name=self._application_name)
            for table in ANALYTICS_TABLES.values():
                await connection.execute(_stage_sql(table))
            self._connection = connection
        return self._connection

    def close(self) -> None:
        """Drop the connection, without waiting for a server that may be gone."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def write(self, batch: Batch) -> Written:
        """Store a batch and move the ledger over it, in one transaction.

        Until the commit inside returns, all of this may be redone; after it, it is durable. Idempotent: a
        second write of the same batch is Fenced. When the breaker opens, only what comes before the record
        that opens it is written, and `cut_at` says how much that is.

        Raises:
            Fenced: the ledger is not where the batch starts. Nothing was written.
            DatabaseUnavailable: nothing was written, or all of it was and only the answer is lost. Load the
                ledger to know.
        """
        try:
            return await self.using(lambda connection: self._write(connection, batch))
        except _BreakerOpens as opens:
            self._breaker.is_open = True
            written = await self.write(batch.cut(opens.cut_at)) if opens.cut_at else Written({})
            written.cut_at = opens.cut_at
            return written

    async def using(self, act: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Run `act` with the open connection, or a new one.

        Raises:
            DatabaseUnavailable: trouble that passes; the connection is dropped. The text is an SQLSTATE or a type.
        """
        try:
            return await act(await self._open())
        except DATABASE_ERRORS as error:
            self.close()
            if fate_of(error) is not Fate.TRANSIENT:
                raise
            raise DatabaseUnavailable(getattr(error, "sqlstate", None) or type(error).__name__) from error

    async def _write(self, connection: asyncpg.Connection, batch: Batch) -> Written:
        next_offsets = batch.next_offsets()
        written = Written({partition: Move(batch.lines[partition], to) for partition, to in next_offsets.items()})
        topic_id = next(iter(written.moves.values())).line.topic_id
        async with connection.transaction():
            await self._ledger.lock(connection, (move.line for move in written.moves.values()))
            refused: list[DeadLetter] = []
            for name, table in ANALYTICS_TABLES.items():
                rows = [decoded for decoded in batch.records if decoded.table == name]
                refused += await _store(connection, table, rows, written) if rows else []
            letters = [decoded.dead_letter for decoded in batch.records if decoded.dead_letter] + refused
            known = await dead_letters.known_places(connection, topic_id, letters)
            new = {letter.place: letter for letter in letters if letter.place not in known}
            are_dead = [(decoded.record.partition, decoded.record.offset) in new for decoded in batch.records]
            if (cut_at := self._breaker.judge(are_dead)) is not None:
                raise _BreakerOpens(cut_at)
            if new:
                await dead_letters.insert(connection, topic_id, new.values())
            await dead_letters.mark_redriven(connection, written.moves.values(), self._ledger.topic, letters)
            _count(written, letters, new.values())
            await self._ledger.move(connection, written.moves.values())
        # Durable from here on.
        self._breaker.settled(are_dead)
        return written


class _BreakerOpens(Exception):  # noqa: N818  rolls the transaction back, and is caught beside it
    def __init__(self, cut_at: int) -> None:
        super().__init__(cut_at)
        self.cut_at = cut_at


def _count(written: Written, letters: Sequence[DeadLetter], new: Iterable[DeadLetter]) -> None:
    """Give every offset of the batch its fate."""
    for letter in letters:
        written.moves[letter.record.partition].counts["dead_lettered"] += 1
    written.reasons.update(letter.reason for letter in new)
    for move in written.moves.values():
        skipped_before = move.counts["skipped"]
        move.settle()
        written.fates["skipped", ""] += move.counts["skipped"] - skipped_before
    written.fates["dead_lettered", ""] += len(letters)


async def _store(
    connection: asyncpg.Connection, table: Table, rows: Sequence[Decoded], written: Written, *, is_part: bool = False
) -> list[DeadLetter]:
    """Upsert the rows; halve and try again when the database refuses one, until those it refuses stand alone.

    The halves keep their order, so of two versions of one row the later still wins.
    """
    try:
        async with connection.transaction():  # a savepoint
            if is_part:
                await connection.execute(f"DELETE FROM stage_{table.name}")  # noqa: S608  our own table name
            new_rows = await _upsert(connection, table, rows)
    except (*DATABASE_ERRORS, *ENCODER_ERRORS) as error:
        if fate_of(error) is not Fate.POISON:
            raise
        if len(rows) == 1:
            return [DeadLetter(rows[0].record, "database_refused")]
        middle = len(rows) // 2
        refused = await _store(connection, table, rows[:middle], written, is_part=True)
        return refused + await _store(connection, table, rows[middle:], written, is_part=True)
    for partition, records in Counter(decoded.record.partition for decoded in rows).items():
        counts = written.moves[partition].counts
        counts["stored"] += new_rows[partition]
        counts["duplicates"] += records - new_rows[partition]
    written.fates["stored", table.name] += new_rows.total()
    written.fates["duplicates", table.name] += len(rows) - new_rows.total()
    return []


async def _upsert(connection: asyncpg.Connection, table: Table, rows: Sequence[Decoded]) -> Counter[int]:
    """How many rows are new, by partition. Of two versions of a row in `rows` the later one is written."""
    latest = {decoded.row[0]: (*decoded.row, decoded.record.partition) for decoded in rows}
    await connection.copy_records_to_table(f"stage_{table.name}", records=latest.values())
    found = await connection.fetch(_UPSERT_SQL[table.name])
    return Counter({row["kafka_partition"]: row["count"] for row in found})


def _stage_sql(table: Table) -> str:
    """A connection's own copy of the table's columns, empty again after every commit."""
    return f"""
        CREATE TEMPORARY TABLE IF NOT EXISTS stage_{table.name} (LIKE public.{table.name}, kafka_partition int)
        ON COMMIT DELETE ROWS
    """


def _upsert_sql(table: Table) -> str:
    """Sorted by key, or concurrent writers deadlock; guarded, so that a replay writes next to no WAL.

    xmax is 0 only in a row version that this statement inserted rather than updated.
    """
    columns = [column.name for column in table.columns]
    values = columns[1:]
    return f"""
        WITH written AS (
            INSERT INTO public.{table.name} AS live ({", ".join(columns)})
            SELECT {", ".join(columns)} FROM stage_{table.name} ORDER BY id
            ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = EXCLUDED.{name}" for name in values)}
            WHERE ({", ".join(f"live.{name}" for name in values)})
                IS DISTINCT FROM ({", ".join(f"EXCLUDED.{name}" for name in values)})
            RETURNING id, xmax = 0 AS is_new
        )
        SELECT kafka_partition, count(*) FROM stage_{table.name} JOIN written USING (id) WHERE is_new GROUP BY 1
    """  # noqa: S608  table and column names are our own


_UPSERT_SQL = {name: _upsert_sql(table) for name, table in ANALYTICS_TABLES.items()}
