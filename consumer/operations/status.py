"""Where is everything? Positions against the topic, dead letters, rebuilds."""

import time
from dataclasses import dataclass, field

from consumer.operations.operation import Operation
from consumer.pipeline.peek import peek_with
from consumer.store.ledger import LIVE
from shared.broker import topic_settings


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """`next_offset` is None before the first consumer has begun the partition's line."""

    topic: str
    partition: int
    next_offset: int | None
    end_offset: int
    lag_records: int
    lag_seconds: float
    retention_left_seconds: float | None


@dataclass(frozen=True, slots=True)
class Status:
    partitions: list[PartitionStatus]
    dead_letters: dict[str, int]
    rebuilds: list[dict[str, object]] = field(default_factory=list)


async def status(operation: Operation) -> Status:
    """As it is now, whether consumers run or not.

    Raises:
        BrokerUnavailable, DatabaseUnavailable
    """
    partitions = await operation.partitions()
    lines = await operation.ledger.load(operation.database, partitions)
    first = await operation.kafka.beginning_offsets(operation.places(partitions))
    end = await operation.kafka.end_offsets(operation.places(partitions))
    retention_ms = int((await topic_settings(operation.settings, operation.topic)).get("retention.ms") or -1)
    found = []
    next_offsets = {
        place: max(line.next_offset if (line := lines.get(place.partition)) else first[place], first[place])
        for place in operation.places(partitions)
    }
    waiting = await peek_with(operation.settings)({place: at for place, at in next_offsets.items() if at < end[place]})
    for place, at in next_offsets.items():
        line = lines.get(place.partition)
        record = waiting.get(place)
        lag_s = max(0.0, time.time() - record.timestamp / 1000) if record else 0.0
        found.append(
            PartitionStatus(
                topic=place.topic,
                partition=place.partition,
                next_offset=line.next_offset if line else None,
                end_offset=end[place],
                lag_records=max(0, end[place] - at),
                lag_seconds=round(lag_s, 3),
                retention_left_seconds=round(retention_ms / 1000 - lag_s, 3) if retention_ms >= 0 else None,
            )
        )
    letters = await operation.database.fetch(
        "SELECT reason, count(*) FROM ingest.dead_letters WHERE redriven_at IS NULL GROUP BY reason ORDER BY reason"
    )
    rebuilds = await operation.database.fetch(
        """
        SELECT generation, sum(next_offset - first_offset)::bigint AS records FROM ingest.partition_offsets
        WHERE generation <> $1 AND topic = $2 GROUP BY generation ORDER BY generation
        """,
        LIVE,
        operation.topic,
    )
    return Status(found, {row["reason"]: row["count"] for row in letters}, [dict(row) for row in rebuilds])
