"""What aiokafka has fetched -> batches: full, or as many records as came within the linger."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError, NoOffsetForPartitionError, OffsetOutOfRangeError

from consumer import metrics
from consumer.pipeline.batch import Batch
from consumer.pipeline.records.parts import Engine, Part
from consumer.pipeline.records.record_batches import FetchedRecords
from consumer.store.ledger import Line
from shared.broker import KAFKA_ERRORS
from shared.errors import BrokerUnavailable, Transient

IDLE_MS = 500  # how long a fetch waits for the first record, and so how late a stop is seen
FETCH_BATCHES = 32  # record batches taken from aiokafka in one go: its own cost of a call is high
# Memory of a batch's records, over all writers of the process. Three batches exist at once: one is written, one waits,
# one is read.
BATCH_BYTES_MAX = 128 * 1024 * 1024


class Moved(Transient):
    """Our partitions, or the ledger under us, have changed: begin again at the ledger."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a batch."""

    rows: int
    bytes: int
    linger_s: float


class Fetching:
    """Fetches batches between two seeks. `check` raises Moved when the consumer must seek again."""

    def __init__(self, consumer: AIOKafkaConsumer, engine: Engine, topic: str, check: Callable[[], None]) -> None:
        self._consumer = consumer
        self._engine = engine
        self._topic = topic
        self._check = check
        self._fetched: deque[FetchedRecords] = deque()
        self._reading: Iterator[Part] = iter(())
        self._rest: Part | None = None  # of a part that was too long for its batch

    async def batch(self, lines: Mapping[int, Line], limits: Limits) -> Batch:
        """The next records from `lines` on; none when idle.

        Raises:
            Moved: begin again at the ledger.
            BrokerUnavailable: Kafka gave no answer, or a damaged one.
        """
        places = [TopicPartition(self._topic, partition) for partition in lines]
        expected = {line.partition: line.next_offset for line in lines.values()}
        parts: list[Part] = []
        count = size = 0
        deadline: float | None = None
        while count < limits.rows and size < limits.bytes:
            wait_s = IDLE_MS / 1000 if deadline is None else deadline - time.monotonic()
            found = await self._next(places, wait_s) if wait_s > 0 else None
            if found is None:
                break
            part: Part = found
            deadline = deadline or time.monotonic() + limits.linger_s
            if part.first_offset < expected[part.partition]:
                raise Moved("a record below the ledger")
            if len(part) > limits.rows - count:
                part, rest = part.split(limits.rows - count)
                self._rest = rest
            expected[part.partition] = part.next_offset
            parts.append(part)
            count += len(part)
            size += part.memory_bytes
        metrics.declined(self._engine.declined)
        return Batch(parts, lines)

    async def _next(self, places: list[TopicPartition], wait_s: float) -> Part | None:
        """The next part; None when none came in time."""
        if self._rest is not None:
            rest, self._rest = self._rest, None
            return rest
        while True:
            if (part := self._read()) is not None:
                await asyncio.sleep(0)  # nothing here waits while records are there, and COPY would starve meanwhile
                return part
            if not self._fetched:
                self._fetched.extend(await self._getmany(places, timeout_ms=max(1, int(wait_s * 1000))))
                self._check()
            if not self._fetched:
                return None
            self._reading = self._engine.read(self._fetched.popleft())

    def _read(self) -> Part | None:
        try:
            with metrics.stage_seconds.labels("decode").time():
                return next(self._reading, None)
        except KAFKA_ERRORS as error:
            raise BrokerUnavailable(f"fetch: {type(error).__name__}") from error

    async def _getmany(self, places: list[TopicPartition], *, timeout_ms: int) -> list[FetchedRecords]:
        """Offsets rise within a partition."""
        try:
            with metrics.stage_seconds.labels("fetch").time():
                found = await self._consumer.getmany(*places, timeout_ms=timeout_ms, max_records=FETCH_BATCHES)
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            raise Moved("no such offset") from error  # the ledger's loading finds out why
        except (IllegalStateError, *KAFKA_ERRORS) as error:
            raise BrokerUnavailable(f"fetch: {type(error).__name__}") from error
        return [each for fetched in found.values() for each in fetched]
