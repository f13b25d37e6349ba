"""A backlog -> batches: what the loop does while records are there without waiting."""

import asyncio
import sys
from typing import cast

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from consumer import metrics
from consumer.pipeline.batch import engine_of
from consumer.pipeline.fetching import Fetching, Limits, Moved
from consumer.pipeline.records.parts import Engine
from consumer.pipeline.records.record_batches import Fetched
from consumer.pipeline.records.reference import SLICE_RECORDS, ReferenceEngine, memory_bytes
from consumer.store.ledger import Line
from consumer.topic_identity import NO_TOPIC_ID
from shared.errors import BrokerUnavailable
from support.record_batches import batch_of

PLACE = TopicPartition("telemetry.events", 0)
ENGINES: list[Engine] = [ReferenceEngine(), *([engine_of()] if engine_of().name == "native" else [])]


class Backlog:
    """As aiokafka's consumer when record batches are fetched already: getmany gives them and does not wait."""

    def __init__(self, first_offset: int, *, records: int = 50) -> None:
        self.offset = first_offset
        self._records = records  # of a record batch

    async def getmany(
        self, place: TopicPartition, *, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[Fetched]]:
        first, self.offset = self.offset, self.offset + self._records
        return {place: [Fetched(place, batch_of([None] * self._records, first_offset=first), first)]}


def fetching_of(backlog: Backlog, engine: Engine) -> Fetching:
    return Fetching(cast("AIOKafkaConsumer", backlog), engine, PLACE.topic, lambda: None)


def limits(rows: int) -> Limits:
    return Limits(rows, 1 << 30, 60.0)


LINES = {0: Line(0, NO_TOPIC_ID, 0, next_offset=100)}
by_engine = pytest.mark.parametrize("engine", ENGINES, ids=[engine.name for engine in ENGINES])


@by_engine
async def test_a_backlog_leaves_the_writer_its_turns(engine: Engine) -> None:
    """Reading a whole batch in one go starves COPY for as long: the two must overlap, not alternate."""
    slices = 10
    backlog = fetching_of(Backlog(100, records=SLICE_RECORDS), engine)
    fetching = asyncio.create_task(backlog.batch(LINES, limits(slices * SLICE_RECORDS)))
    turns = 0
    while not fetching.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await fetching).count == slices * SLICE_RECORDS
    assert turns >= slices


@by_engine
async def test_a_record_below_the_ledger_is_never_taken(engine: Engine) -> None:
    """A getmany under way survives a seek: what it brings was settled before, and would be counted twice."""
    with pytest.raises(Moved):
        await fetching_of(Backlog(99), engine).batch(LINES, limits(10))


@by_engine
async def test_a_batch_says_where_its_partition_goes_on_and_the_next_one_begins_there(engine: Engine) -> None:
    """One off, and a record is lost or comes twice; batches may end within a record batch."""
    fetching, lines, ends = fetching_of(Backlog(105, records=10), engine), LINES, []
    for rows in (7, 1, 1, 30):
        batch = await fetching.batch(lines, limits(rows))
        assert batch.count == rows
        lines = batch.lines_after()
        ends += batch.next_offsets().values()
    assert ends == [112, 113, 114, 144]


@by_engine
async def test_a_batch_ends_when_its_memory_is_used_up(engine: Engine) -> None:
    """Large records fill the memory long before they are many; what is counted is what they become."""
    backlog, value = Backlog(100), b"{" + b"x" * 100_000
    taken = 0

    async def large(place: TopicPartition, **_: int) -> dict[TopicPartition, list[Fetched]]:
        nonlocal taken
        taken += 1
        return {place: [Fetched(place, batch_of([value], first_offset=99 + taken), 100)]}

    backlog.getmany = large  # type: ignore[method-assign]
    batch = await fetching_of(backlog, engine).batch(LINES, Limits(10_000, 1_000_000, 60.0))
    assert batch.count <= 5  # a dead letter's value, and its record batch or its text beside it


@by_engine
async def test_a_damaged_record_batch_is_fetched_again(engine: Engine) -> None:
    """Taken for records it would be stored; taken for a bug it would end the process."""
    backlog = Backlog(100)
    whole = batch_of([b"{}"], first_offset=100)

    async def damaged(place: TopicPartition, **_: int) -> dict[TopicPartition, list[Fetched]]:
        return {place: [Fetched(place, whole[:-1] + bytes([whole[-1] ^ 1]), 100)]}

    backlog.getmany = damaged  # type: ignore[method-assign]
    with pytest.raises(BrokerUnavailable):
        await fetching_of(backlog, engine).batch(LINES, limits(10))


@by_engine
async def test_records_that_the_engine_left_to_the_reference_are_told(engine: Engine) -> None:
    """An operator sees in the metric why a consumer is slow. It had stood at 0 since it was made."""
    backlog = Backlog(100)

    async def odd(place: TopicPartition, **_: int) -> dict[TopicPartition, list[Fetched]]:
        return {place: [Fetched(place, batch_of([b"{}"] * 3, first_offset=100), 100)]}

    backlog.getmany = odd  # type: ignore[method-assign]
    counter = metrics.records_declined.labels("table")
    before = counter._value.get()
    assert (await fetching_of(backlog, engine).batch(LINES, limits(3))).count == 3
    assert counter._value.get() - before == (3 if engine.name == "native" else 0)


def tombstone(offset: int) -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord(PLACE.topic, 0, offset, 0, 0, b"", None, None, 0, -1, ())


def test_text_with_one_emoji_counts_for_what_it_becomes_in_memory() -> None:
    """64 MiB of raw bytes took 814 MiB: a Python string with one emoji has four bytes a character."""
    plain = ConsumerRecord(PLACE.topic, 0, 0, 0, 0, b"", b"a" * 1000, None, 0, 1000, ())
    emoji = ConsumerRecord(PLACE.topic, 0, 0, 0, 0, b"", ("a" * 996 + "\N{GRINNING FACE}").encode(), None, 0, 1000, ())
    assert memory_bytes(plain) == 2000
    assert emoji.value is not None
    assert memory_bytes(emoji) >= 0.98 * (1000 + sys.getsizeof(emoji.value.decode()))
    assert memory_bytes(tombstone(0)) == 0
