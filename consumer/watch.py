"""Looks at broker, database and ledger every two seconds, whatever the loop is doing: readiness, lag, moves.

On connections of its own, so that a loop that waits for a lock or a frozen server is seen from outside. An
idle consumer never meets the fence; this is how it learns of a rewind, a restored database or a new topic.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Sequence
from uuid import UUID

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer import metrics, positions
from consumer.database import DATABASE_ERRORS, connect
from consumer.ledger import Ledger, Line
from consumer.pipeline import Pipeline
from consumer.tables import SCHEMA_REVISION
from shared.broker import KAFKA_ERRORS
from shared.errors import BrokerUnavailable, WrongTopic
from shared.lifecycle import wait_for
from shared.probes import Health

EVERY_S = 2.0
ASK_TIMEOUT_S = 4.0
SAMPLES = 600  # ends of a partition seen before, at one every two seconds: lag in seconds up to 20 minutes back


class Watch:
    """The two questions that readiness rests on, asked again and again, and what follows from the answers."""

    def __init__(
        self,
        *,
        consumer: AIOKafkaConsumer,
        pipelines: Sequence[Pipeline],
        ledger: Ledger,
        health: Health,
        database_url: str,
        retention_s: float,
    ) -> None:
        self._consumer = consumer
        self._pipelines = pipelines
        self._ledger = ledger
        self._health = health
        self._database_url = database_url
        self._retention_s = retention_s
        self._connection: asyncpg.Connection | None = None
        self._topic_id: UUID | None = None
        self._ends: dict[int, deque[tuple[int, float]]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await asyncio.gather(self._ask_broker(), self._ask_database())
            self._measure_lag()
            await wait_for(stop, EVERY_S)
        if self._connection:
            self._connection.terminate()

    async def _ask_broker(self) -> None:
        """Is the topic the same, and where does it end?"""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                identity = await positions.identity_of(self._consumer, self._ledger.topic)
                mine = [TopicPartition(self._ledger.topic, partition) for partition in self._next_offsets()]
                ends = await self._consumer.end_offsets(mine) if mine else {}
        except WrongTopic as error:
            self._health.block("topic_missing", str(error))
            self._topic_id = None
            return
        except (BrokerUnavailable, *KAFKA_ERRORS):
            return  # silence is what readiness notices
        self._health.unblock("topic_missing")
        self._health.answered("broker")
        if identity != self._topic_id:
            for pipeline in self._pipelines:
                pipeline.notice_topic()
            await asyncio.wait([self._consumer._client.force_metadata_update()], timeout=ASK_TIMEOUT_S)  # noqa: SLF001
        self._topic_id = identity
        now = time.monotonic()
        for place, end in ends.items():
            self._ends.setdefault(place.partition, deque(maxlen=SAMPLES)).append((end, now))

    async def _ask_database(self) -> None:
        """Is the schema ours or later, and where is the ledger?"""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                if self._connection is None or self._connection.is_closed():
                    self._connection = await connect(self._database_url, application_name="telemetry-consumer-watch")
                revision = await self._connection.fetchval("SELECT version_num FROM public.alembic_version")
                if revision_number(revision) < revision_number(SCHEMA_REVISION):
                    self._health.block("schema", f"at {revision}, needs {SCHEMA_REVISION}: run `alembic upgrade head`")
                    return
                found = await self._ledger.load(self._connection, self._next_offsets())
        except DATABASE_ERRORS as error:
            if self._connection:
                self._connection.terminate()
            if isinstance(error, asyncpg.UndefinedTableError):
                self._health.block("schema", "not migrated: run `alembic upgrade head`")
            return
        self._health.unblock("schema")
        self._health.answered("database")
        self._notice(found)

    def _notice(self, found: dict[int, Line]) -> None:
        for pipeline in self._pipelines:
            pipeline.notice(found)

    def _next_offsets(self) -> dict[int, int]:
        return {partition: at for pipeline in self._pipelines for partition, at in pipeline.next_offsets().items()}

    def _measure_lag(self) -> None:
        """Lag that grows while consumption stalls: from ends that were seen, and the clock."""
        next_offsets = self._next_offsets()
        for partition in set(self._ends) - set(next_offsets):  # another consumer's now
            del self._ends[partition]
            metrics.lag_records.remove(str(partition))
            metrics.lag_seconds.remove(str(partition))
        now, oldest_s = time.monotonic(), 0.0
        for partition, ends in self._ends.items():
            at = next_offsets[partition]
            waiting = next((seen_at for end, seen_at in ends if end > at), None)
            seconds = 0.0 if waiting is None else now - waiting
            metrics.lag_records.labels(str(partition)).set(max(0, ends[-1][0] - at))
            metrics.lag_seconds.labels(str(partition)).set(seconds)
            oldest_s = max(oldest_s, seconds)
        metrics.retention_used_ratio.set(oldest_s / self._retention_s)


def revision_number(revision: str | None) -> int:
    """Revisions begin with their number: 002_ingest_schema."""
    found = re.match(r"\d+", revision or "")
    return int(found.group()) if found else 0
