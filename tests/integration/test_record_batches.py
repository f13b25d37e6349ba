"""Record batches of ours and of others: Java reads what the receiver publishes; the consumer reads every producer's."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from consumer.pipeline.batch import engine_of
from consumer.pipeline.records.parts import Engine
from consumer.pipeline.records.record_batches import Fetched, take_record_batches
from consumer.pipeline.records.reference import ReferenceEngine
from shared.broker import new_consumer
from shared.engine import is_native_built
from shared.settings import KafkaSettings
from support.otlp import features, request
from support.receiver import AS_SHIPPED, Receiver, export, records_of
from support.records import made
from support.stack import Stack

GZIP_BITS = 1
SPANS = 500
Told = tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]


async def make_topic(stack: Stack, topic: str, **config: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap_servers)
    await admin.start()
    try:
        answer = await admin.create_topics([NewTopic(topic, 4, 1, topic_configs=config)])
        assert answer.topic_errors[0][1] == 0, answer
    finally:
        await admin.close()


@asynccontextmanager
async def started(consumer: AIOKafkaConsumer, place: TopicPartition) -> AsyncIterator[AIOKafkaConsumer]:
    """Before the first record of the partition, and handing out record batches."""
    await consumer.start()
    try:
        take_record_batches(consumer)
        consumer.assign([place])
        consumer.seek(place, 0)
        yield consumer
    finally:
        await consumer.stop()


async def batches_of(stack: Stack, place: TopicPartition) -> list[Fetched | list[ConsumerRecord]]:
    """All that `getmany` hands out of the partition, up to its end."""
    settings = KafkaSettings(kafka_bootstrap_servers=stack.kafka.bootstrap_servers)
    async with started(new_consumer(settings, group=None), place) as consumer:
        end = (await consumer.end_offsets([place]))[place]
        found: list[Fetched | list[ConsumerRecord]] = []
        while await consumer.position(place) < end:
            for fetched in (await consumer.getmany(place, timeout_ms=500, max_records=2)).values():
                found += fetched
        assert await consumer.position(place) == end
        return found


@pytest.mark.parametrize("engine", ["python", *(["native"] if is_native_built() else [])])
async def test_java_reads_the_batches_that_the_receiver_publishes(stack: Stack, engine: str) -> None:
    """Batches that only our own client reads would lock everybody's data in.

    A topic of another compression makes the broker read every record, by the class that Java's consumer reads with, and
    write it anew.
    """
    spans = request(features(SPANS))
    topics = {stack.topic: "producer", f"{stack.topic}-by-java": "gzip"}
    found: list[list[Told]] = []
    for topic, compression in topics.items():
        await make_topic(stack, topic, **{"compression.type": compression})
        settings = {**AS_SHIPPED, "ENGINE": engine, "KAFKA_TOPIC": topic}
        receiver = Receiver(stack.kafka.bootstrap_servers, stack.folder, **settings).start()
        try:
            await receiver.ready()
            async with receiver.channel() as channel:
                assert (await export(channel, spans)).code == "OK"
        finally:
            receiver.kill()
        records = await records_of(stack.kafka, topic)
        found.append(sorted(((record.key, record.value, record.headers) for record in records), key=repr))
    ours, by_java = found
    assert len(ours) == SPANS
    assert by_java == ours
    rewritten = [
        each
        for partition in range(4)
        for each in await batches_of(stack, TopicPartition(f"{stack.topic}-by-java", partition))
    ]
    assert rewritten
    assert all(isinstance(each, Fetched) and each.data[22] & 7 == GZIP_BITS for each in rewritten)


async def foreign(stack: Stack, topic: str) -> None:
    """Every compression; transactions, committed and aborted, with their markers. All to partition 0."""
    options = {"bootstrap_servers": stack.kafka.bootstrap_servers, "acks": "all"}
    for number, codec in enumerate([None, "gzip", "snappy", "lz4", "zstd"]):
        producer = AIOKafkaProducer(**options, compression_type=codec)
        await producer.start()
        try:
            for value in values_of(number):
                await producer.send(topic, value, key=b"key", partition=0, headers=[("event_type", b"x")])
        finally:
            await producer.stop()
    producer = AIOKafkaProducer(**options, transactional_id=f"{topic}-writer", compression_type="zstd")
    await producer.start()
    try:
        for number, is_kept in ((5, True), (6, False), (7, True)):
            await producer.begin_transaction()
            for value in values_of(number):
                await producer.send(topic, value, key=b"key", partition=0)
            await (producer.commit_transaction() if is_kept else producer.abort_transaction())
    finally:
        await producer.stop()


def values_of(number: int) -> list[bytes | None]:
    dice = random.Random(number)
    return [*(made(dice).value for _ in range(20)), None, b"{}"]


@pytest.mark.parametrize("time_type", ["CreateTime", "LogAppendTime"])
async def test_batches_of_any_producer_are_the_records_that_aiokafka_reads(stack: Stack, time_type: str) -> None:
    """Records passed over are lost in silence; those of an aborted transaction were never published."""
    await make_topic(stack, stack.topic, **{"message.timestamp.type": time_type})
    await foreign(stack, stack.topic)
    place = TopicPartition(stack.topic, 0)
    settings = KafkaSettings(kafka_bootstrap_servers=stack.kafka.bootstrap_servers)
    plain = new_consumer(settings, group=None)
    await plain.start()
    expected: list[ConsumerRecord] = []
    try:
        plain.assign([place])
        plain.seek(place, 0)
        while len(expected) < 7 * 22:
            expected += (await plain.getmany(place, timeout_ms=500)).get(place, [])
    finally:
        await plain.stop()
    fetched = await batches_of(stack, place)
    engines: list[Engine] = [ReferenceEngine(), engine_of()]
    for engine in engines:
        parts = [part for each in fetched for part in engine.read(each)]
        assert [part.record(number) for part in parts for number in range(len(part))] == expected


async def test_records_of_any_producer_are_stored(stack: Stack) -> None:
    """The same through the running consumer: each record one fate, each marker and aborted record skipped."""
    await make_topic(stack, stack.topic)
    await foreign(stack, stack.topic)
    stack.consumer()

    async def count(fate: str) -> int:
        return sum(line[fate] for line in await stack.ledger())

    await stack.settled(7 * 22)
    assert (await count("stored"), await count("dead_lettered")) == (7 * 20, 7)
    assert await stack.row_count() == 7 * 20
