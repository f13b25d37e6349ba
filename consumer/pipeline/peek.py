"""One record at an offset, read with a client of its own, so that no position of the loop is touched."""

import time
from collections.abc import Awaitable, Callable, Mapping

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from shared.broker import KAFKA_ERRORS, new_consumer
from shared.errors import BrokerUnavailable
from shared.lifecycle import stop_within
from shared.settings import KafkaSettings

PEEK_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 5.0

Peek = Callable[[Mapping[TopicPartition, int]], Awaitable[dict[TopicPartition, ConsumerRecord | None]]]


def peek_with(settings: KafkaSettings) -> Peek:
    """A way to read, of each partition, the first record at or after an offset.

    None only when the broker said that there is none: the offset is before the log's first one, or nothing stands
    from there to the end. Raises BrokerUnavailable when the broker gave no answer.
    """

    async def peek(offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, ConsumerRecord | None]:
        if not offsets:
            return {}
        consumer = new_consumer(settings, group=None)
        try:
            await consumer.start()
            return await _peek(consumer, offsets)
        except KAFKA_ERRORS as error:
            raise BrokerUnavailable(f"record: {type(error).__name__}") from error
        finally:
            await stop_within(consumer.stop(), STOP_TIMEOUT_S)

    return peek


async def _peek(
    consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]
) -> dict[TopicPartition, ConsumerRecord | None]:
    consumer.assign(list(offsets))
    first = await consumer.beginning_offsets(list(offsets))
    end = await consumer.end_offsets(list(offsets))
    found: dict[TopicPartition, ConsumerRecord | None] = {}
    for place, offset in offsets.items():
        if first[place] <= offset < end[place]:
            consumer.seek(place, offset)
        else:
            found[place] = None
    deadline = time.monotonic() + PEEK_TIMEOUT_S
    while waiting := [place for place in offsets if place not in found]:
        if time.monotonic() > deadline:
            raise BrokerUnavailable("record: no answer")
        for place, records in (await consumer.getmany(*waiting, timeout_ms=500, max_records=1)).items():
            found[place] = records[0]
        for place in waiting:
            if place not in found and await consumer.position(place) >= end[place]:
                found[place] = None
    return found
