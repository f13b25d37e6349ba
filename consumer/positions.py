"""Where to read from: the ledger's lines, held against the topic as it is now."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from asyncpg import Connection

from consumer import metrics
from consumer.ledger import Ledger, Line
from shared.broker import KAFKA_ERRORS
from shared.errors import BrokerUnavailable, WrongTopic
from shared.topic_identity import NO_TOPIC_ID, topic_id

log = structlog.get_logger("consumer.positions")

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


async def load(
    consumer: AIOKafkaConsumer, ledger: Ledger, connection: Connection, partitions: Iterable[int]
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
    if missing:
        await ledger.begin(connection, identity, await _offsets(consumer.beginning_offsets, ledger.topic, missing))
        lines |= await ledger.load(connection, missing)
    for line in lines.values():
        _check_identity(line, identity, ledger.topic)
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


def _check_identity(line: Line, identity: UUID, topic: str) -> None:
    if NO_TOPIC_ID not in (line.topic_id, identity) and line.topic_id != identity:
        raise WrongTopic(
            f"topic {topic} was recreated: the ledger knows {line.topic_id}, the broker has {identity}. If that was "
            "meant, adopt it with `consumer rewind --to-start --accept-new-topic`"
        )


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
