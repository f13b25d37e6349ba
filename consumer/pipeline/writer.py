"""a batch -> one transaction: the ledger's lines locked, rows upserted, dead letters kept, the lines moved.

All of it commits or none of it does. One connection, one caller at a time.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TypeVar

import asyncpg

from consumer.pipeline.batch import Batch, Decoded, Written, by_table
from consumer.store import dead_letters, suppressions
from consumer.store.database import (
    DATABASE_ERRORS,
    Fate,
    check_clock,
    connect,
    error_name,
    fate_of,
    refuse_transaction_pooling,
)
from consumer.store.dead_letters import Breaker, DeadLetter, Place
from consumer.store.ledger import Ledger
from consumer.store.partitions import Interval, Known
from consumer.store.plain_rows import PlainRows
from consumer.store.schema import INDEX
from consumer.store.upsert import Upsert, make_stages
from shared.errors import DatabaseUnavailable

T = TypeVar("T")
DAY_US = 86_400_000_000


class Writer:
    """Owns one connection, and makes a new one when it breaks."""

    def __init__(
        self,
        *,
        database_url: str,
        application_name: str,
        ledger: Ledger,
        breaker: Breaker,
        retention_days: int,
        interval: Interval,
        plain: PlainRows,
        schema: str = "public",
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._database_url = database_url
        self._application_name = application_name
        self._ledger = ledger
        self._breaker = breaker
        self._retention_us = retention_days * DAY_US
        self.plain = plain
        self._upsert = Upsert(schema, plain)
        self._partitions = Known(schema, interval)
        self._keeps_letters = schema == "public"  # a rebuild meets letters that the live consumer has kept
        self._now_us = now_us
        self._connection: asyncpg.Connection | None = None

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
            return await self.using(lambda connection: self._write_whole(connection, batch))
        except _BreakerOpens as opens:
            written = await self.write(batch.cut(opens.cut_at)) if opens.cut_at else Written({})
            self._breaker.is_open = True
            if written.cut_at is None:  # else another writer's dead letters have cut it shorter meanwhile
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
            raise DatabaseUnavailable(error_name(error)) from error

    async def _open(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            await refuse_transaction_pooling(self._database_url)
            connection = await connect(self._database_url, application_name=self._application_name)
            try:
                if self._retention_us:
                    await check_clock(connection)
                await make_stages(connection)
                await self._partitions.load(connection)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection

    def close(self) -> None:
        """Drop the connection, without waiting for a server that may be gone."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _write_whole(self, connection: asyncpg.Connection, batch: Batch) -> Written:
        """Make the partitions that the rows need, and write: a partition stays even if the transaction does not."""
        for table, rows in by_table(batch.records).items():
            timestamp_at = INDEX[table]["timestamp"]
            await self._partitions.make_for(connection, table, [each.row[timestamp_at] for each in rows])
        return await self._write(connection, batch)

    async def _write(self, connection: asyncpg.Connection, batch: Batch) -> Written:
        written = Written(batch.moves())
        moves = written.moves.values()
        async with AsyncExitStack() as breaker_turn:
            async with connection.transaction():
                await self._ledger.lock(connection, (move.line for move in moves))
                kept = await self._kept(connection, batch.records, written)
                letters = [decoded.dead_letter for decoded in kept if decoded.dead_letter]
                for table, rows in sorted(by_table(kept).items()):  # in one order, or concurrent writers deadlock
                    letters += await self._upsert.store(connection, table, rows, written)
                new = await dead_letters.unknown(connection, batch.topic_id, letters)
                are_dead = [decoded.place in new for decoded in batch.records] if new else [False] * len(batch.records)
                if new:
                    await breaker_turn.enter_async_context(self._breaker.turn)
                if (cut_at := self._breaker.judge(are_dead)) is not None:
                    raise _BreakerOpens(cut_at)
                if self._keeps_letters:
                    await dead_letters.insert(connection, batch.topic_id, new.values())
                    others = _rowless(batch.records, kept, letters)
                    await dead_letters.mark_redriven(connection, moves, self._ledger.topic, others)
                written.count_letters(letters, new.values())
                written.settle()
                await self._ledger.move(connection, moves)
            # Durable from here on.
            self._breaker.settled(are_dead)
        return written

    async def _kept(
        self, connection: asyncpg.Connection, records: Sequence[Decoded], written: Written
    ) -> Sequence[Decoded]:
        """Without the records of erased subjects, and those past their retention, which are counted."""
        await suppressions.share(connection)
        erased = await suppressions.among(connection, (decoded for decoded in records if decoded.table))
        bad = [decoded.record for decoded in records if decoded.dead_letter]
        erased_letters = await suppressions.suppressed_letters(connection, bad)
        expired_until_us = self._now_us() - self._retention_us if self._retention_us else None
        if not erased and not erased_letters and expired_until_us is None:
            return records
        kept = []
        for decoded in records:
            fate = _fate_unstored(decoded, erased, expired_until_us)
            if fate is None and decoded.place in erased_letters:
                fate = "suppressed"
            if fate is None:
                kept.append(decoded)
            else:
                written.count(fate, decoded.table, decoded.record.partition)
        return kept


def _rowless(records: Sequence[Decoded], kept: Sequence[Decoded], letters: Sequence[DeadLetter]) -> set[Place]:
    """Where the records stand that are letters, suppressed or expired."""
    left_out = {each.place for each in records} - {each.place for each in kept} if len(kept) < len(records) else set()
    return left_out | {letter.place for letter in letters}


class _BreakerOpens(Exception):  # noqa: N818  rolls the transaction back, and is caught beside it
    def __init__(self, cut_at: int) -> None:
        super().__init__(cut_at)
        self.cut_at = cut_at


def _fate_unstored(decoded: Decoded, erased: suppressions.Suppressions, expired_until_us: int | None) -> str | None:
    """`suppressed` or `expired`; None when the record is to be stored, or kept as a dead letter."""
    if decoded.table:
        if suppressions.is_suppressed(decoded, decoded.record.timestamp, erased):
            return "suppressed"
        happened_us = decoded.timestamp_us
    elif decoded.dead_letter:
        happened_us = decoded.record.timestamp * 1000
    else:
        return None
    return "expired" if expired_until_us is not None and happened_us < expired_until_us else None
