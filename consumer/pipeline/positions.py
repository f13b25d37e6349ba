"""Where to read from: the ledger's lines, held against the topic as it is now."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from uuid import UUID

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from asyncpg import Connection

from consumer import metrics
from consumer.pipeline.batch import record_hash
from consumer.store.ledger import Ledger, Line
from shared.broker import KAFKA_ERRORS, new_consumer
from shared.errors import BrokerUnavailable, WrongTopic
from shared.settings import KafkaSettings
from shared.topic_identity import NO_TOPIC_ID, topic_id

log = structlog.get_logger("consumer.pipeline.positions")

ASKED_TIMES = 3


async def identity_of(consumer: AIOKafkaConsumer, topic: str) -> UUID:
    """The topic's id, NO_TOPIC_ID where the broker gives none.

    Raises:
        BrokerUnavailable: nobody answered.
        WrongTopic: there is no such topic.
    """
    try:
        identity = await topic_id(consumer._client, topic)  # noqa: SLF001  aiokafka has no public way to send a request
    except KAFKA_ERRORS as error:
        raise BrokerUnavailable(f"topic id: {type(error).__name__}") from error
    if identity is None:
        raise WrongTopic(f"topic {topic} does not exist")
    return identity


Peek = Callable[[TopicPartition, int], Awaitable[ConsumerRecord | None]]


def peek_with(settings: KafkaSettings) -> Peek:
    """A way to read the one record at an offset; it gives None when that is gone. Raises BrokerUnavailable."""

    async def peek(place: TopicPartition, offset: int) -> ConsumerRecord | None:
        consumer = new_consumer(settings, group=None)
        try:
            await consumer.start()
            consumer.assign([place])
            if (await consumer.beginning_offsets([place]))[place] > offset:
                return None
            consumer.seek(place, offset)
            found = await consumer.getmany(place, timeout_ms=3_000, max_records=1)
            return next((record for record in found.get(place, []) if record.offset == offset), None)
        except KAFKA_ERRORS as error:
            raise BrokerUnavailable(f"record: {type(error).__name__}") from error
        finally:
            await consumer.stop()

    return peek


async def load(
    consumer: AIOKafkaConsumer, ledger: Ledger, connection: Connection, partitions: Iterable[int], peek: Peek
) -> dict[int, Line]:
    """The lines of the partitions, checked; begun at the topic's first offset where there is none.

    The ledger is read first and the topic's bounds after: the other way round, an offset that another
    consumer has just moved looks as if it were past the end.

    Raises:
        WrongTopic: the topic is not the one that the ledger knows. A person must decide.
        BrokerUnavailable: Kafka did not answer.
        Fenced: the ledger moved meanwhile.
    """
    wanted = sorted(partitions)
    identity = await identity_of(consumer, ledger.topic)
    lines = await ledger.load(connection, wanted)
    missing = [partition for partition in wanted if partition not in lines]
    if missing and not ledger.may_begin:
        raise WrongTopic(f"{ledger.generation} has ended: it has no line for partition {missing[0]}")
    if missing:
        await ledger.begin(connection, identity, await _offsets(consumer.beginning_offsets, ledger.topic, missing))
        lines |= await ledger.load(connection, missing)
    for line in lines.values():
        await check_identity(line, identity, ledger.topic, peek)
    if identity != NO_TOPIC_ID and any(line.topic_id == NO_TOPIC_ID for line in lines.values()):
        await ledger.identify(connection, identity)
        lines = await ledger.load(connection, wanted)
    first = await _offsets(consumer.beginning_offsets, ledger.topic, wanted)
    for line in list(lines.values()):
        if line.next_offset < first[line.partition]:
            lost = first[line.partition] - line.next_offset
            await ledger.pass_gap(connection, line, first[line.partition], "retention")
            metrics.offsets_lost.inc(lost)
            log.error("offsets_lost", partition=line.partition, from_offset=line.next_offset, records=lost)
            lines |= await ledger.load(connection, [line.partition])
    await _check_ends(consumer, ledger, lines)
    return lines


async def check_identity(line: Line, identity: UUID, topic: str, peek: Peek) -> None:
    """By the broker's id of the topic; where one side has none, by the last record that was settled.

    Raises:
        WrongTopic: it is another topic.
        BrokerUnavailable
    """
    if line.topic_id == identity != NO_TOPIC_ID:
        return
    if NO_TOPIC_ID not in (line.topic_id, identity):
        raise WrongTopic(
            f"topic {topic} was recreated: the ledger knows {line.topic_id}, the broker {identity}. {_ADOPT}"
        )
    if line.last_record_hash is None:
        return
    last = await peek(TopicPartition(topic, line.partition), line.next_offset - 1)
    if last is not None and record_hash(last) != line.last_record_hash:
        raise WrongTopic(f"topic {topic} was recreated: another record stands before the ledger's position. {_ADOPT}")


_ADOPT = "If that was meant, adopt it with `consumer rewind --to-start --accept-new-topic`"


async def _check_ends(consumer: AIOKafkaConsumer, ledger: Ledger, lines: dict[int, Line]) -> None:
    """A line past the end is another topic or cluster. Asked more than once: a new leader may be a little behind."""
    for _ in range(ASKED_TIMES):
        end = await _offsets(consumer.end_offsets, ledger.topic, lines)
        beyond = [line for line in lines.values() if line.next_offset > end[line.partition]]
        if not beyond:
            return
    raise WrongTopic(
        f"topic {ledger.topic}, partition {beyond[0].partition} ends at {end[beyond[0].partition]}, before the "
        f"ledger's {beyond[0].next_offset}: another cluster, or a topic made anew. `consumer doctor` explains"
    )


async def _offsets(ask: Any, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    try:
        found = await ask([TopicPartition(topic, partition) for partition in partitions])
    except KAFKA_ERRORS as error:
        raise BrokerUnavailable(f"offsets: {type(error).__name__}") from error
    return {place.partition: offset for place, offset in found.items()}
