"""What has been settled: one line a partition, moved only in the transaction of the rows that it covers.

A consumer's position is the line's next_offset and nothing else: not the group's offset, not aiokafka's.
The statements that move a line name the offset and the epoch that the batch started from, so a consumer
that lost its partition moves nothing and writes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID, uuid4

from asyncpg import Connection

from consumer.store.schema import FATES, LINE_COLUMNS
from shared.errors import Transient

LIVE = "live"
GapReason = Literal["retention", "truncated"]


class Fenced(Transient):
    """The ledger is not where this batch started from: another consumer, a rewind, a restored database, or our
    own commit whose answer was lost. Nothing was written; load the ledger again and go on from there.
    """


@dataclass(frozen=True, slots=True)
class Line:
    """A partition's line, as loaded."""

    partition: int
    topic_id: UUID
    epoch: int
    next_offset: int
    last_record_hash: bytes | None = None  # SHA-256 of the value of the record before next_offset; None: unknown
    last_record_time: datetime | None = None
    leader_epoch: int | None = None  # under which that record was read, or an earlier one wrote it


@dataclass(slots=True)
class Move:
    """How a batch moves one line: from `line.next_offset` to `next_offset`, with a fate for every offset between."""

    line: Line
    next_offset: int
    last_record_hash: bytes | None = None
    last_record_time: datetime | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FATES, 0))

    def settle(self) -> int:
        """Count the offsets that have no other fate as skipped; how many those are."""
        skipped = self.next_offset - self.line.next_offset - sum(self.counts.values())
        self.counts["skipped"] += skipped
        return skipped


