"""Dead letters: kept whole, exactly once; and the breaker, which stops a consumer that makes too many of them."""

import asyncio
import json
from base64 import b64encode
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from aiokafka import ConsumerRecord
from asyncpg import Connection

from consumer.store.ledger import Move
from consumer.store.schema import EPOCH
from shared.errors import DeadLetterReason

Place = tuple[int, int]  # partition, offset


@dataclass(frozen=True, slots=True)
class DeadLetter:
    record: ConsumerRecord
    reason: DeadLetterReason

    @property
    def place(self) -> Place:
        return self.record.partition, self.record.offset


async def unknown(connection: Connection, topic_id: UUID, letters: Sequence[DeadLetter]) -> dict[Place, DeadLetter]:
    """The dead letters that are not in the table yet, by place."""
    if not letters:
        return {}
    found = await connection.fetch(
        """
        SELECT partition, "offset" FROM ingest.dead_letters
        WHERE topic_id = $1 AND topic = $2
            AND (partition, "offset") IN (SELECT * FROM unnest($3::int[], $4::bigint[]))
        """,
        topic_id,
        letters[0].record.topic,
        [letter.record.partition for letter in letters],
        [letter.record.offset for letter in letters],
    )
    known = {(row["partition"], row["offset"]) for row in found}
    return {letter.place: letter for letter in letters if letter.place not in known}


async def insert(connection: Connection, topic_id: UUID, letters: Collection[DeadLetter]) -> None:
    """Write the dead letters. One that exists stays as it is, so a replay changes none."""
    if not letters:
        return
    await connection.executemany(
        """
        INSERT INTO ingest.dead_letters (topic_id, topic, partition, "offset", key, value, headers, record_time, reason)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING
        """,
        [
            (
                topic_id,
                letter.record.topic,
                letter.record.partition,
                letter.record.offset,
                letter.record.key,
                letter.record.value,
                _headers_json(letter.record.headers),
                time_of(letter.record.timestamp),
                letter.reason,
            )
            for letter in letters
        ],
    )


async def mark_redriven(connection: Connection, moves: Iterable[Move], topic: str, others: Collection[Place]) -> None:
    """Letters that this batch read again and that became rows: all but the `others`, which it made no row of."""
    moved = list(moves)
    await connection.execute(
        """
        UPDATE ingest.dead_letters AS letter SET redriven_at = now()
        FROM unnest($2::uuid[], $3::int[], $4::bigint[], $5::bigint[])
            AS moved (topic_id, partition, from_offset, to_offset)
        WHERE letter.topic_id = moved.topic_id AND letter.topic = $1 AND letter.partition = moved.partition
            AND letter."offset" >= moved.from_offset AND letter."offset" < moved.to_offset
            AND letter.redriven_at IS NULL
            AND (letter.partition, letter."offset") NOT IN (SELECT * FROM unnest($6::int[], $7::bigint[]))
        """,
        topic,
        [move.line.topic_id for move in moved],
        [move.line.partition for move in moved],
        [move.line.next_offset for move in moved],
        [move.next_offset for move in moved],
        [partition for partition, _ in others],
        [offset for _, offset in others],
    )


def time_of(timestamp_ms: int) -> datetime | None:
    """A record's time; None before 1970, as of a record without one, and past what a timestamp can hold."""
    try:
        return EPOCH + timedelta(milliseconds=timestamp_ms) if timestamp_ms >= 0 else None
    except OverflowError:
        return None


def _headers_json(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """Header names are the sender's, so NUL, which jsonb refuses, is replaced."""
    return json.dumps(
        [
            [name.replace("\0", "\N{REPLACEMENT CHARACTER}"), None if value is None else b64encode(value).decode()]
            for name, value in headers
        ]
    )


class Breaker:
    """Stops the consumer when too many records become dead letters: one bad deploy must not empty a topic into them.

    Only newly written dead letters count, so a replay over known ones does not open it. A restart closes
    it and forgets the window. Writers that share it take turns, from the judgement of dead letters to their
    commit: or each would pass as many as all of them may.
    """

    def __init__(self, *, max_ratio: float, window: int) -> None:
        self._dead_max = max_ratio * window
        self._is_off = max_ratio >= 1
        self._recent: deque[bool] = deque(maxlen=window)
        self._dead = 0
        self.turn = asyncio.Lock()
        self.is_open = False

    def judge(self, are_dead: Sequence[bool]) -> int | None:
        """The index of the record that would be one dead letter too many; None when all may pass.

        Changes nothing. Once open, nothing passes.
        """
        if self.is_open:
            return 0
        if self._is_off or self._dead + sum(are_dead) <= self._dead_max:
            return None
        recent, dead = self._recent.copy(), self._dead
        for index, is_dead in enumerate(are_dead):
            dead += is_dead - (recent[0] if len(recent) == recent.maxlen else False)
            if dead > self._dead_max:
                return index
            recent.append(is_dead)
        return None

    def settled(self, are_dead: Sequence[bool]) -> None:
        """The records are committed."""
        for is_dead in are_dead[-(self._recent.maxlen or 0) :]:
            self._recent.append(is_dead)
        self._dead = sum(self._recent)
