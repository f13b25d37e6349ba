"""A backlog -> batches: what the loop does while records are there without waiting."""

import asyncio
import sys
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from consumer.pipeline.batch import memory_bytes
from consumer.pipeline.loop import SLICE_RECORDS, Moved, Pipeline
from consumer.pipeline.writer import Writer
from consumer.store.dead_letters import Breaker
from consumer.store.ledger import Ledger, Line
from consumer.store.partitions import interval_of
from consumer.store.plain_rows import PlainRows
from shared.broker import RebalanceCount
from shared.probes import Health
from shared.topic_identity import NO_TOPIC_ID

TOPIC = "telemetry.events"


class Backlog:
    """As aiokafka's consumer when records are fetched already: getmany gives them and does not wait."""

    def __init__(self, first_offset: int) -> None:
        self.offset = first_offset

    async def getmany(
        self, place: TopicPartition, *, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[ConsumerRecord[bytes, bytes]]]:
        first, self.offset = self.offset, self.offset + max_records
        return {place: [tombstone(offset) for offset in range(first, self.offset)]}


def tombstone(offset: int) -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord(TOPIC, 0, offset, 0, 0, b"", None, None, 0, -1, ())


def pipeline_of(consumer: Backlog, *, batch_rows: int) -> Pipeline:
    rest: Any = None  # fetching needs none of it
    writer = Writer(
        database_url="",
        application_name="test",
        ledger=Ledger(TOPIC),
        breaker=Breaker(max_ratio=1, window=1),
        retention_days=0,
        interval=interval_of("month"),
        plain=PlainRows(),
    )
    return Pipeline(
        consumer=cast("AIOKafkaConsumer", consumer),
        rebalances=RebalanceCount(lambda: None),
        ledger=Ledger(TOPIC),
        writer=writer,
        suppressions=rest,
        peek=rest,
        health=Health(),
        batch_rows=batch_rows,
        linger_ms=60_000,
    )


LINES = {0: Line(0, NO_TOPIC_ID, 0, next_offset=100)}


async def test_a_backlog_leaves_the_writer_its_turns() -> None:
    """Decoding a whole batch in one go starves COPY for as long: the two must overlap, not alternate."""
    slices = 10
    pipeline = pipeline_of(Backlog(100), batch_rows=slices * SLICE_RECORDS)
    fetching = asyncio.create_task(pipeline._fetch(LINES))
    turns = 0
    while not fetching.done():
        await asyncio.sleep(0)
        turns += 1
    assert len((await fetching).records) == slices * SLICE_RECORDS
    assert turns >= slices


async def test_a_record_below_the_ledger_is_never_taken() -> None:
    """A getmany under way survives a seek: what it brings was settled before, and would be counted twice."""
    with pytest.raises(Moved):
        await pipeline_of(Backlog(99), batch_rows=10)._fetch(LINES)


async def test_a_batch_says_where_its_partition_goes_on() -> None:
    """One off, and a record is lost or comes twice."""
    batch = await pipeline_of(Backlog(105), batch_rows=7)._fetch(LINES)
    assert batch.next_offsets() == {0: 112}


def test_text_with_one_emoji_counts_for_what_it_becomes_in_memory() -> None:
    """64 MiB of raw bytes took 814 MiB: a Python string with one emoji has four bytes a character."""
    plain = ConsumerRecord(TOPIC, 0, 0, 0, 0, b"", b"a" * 1000, None, 0, 1000, ())
    emoji = ConsumerRecord(TOPIC, 0, 0, 0, 0, b"", ("a" * 996 + "\N{GRINNING FACE}").encode(), None, 0, 1000, ())
    assert memory_bytes(plain) == 2000
    assert emoji.value is not None
    assert memory_bytes(emoji) >= 0.98 * (1000 + sys.getsizeof(emoji.value.decode()))
    assert memory_bytes(tombstone(0)) == 0
