"""a batch -> one transaction: the ledger's lines locked, rows upserted, dead letters kept, the lines moved.

All of it commits or none of it does. One connection, one caller at a time.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeVar

import asyncpg

from consumer.pipeline.batch import Batch
from consumer.pipeline.records.parts import Engine
from consumer.store import dead_letters, rollups, suppressions
from consumer.store.database import (
    DATABASE_ERRORS,
    Fate,
    check_clock,
    connect,
    error_name,
    fate_of,
    refuse_transaction_pooling,
)
from consumer.store.dead_letters import Breaker, Place
from consumer.store.ledger import Ledger
from consumer.store.partitions import Interval, Known
from consumer.store.rows.decoded import Decoded
from consumer.store.rows.table_rows import TableRows
from consumer.store.rows.upsert import Upsert, make_stages
from consumer.store.rows.written import Written
from consumer.store.schema import DAY_US
from shared.errors import DatabaseUnavailable

T = TypeVar("T")


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
        engine: Engine,
        schema: str = "public",
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._database_url = database_url
        self._application_name = application_name
        self._ledger = ledger
        self._breaker = breaker
        self._retention_us = retention_days * DAY_US
        self._engine = engine
        self._upsert = Upsert(schema)
        self._partitions = Known(schema, interval)
        self._is_live = schema == "public"  # else of a rebuild: its rows are in no sums, its letters are kept already
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
        tables = self._engine.tables(batch.parts, frozenset())
        for table, rows in tables.items():
            await self._partitions.make_for(connection, table, rows.times())
        return await self._write(connection, batch, tables)

    async def _write(self, connection: asyncpg.Connection, batch: Batch, tables: dict[str, TableRows]) -> Written:
        """`tables` has all rows of the batch."""
        written = Written(batch.moves())
        moves = written.moves.values()
        async with AsyncExitStack() as breaker_turn:
            async with connection.transaction():
                await self._ledger.lock(connection, (move.line for move in moves))
                left_out = await self._left_out(connection, batch, written)
                if left_out:
                    tables = self._engine.tables(batch.parts, left_out)
                if self._is_live:
                    await rollups.mark(connection, (time for rows in tables.values() for time in rows.times()))
                letters = [
                    each.dead_letter for each in batch.dead_letters() if each.dead_letter and each.place not in left_out
                ]
                for table, rows in sorted(tables.items()):  # in one order, or concurrent writers deadlock
                    letters += await self._upsert.store(connection, table, rows, written)
                new = await dead_letters.unknown(connection, batch.topic_id, letters)
                are_dead = batch.are_at(new)
                if new:
                    await breaker_turn.enter_async_context(self._breaker.turn)
                if (cut_at := self._breaker.judge(are_dead)) is not None:
                    raise _BreakerOpens(cut_at)
                if self._is_live:
                    await dead_letters.insert(connection, batch.topic_id, new.values())
                    rowless = left_out | {letter.place for letter in letters}
                    await dead_letters.mark_redriven(connection, moves, self._ledger.topic, rowless)
                written.count_dead_letters(letters, new.values())
                written.settle()
                await self._ledger.move(connection, moves)
            # Durable from here on.
            self._breaker.settled(are_dead)
        return written

    async def _left_out(self, connection: asyncpg.Connection, batch: Batch, written: Written) -> set[Place]:
        """Where the records of erased subjects are, and those past their retention, which are counted."""
        await suppressions.share(connection)
        letters = batch.dead_letters()
        erased = await suppressions.among(connection, batch.subjects)
        erased_letters = await suppressions.suppressed_letters(connection, [each.record for each in letters])
        expired_until_us = self._now_us() - self._retention_us if self._retention_us else None
        if not erased and not erased_letters and expired_until_us is None:
            return set()
        left_out = set()
        for each in (*batch.matching(erased, expired_until_us), *letters):
            fate = _fate_unstored(each, erased, expired_until_us)
            if fate is None and each.place in erased_letters:
                fate = "suppressed"
            if fate is not None:
                written.count(fate, each.table, each.record.partition)
                left_out.add(each.place)
        return left_out


class _BreakerOpens(Exception):  # noqa: N818  rolls the transaction back, and is caught beside it
    def __init__(self, cut_at: int) -> None:
        super().__init__(cut_at)
        self.cut_at = cut_at


def _fate_unstored(decoded: Decoded, erased: suppressions.Suppressions, expired_until_us: int | None) -> str | None:
    """Of a row or a dead letter: `suppressed` or `expired`; None when it is to be stored or kept."""
    if decoded.table:
        if suppressions.is_suppressed(decoded, decoded.record.timestamp, erased):
            return "suppressed"
        happened_us = decoded.timestamp_us
    else:
        happened_us = decoded.record.timestamp * 1000
    return "expired" if expired_until_us is not None and happened_us < expired_until_us else None
