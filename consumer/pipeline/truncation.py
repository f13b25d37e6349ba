"""A log that lost its tail: where it differs from what the ledger has settled, and where to read again.

After a power cut with one replica, or an unclean leader election, a partition ends before the ledger's position,
or new records have taken the place of settled ones. Records from the divergence on must be read: a replay of those
that are rows already doubles nothing.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer.pipeline.batch import record_hash
from consumer.pipeline.peek import Peek
from consumer.store.dead_letters import time_of
from consumer.store.ledger import Line
from consumer.topic_identity import epoch_ends
from shared.broker import KAFKA_ERRORS
from shared.errors import BrokerUnavailable

ASKED_TIMES = 5
ASK_PAUSE_S = 0.5  # a new leader may give an end that is a little behind, until its followers have fetched
# Records after the divergence came later than the last settled one, but for the clocks of several receivers and the
# time that a record is on its way.
CLOCK_MARGIN = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Truncation:
    """A log that differs from what `line` has settled, perhaps from `restart_at` on. It ends at `end_offset`."""

    line: Line
    restart_at: int
    end_offset: int


async def changed_partitions(lines: Iterable[Line], topic: str, peek: Peek) -> set[int]:
    """Partitions in which another record stands where the last settled one was.

    Raises:
        BrokerUnavailable
    """
    known = {TopicPartition(topic, line.partition): line for line in lines if line.last_record_hash is not None}
    found = await peek({place: line.next_offset - 1 for place, line in known.items()})
    return {
        place.partition
        for place, record in found.items()
        if record is not None
        and record.offset == known[place].next_offset - 1
        and (
            record_hash(record) != known[place].last_record_hash
            or known[place].last_record_time not in (None, time_of(record.timestamp))
        )
    }


async def truncations(
    consumer: AIOKafkaConsumer,
    topic: str,
    lines: Iterable[Line],
    *,
    changed: Collection[int],
    epochs: Mapping[int, int],
) -> list[Truncation]:
    """The lines whose settled records the log no longer holds.

    `changed`: partitions whose last settled record is another. `epochs`: the leader epochs now.

    Raises:
        BrokerUnavailable
    """
    try:
        by_partition = {line.partition: line for line in lines}
        diverged, whole = await _by_epoch(consumer, topic, by_partition, epochs)
        return await _truncations(consumer, topic, by_partition, changed=changed, diverged=diverged, whole=whole)
    except KAFKA_ERRORS as error:
        raise BrokerUnavailable(f"offsets: {type(error).__name__}") from error


async def _by_epoch(
    consumer: AIOKafkaConsumer, topic: str, lines: dict[int, Line], epochs: Mapping[int, int]
) -> tuple[dict[int, int], set[int]]:
    """What the leader epochs tell: the offset at which a later epoch took over, for partitions in which that is
    before the line; and the partitions whose leader holds the log up to the line, whatever end it gives meanwhile.
    """
    known = {partition: line.leader_epoch for partition, line in lines.items() if line.leader_epoch is not None}
    found = await epoch_ends(consumer._client, topic, known) if known else {}  # noqa: SLF001
    short = {partition: end for partition, end in found.items() if end < lines[partition].next_offset}
    # A log that is short without a change of its leader may hold newer records under the same epoch.
    diverged = {partition: end for partition, end in short.items() if epochs.get(partition, -1) > known[partition]}
    return diverged, set(found) - set(short)


async def _truncations(
    consumer: AIOKafkaConsumer,
    topic: str,
    lines: dict[int, Line],
    *,
    changed: Collection[int],
    diverged: Mapping[int, int],
    whole: Collection[int],
) -> list[Truncation]:
    ends = await _ends(consumer, topic, lines, {*whole, *diverged})
    beyond = {partition for partition in set(lines) - set(whole) if lines[partition].next_offset > ends[partition]}
    affected = sorted({*diverged, *beyond, *changed})
    if not affected:
        return []
    places = [TopicPartition(topic, partition) for partition in affected]
    first = await consumer.beginning_offsets(places)
    found = []
    for place in places:
        line, end = lines[place.partition], ends[place.partition]
        exact = diverged.get(place.partition)
        restart_at = exact if exact is not None else await _offset_before(consumer, place, line, end)
        restart_at = max(restart_at, first[place])
        found.append(Truncation(line, restart_at, end))
    return found


async def _ends(
    consumer: AIOKafkaConsumer, topic: str, lines: dict[int, Line], certain: Collection[int]
) -> dict[int, int]:
    """The ends of the partitions; asked again for as long as one that is not certain ends before its line."""
    places = [TopicPartition(topic, partition) for partition in lines]
    ends: dict[int, int] = {}
    for attempt in range(ASKED_TIMES):
        if attempt:
            await asyncio.sleep(ASK_PAUSE_S)
        ends = {place.partition: end for place, end in (await consumer.end_offsets(places)).items()}
        if all(line.next_offset <= ends[partition] for partition, line in lines.items() if partition not in certain):
            break
    return ends


async def _offset_before(consumer: AIOKafkaConsumer, place: TopicPartition, line: Line, end: int) -> int:
    """An offset at or before the divergence, by the time of the last settled record; 0 when that is unknown."""
    if line.last_record_time is None:
        return 0
    since_ms = int((line.last_record_time - CLOCK_MARGIN).timestamp() * 1000)
    found = (await consumer.offsets_for_times({place: max(0, since_ms)}))[place]
    return end if found is None else min(found.offset, end)