@dataclass(frozen=True, slots=True)
class Ledger:
    """The lines of one topic and generation. `generation` is `live`, or the name of a rebuild.

    A rebuild's lines are begun by its start alone: its writer, fenced by an abort, must not begin them anew.
    """

    topic: str
    generation: str = LIVE

    @property
    def may_begin(self) -> bool:
        return self.generation == LIVE

    async def load(self, connection: Connection, partitions: Iterable[int]) -> dict[int, Line]:
        """The lines that exist, by partition."""
        found = await connection.fetch(
            """
            SELECT partition, topic_id, epoch, next_offset, last_record_hash, last_record_time, leader_epoch
            FROM ingest.partition_offsets
            WHERE generation = $1 AND topic = $2 AND partition = ANY($3::int[])
            """,
            self.generation,
            self.topic,
            list(partitions),
        )
        return {line["partition"]: Line(**line) for line in found}

    async def is_balanced(self, connection: Connection) -> bool:
        """Whether every offset that any line of this topic has passed has one fate."""
        fates = " + ".join(FATES)
        sql = (
            f"SELECT 1 FROM ingest.partition_offsets WHERE topic = $1 AND next_offset - first_offset <> {fates} LIMIT 1"  # noqa: S608  our own names
        )
        return await connection.fetchval(sql, self.topic) is None

    async def note_ends(
        self, connection: Connection, topic_id: UUID, ends: Mapping[int, int], seen_at: datetime
    ) -> None:
        """Where the partitions ended, for `analytics.freshness`. A later look wins."""
        await connection.execute(
            """
            INSERT INTO ingest.topic_ends AS known (topic, partition, topic_id, end_offset, seen_at)
            SELECT $1, partition, $2, end_offset, $3
            FROM unnest($4::int[], $5::bigint[]) AS found (partition, end_offset)
            ON CONFLICT (topic, partition) DO UPDATE
            SET topic_id = excluded.topic_id, end_offset = excluded.end_offset, seen_at = excluded.seen_at
            WHERE known.seen_at < excluded.seen_at
            """,
            self.topic,
            topic_id,
            seen_at,
            list(ends),
            list(ends.values()),
        )

    async def begin(self, connection: Connection, topic_id: UUID, first_offsets: Mapping[int, int]) -> None:
        """New lines, for partitions never seen. Idempotent: a line that another consumer began stays as it is."""
        await connection.execute(
            """
            INSERT INTO ingest.partition_offsets
                (generation, topic, partition, topic_id, epoch, first_offset, next_offset)
            SELECT $1, $2, partition, $3, 0, first_offset, first_offset
            FROM unnest($4::int[], $5::bigint[]) AS new (partition, first_offset) ORDER BY partition
            ON CONFLICT DO NOTHING
            """,
            self.generation,
            self.topic,
            topic_id,
            list(first_offsets.keys()),
            list(first_offsets.values()),
        )

    async def lock(self, connection: Connection, lines: Iterable[Line]) -> None:
        """Lock the lines until the end of the transaction, which must be the first thing that it does.

        Raises:
            Fenced: a line is no longer as it was loaded.
        """
        wanted = sorted(lines, key=lambda line: line.partition)
        locked = await connection.fetch(
            """
            SELECT partition FROM ingest.partition_offsets
            WHERE generation = $1 AND topic = $2 AND (partition, topic_id, epoch, next_offset) IN
                (SELECT * FROM unnest($3::int[], $4::uuid[], $5::bigint[], $6::bigint[]))
            ORDER BY partition FOR UPDATE
            """,
            self.generation,
            self.topic,
            [line.partition for line in wanted],
            [line.topic_id for line in wanted],
            [line.epoch for line in wanted],
            [line.next_offset for line in wanted],
        )
        if len(locked) < len(wanted):
            raise Fenced("the ledger has moved")

    async def move(self, connection: Connection, moves: Iterable[Move]) -> None:
        """Move the lines, with their counts; conditional once more, and in the transaction that locked them.

        Raises:
            Fenced: a line was not locked, which is a bug of the caller that must not be written either.
        """
        settled = sorted(moves, key=lambda move: move.line.partition)
        status = await connection.execute(
            f"""
            UPDATE ingest.partition_offsets AS line
            SET next_offset = move.next_offset, last_record_hash = move.last_record_hash,
                last_record_time = move.last_record_time, leader_epoch = move.leader_epoch,
                {", ".join(f"{fate} = line.{fate} + move.{fate}" for fate in FATES)}
            FROM unnest($3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::timestamptz[], $9::int[],
                {_COUNT_ARRAYS})
                AS move (partition, epoch, from_offset, next_offset, last_record_hash, last_record_time, leader_epoch,
                    {", ".join(FATES)})
            WHERE line.generation = $1 AND line.topic = $2 AND line.partition = move.partition
                AND line.epoch = move.epoch AND line.next_offset = move.from_offset
            """,  # noqa: S608  FATES are our own column names
            self.generation,
            self.topic,
            [move.line.partition for move in settled],
            [move.line.epoch for move in settled],
            [move.line.next_offset for move in settled],
            [move.next_offset for move in settled],
            [move.last_record_hash for move in settled],
            [move.last_record_time for move in settled],
            [move.line.leader_epoch for move in settled],
            *([move.counts[fate] for move in settled] for fate in FATES),
        )
        if int(status.rpartition(" ")[2]) < len(settled):
            raise Fenced("the ledger has moved")

    async def identify(self, connection: Connection, topic_id: UUID) -> None:
        """Give lines and dead letters that were written while the broker had no ids the topic's real one."""
        async with connection.transaction():
            for table in ("partition_offsets", "dead_letters"):
                await connection.execute(
                    f"UPDATE ingest.{table} SET topic_id = $1 WHERE topic = $2 AND topic_id = $3",  # noqa: S608  our own names
                    topic_id,
                    self.topic,
                    UUID(int=0),
                )

    async def pass_gap(self, connection: Connection, line: Line, first_offset: int, reason: GapReason) -> None:
        """Move a line over offsets that the topic no longer has, and write down which.

        Raises:
            Fenced: the line has moved meanwhile.
        """
        move = Move(line, first_offset)
        move.settle()
        async with connection.transaction():
            await self.lock(connection, [line])
            await self.move(connection, [move])
            await self._note_gap(connection, line.partition, (line.next_offset, first_offset), reason)

    async def _note_gap(
        self, connection: Connection, partition: int, offsets: tuple[int, int], reason: GapReason
    ) -> None:
        """`offsets`: the first that is gone, and the first that is there again."""
        await connection.execute(
            """
            INSERT INTO ingest.gaps (topic, partition, from_offset, to_offset, reason)
            VALUES ($1, $2, $3, $4, $5)
            """,
            self.topic,
            partition,
            *offsets,
            reason,
        )

    async def turn_back(self, connection: Connection, line: Line, restart_at: int) -> None:
        """Begin a line anew at `restart_at`, because the topic may have lost its records from there on.

        The old line goes to ledger_history. Dead letters from there on may be of records that are gone: they get a
        topic id of their own, so that the records now at these offsets can become dead letters too.

        Raises:
            Fenced: the line has moved meanwhile.
        """
        async with connection.transaction():
            await self.lock(connection, [line])
            await self.end(connection, [line.partition], "truncated")
            await self.restart(connection, line.topic_id, {line.partition: restart_at})
            if self.generation == LIVE:  # a rebuild reads the same topic, and one gap is one row
                await self._note_gap(connection, line.partition, (restart_at, line.next_offset), "truncated")
                await connection.execute(
                    """
                    UPDATE ingest.dead_letters SET topic_id = $1
                    WHERE topic_id = $2 AND topic = $3 AND partition = $4 AND "offset" >= $5
                    """,
                    uuid4(),
                    line.topic_id,
                    self.topic,
                    line.partition,
                    restart_at,
                )

    async def end(self, connection: Connection, partitions: Iterable[int], reason: str) -> None:
        """Copy the lines to ledger_history as they are."""
        columns = ", ".join(LINE_COLUMNS)
        await connection.execute(
            f"""
            INSERT INTO ingest.ledger_history ({columns}, reason)
            SELECT {columns}, $4 FROM ingest.partition_offsets
            WHERE generation = $1 AND topic = $2 AND partition = ANY($3::int[]) ORDER BY partition
            """,  # noqa: S608  our own column names
            self.generation,
            self.topic,
            list(partitions),
            reason,
        )

    async def restart(self, connection: Connection, topic_id: UUID, offsets: Mapping[int, int]) -> None:
        """Begin the partitions' lines anew at these offsets: counts 0, epoch + 1. Makes lines that are missing."""
        await connection.execute(
            f"""
            INSERT INTO ingest.partition_offsets AS line
                (generation, topic, partition, topic_id, epoch, first_offset, next_offset)
            SELECT $1, $2, partition, $3, 0, target, target
            FROM unnest($4::int[], $5::bigint[]) AS new (partition, target) ORDER BY partition
            ON CONFLICT (generation, topic, partition) DO UPDATE SET
                topic_id = EXCLUDED.topic_id, epoch = line.epoch + 1,
                first_offset = EXCLUDED.first_offset, next_offset = EXCLUDED.next_offset,
                last_record_hash = NULL, last_record_time = NULL, leader_epoch = NULL,
                {", ".join(f"{fate} = 0" for fate in FATES)}
            """,  # noqa: S608  our own column names
            self.generation,
            self.topic,
            topic_id,
            list(offsets.keys()),
            list(offsets.values()),
        )


_COUNT_ARRAYS = ", ".join(f"${10 + position}::bigint[]" for position in range(len(FATES)))
