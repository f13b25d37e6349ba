"""Where to read from: the ledger's lines, held against the topic as it is now."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from uuid import UUID

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from asyncpg import Connection

from consumer import metrics, topic_identity
from consumer.pipeline import truncation
from consumer.pipeline.peek import Peek
from consumer.store.ledger import Ledger, Line
from consumer.topic_identity import NO_TOPIC_ID, topic_id
from shared.broker import KAFKA_ERRORS
from shared.errors import BrokerUnavailable, WrongTopic

log = structlog.get_logger("consumer.pipeline.positions")


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


async def leader_epochs(consumer: AIOKafkaConsumer, topic: str) -> dict[int, int]:
    """The leader epoch of each partition; empty where the brokers tell none.

    Raises:
        BrokerUnavailable: a leader did not answer.
    """
    try:
        return await topic_identity.leader_epochs(consumer._client, topic)  # noqa: SLF001
    except KAFKA_ERRORS as error:
        raise BrokerUnavailable(f"leader epochs: {type(error).__name__}") from error


async def load(
    consumer: AIOKafkaConsumer, ledger: Ledger, connection: Connection, partitions: Iterable[int], peek: Peek
) -> dict[int, Line]:
    """The lines of the partitions, checked; begun at the topic's first offset where there is none.

    Each line carries the leader epoch as it was before the check. Records that are fetched while that epoch still
    holds follow those that the line has settled.

    The ledger is read first and the topic's bounds after: the other way round, an offset that another
    consumer has just moved looks as if it were past the end.

    Raises:
        WrongTopic: the topic is not the one that the ledger knows. A person must decide.
        BrokerUnavailable: Kafka did not answer.
        Fenced: the ledger moved meanwhile.
    """
    wanted = sorted(partitions)
    identity = await identity_of(consumer, ledger.topic)
    epochs = await leader_epochs(consumer, ledger.topic)
    lines = await ledger.load(connection, wanted)
    missing = [partition for partition in wanted if partition not in lines]
    if missing and not ledger.may_begin:
        raise WrongTopic(f"{ledger.generation} has ended: it has no line for partition {missing[0]}")
    if missing:
        await ledger.begin(connection, identity, await _offsets(consumer.beginning_offsets, ledger.topic, missing))
        lines |= await ledger.load(connection, missing)
    check_identity(lines.values(), identity, ledger.topic)
    changed = await truncation.changed_partitions(lines.values(), ledger.topic, peek)
    if changed and is_unidentified(lines.values(), identity):
        raise WrongTopic(
            f"topic {ledger.topic} was recreated: another record stands before the ledger's position. {ADOPT}"
        )
    if identity != NO_TOPIC_ID and any(line.topic_id == NO_TOPIC_ID for line in lines.values()):
        await ledger.identify(connection, identity)
        lines = await ledger.load(connection, wanted)
    first = await _offsets(consumer.beginning_offsets, ledger.topic, wanted)
    for line in list(lines.values()):
        if line.next_offset < first[line.partition]:
            await _pass_gap(ledger, connection, line, first[line.partition])
            lines |= await ledger.load(connection, [line.partition])
    cuts = await truncation.truncations(consumer, ledger.topic, lines.values(), changed=changed, epochs=epochs)
    for cut in cuts:
        await _turn_back(ledger, connection, cut, is_identified=identity != NO_TOPIC_ID)
        lines |= await ledger.load(connection, [cut.line.partition])
    return {partition: replace(line, leader_epoch=epochs.get(partition)) for partition, line in lines.items()}


def check_identity(lines: Iterable[Line], identity: UUID, topic: str) -> None:
    """By the broker's id of the topic, as far as both sides have one.

    Raises:
        WrongTopic: it is another topic.
    """
    for line in lines:
        if line.topic_id != identity and NO_TOPIC_ID not in (line.topic_id, identity):
            raise WrongTopic(
                f"topic {topic} was recreated: the ledger knows {line.topic_id}, the broker {identity}. {ADOPT}"
            )


def is_unidentified(lines: Iterable[Line], identity: UUID) -> bool:
    """Whether nothing but the last settled records tells that the topic is the ledger's."""
    return identity == NO_TOPIC_ID or any(line.topic_id == NO_TOPIC_ID for line in lines)


ADOPT = "If that was meant, adopt it with `consumer rewind --to-start --accept-new-topic`"


async def _pass_gap(ledger: Ledger, connection: Connection, line: Line, first_offset: int) -> None:
    lost = first_offset - line.next_offset
    await ledger.pass_gap(connection, line, first_offset, "retention")
    metrics.offsets_lost.inc(lost)
    log.error("offsets_lost", partition=line.partition, from_offset=line.next_offset, records=lost)


async def _turn_back(
    ledger: Ledger, connection: Connection, cut: truncation.Truncation, *, is_identified: bool
) -> None:
    line = cut.line
    if not is_identified:  # then a shorter log may be another topic, or another cluster, and a person decides
        raise WrongTopic(
            f"topic {ledger.topic}, partition {line.partition} ends at {cut.end_offset}, before the "
            f"ledger's {line.next_offset}: another cluster, or a recreated topic. Run `consumer doctor`"
        )
    await ledger.turn_back(connection, line, cut.restart_at)
    metrics.truncations.inc()
    log.error(
        "topic_truncated", partition=line.partition, at=line.next_offset, restart_at=cut.restart_at, end=cut.end_offset
    )


async def _offsets(ask: Any, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    try:
        found = await ask([TopicPartition(topic, partition) for partition in partitions])
    except KAFKA_ERRORS as error:
        raise BrokerUnavailable(f"offsets: {type(error).__name__}") from error
    return {place.partition: offset for place, offset in found.items()}
