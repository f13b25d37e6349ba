"""Replay in place: move lines of the ledger back, and the records are read again. Rows are upserts: nothing doubles.

Running consumers notice within seconds and seek; none need run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from consumer.operations.operation import REBUILD_LOCK, Operation, Refused, WrongUse
from consumer.pipeline import positions
from consumer.pipeline.peek import peek_with
from consumer.pipeline.truncation import changed_partitions
from consumer.store.ledger import LIVE
from consumer.topic_identity import NO_TOPIC_ID
from shared.errors import WrongTopic


@dataclass(frozen=True, slots=True)
class Target:
    """Exactly one of the three, and one offset a partition."""

    to_start: bool = False
    to_time: datetime | None = None
    to_offsets: Sequence[tuple[int, int]] = ()  # partition, offset

    def __post_init__(self) -> None:
        if [self.to_start, self.to_time is not None, bool(self.to_offsets)].count(True) != 1:
            raise WrongUse("give one of --to-start, --to-time T and --to-offset P:O")
        if len(dict(self.to_offsets)) < len(self.to_offsets):
            raise WrongUse("give each partition one --to-offset")


@dataclass(frozen=True, slots=True)
class Rewound:
    partition: int
    from_offset: int | None  # None: the partition had no line yet
    to_offset: int
    records: int  # to be read again


async def rewind(operation: Operation, target: Target, *, accept_new_topic: bool, dry_run: bool) -> list[Rewound]:
    """Start new lines at the target; the old lines go to ledger_history. All of them or none.

    Raises:
        Refused: the topic was recreated, or an offset lies outside the topic or ahead of the line.
        WrongUse: no such partition.
        BrokerUnavailable, DatabaseUnavailable
    """
    if not dry_run and not await operation.database.fetchval("SELECT pg_try_advisory_lock_shared($1)", REBUILD_LOCK):
        raise Refused("a rebuild is running, and it follows the live lines: wait for its end, or abort it")
    identity = await positions.identity_of(operation.kafka, operation.topic)
    partitions = await operation.partitions()
    first = await operation.kafka.beginning_offsets(operation.places(partitions))
    end = await operation.kafka.end_offsets(operation.places(partitions))
    bounds = {place.partition: (first[place], end[place]) for place in first}
    wanted = await _offsets(operation, target, bounds)
    is_new_topic = await _is_recreated(operation, identity, partitions)
    done = []
    async with operation.database.transaction():
        lines = await _lock_all(operation)
        if is_new_topic and not accept_new_topic:
            raise Refused("the topic was recreated since; if that was meant, add --accept-new-topic")
        if is_new_topic and (missing := set(bounds) - set(wanted)):
            raise Refused(f"a new topic is adopted as a whole: partitions {sorted(missing)} have no target")
        gone = set(lines) - set(bounds) if is_new_topic else set()
        for partition, offset in wanted.items():
            at = lines[partition][1] if partition in lines else None
            if at is not None and offset > at and not is_new_topic:
                if target.to_offsets:
                    raise Refused(f"partition {partition} is at {at}: a rewind never skips ahead, to {offset}")
                continue  # it is behind already, and comes there by itself
            done.append(Rewound(partition, at, offset, bounds[partition][1] - offset))
        targets = {each.partition: each.to_offset for each in done}
        if not dry_run:
            if is_new_topic or identity != NO_TOPIC_ID:
                await _name_old_letters(operation, uuid4() if is_new_topic else identity)
            reason = "adopted a new topic" if is_new_topic else "rewind"
            await operation.ledger.end(operation.database, sorted({*targets, *gone}), reason)
            await operation.ledger.restart(operation.database, identity, targets)
            if gone:
                await operation.database.execute(
                    "DELETE FROM ingest.partition_offsets WHERE generation = $1 AND topic = $2 AND partition = ANY($3)",
                    LIVE,
                    operation.topic,
                    sorted(gone),
                )
    return done


async def _is_recreated(operation: Operation, identity: UUID, partitions: Sequence[int]) -> bool:
    """Whether any line is of another topic of this name, as far as the broker or the last record can tell."""
    lines = (await operation.ledger.load(operation.database, partitions)).values()
    try:
        positions.check_identity(lines, identity, operation.topic)
    except WrongTopic:
        return True
    if not positions.is_unidentified(lines, identity):
        return False
    return bool(await changed_partitions(lines, operation.topic, peek_with(operation.settings)))


async def _name_old_letters(operation: Operation, identity: UUID) -> None:
    """Letters from before the broker gave ids get the topic's own; those of a topic that is gone, one of theirs.

    Else a replay would write them again, or a new topic's letters be taken for them.
    """
    await operation.database.execute(
        "UPDATE ingest.dead_letters SET topic_id = $1 WHERE topic = $2 AND topic_id = $3",
        identity,
        operation.topic,
        NO_TOPIC_ID,
    )


async def _offsets(operation: Operation, target: Target, bounds: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """The target of each partition that has one."""
    if target.to_start:
        return {partition: first for partition, (first, _) in bounds.items()}
    if target.to_time is not None:
        at_ms = max(0, int(target.to_time.timestamp() * 1000))  # Kafka knows no time before 1970
        found = await operation.kafka.offsets_for_times(dict.fromkeys(operation.places(bounds), at_ms))
        return {place.partition: entry.offset for place, entry in found.items() if entry is not None}
    for partition, offset in target.to_offsets:
        if partition not in bounds:
            raise WrongUse(f"the topic has no partition {partition}")
        first, end = bounds[partition]
        if not first <= offset <= end:
            raise Refused(f"partition {partition} holds offsets {first} to {end}, not {offset}")
    return dict(target.to_offsets)


async def _lock_all(operation: Operation) -> dict[int, tuple[UUID, int]]:
    """The live lines, locked until the commit: waits for batches in flight, 5 s at most."""
    found = await operation.database.fetch(
        """
        SELECT partition, topic_id, next_offset FROM ingest.partition_offsets
        WHERE generation = $1 AND topic = $2 ORDER BY partition FOR UPDATE
        """,
        LIVE,
        operation.topic,
    )
    return {line["partition"]: (line["topic_id"], line["next_offset"]) for line in found}
