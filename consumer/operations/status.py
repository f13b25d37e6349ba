"""Where is everything? Positions against the topic, dead letters, rebuilds."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

from consumer.operations.operation import Operation
from consumer.pipeline.peek import peek_with
from consumer.settings import ConsumerSettings
from consumer.store.ledger import LIVE
from shared import probes
from shared.broker import KAFKA_ERRORS, connection_options, topic_settings
from shared.lifecycle import stop_within

WATCH_EVERY_S = 2.0


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


@dataclass(frozen=True, slots=True)
class Pace:
    """By partition: records settled a second since the last look, and the host of the consumer that owns it.

    `complaints`: by host, why its consumer is not ready.
    """

    rates: dict[int, float]
    owners: dict[int, str]
    complaints: dict[str, str]

    def left_s(self, line: PartitionStatus) -> float | None:
        """Until the partition's lag is gone at this rate; None when it is not."""
        rate = self.rates.get(line.partition, 0)
        if not line.lag_records:
            return 0
        return line.lag_records / rate if rate > 0 else None


async def watched(operation: Operation) -> AsyncIterator[tuple[Status, Pace]]:
    """The status again and again.

    Raises:
        BrokerUnavailable, DatabaseUnavailable
    """
    before: dict[int, int] = {}
    looked_at = time.monotonic()
    while True:
        found = await status(operation)
        elapsed_s, looked_at = time.monotonic() - looked_at, time.monotonic()
        now = {line.partition: line.next_offset for line in found.partitions if line.next_offset is not None}
        rates = {each: max(0, at - before[each]) / elapsed_s for each, at in now.items() if each in before}
        before = now
        owners = await _owners(operation)
        yield found, Pace(rates, owners, await _complaints(set(owners.values()), operation.settings))
        await asyncio.sleep(WATCH_EVERY_S)


async def _complaints(hosts: set[str], settings: ConsumerSettings) -> dict[str, str]:
    port = settings.consumer_metrics_port
    if port == 0:
        return {}
    urls = {host: probes.ready_url(host, port) for host in sorted(hosts)}
    answers = await asyncio.gather(*(asyncio.to_thread(probes.ask, url) for url in urls.values()))
    return {host: said for host, (is_ready, said) in zip(urls, answers, strict=True) if not is_ready}


async def _owners(operation: Operation) -> dict[int, str]:
    admin = AIOKafkaAdminClient(**connection_options(operation.settings))
    try:
        await admin.start()
        [answer] = await admin.describe_consumer_groups([operation.settings.kafka_consumer_group])
    except KAFKA_ERRORS:  # no group yet, or no answer: the positions are worth showing all the same
        return {}
    finally:
        await stop_within(admin.close(), 5)
    owners = {}
    for _, _, host, _, assignment in answer.groups[0][5]:
        if assignment:
            for place in ConsumerProtocolMemberAssignment.decode(assignment).partitions():
                if place.topic == operation.topic:
                    owners[place.partition] = host.lstrip("/")
    return owners
