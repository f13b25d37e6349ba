"""Checks broker, database and ledger every two seconds, independently of the loop: readiness, lag, moved ledgers.

It has connections of its own, so it also sees a loop that waits for a lock or a frozen server. An idle consumer writes
nothing and never meets the fence, so it learns here of a rewind, a restored database or a new topic.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer import metrics
from consumer.pipeline import positions
from consumer.pipeline.lag import Lag
from consumer.pipeline.loop import Pipeline
from consumer.pipeline.peek import Peek
from consumer.store.database import DATABASE_ERRORS, connect, open_connections, why_not_writable
from consumer.store.ledger import Ledger
from consumer.store.schema import SCHEMA_REVISION
from consumer.store.suppressions_topic import Topic as SuppressionsTopic
from shared.broker import KAFKA_ERRORS
from shared.errors import BrokerUnavailable, WrongTopic
from shared.lifecycle import sleep_or_stop
from shared.probes import Health

EVERY_S = 2.0
ASK_TIMEOUT_S = 4.0
ENDS_EVERY_S = 10.0  # how old `freshness` may be
STALL_S = 90.0  # longer than any statement may take, with its lock, and a rebalance beside it


class Monitor:
    """Asks broker and database every two seconds, and sets readiness, lag and what the loops must know."""

    def __init__(
        self,
        *,
        consumer: AIOKafkaConsumer,
        pipelines: Sequence[Pipeline],
        ledger: Ledger,
        health: Health,
        database_url: str,
        peek: Peek,
        suppressions: SuppressionsTopic,
        retention_s: float,
        stall_s: float = STALL_S,
    ) -> None:
        metrics.writers.set(len(pipelines))
        self._lag = Lag(ledger.topic, peek=peek, retention_s=retention_s)
        self._consumer = consumer
        self._pipelines = pipelines
        self._ledger = ledger
        self._health = health
        self._database_url = database_url
        self._suppressions = suppressions
        self._connection: asyncpg.Connection | None = None
        self._topic_id: UUID | None = None
        self._stall_s = stall_s
        self._stood: dict[Pipeline, tuple[tuple[dict[int, int], int] | None, float]] = {}
        self._ends: dict[int, int] = {}
        self._ends_seen_at: datetime | None = None
        self._ends_noted_at: datetime | None = None

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await asyncio.gather(self._ask_broker(), self._ask_database(), self._ask_suppressions())
            why_not = self._health.why_not_ready()
            metrics.ready.set(not why_not)
            metrics.database_connections.set(open_connections())
            await self._lag.measure(self._next_offsets(), self._ends, self._record_times())
            self._interrupt_stalled(is_ready=not why_not)
            await sleep_or_stop(stop, EVERY_S)
        if self._connection:
            self._connection.terminate()

    async def _ask_broker(self) -> None:
        """Ask for the topic's id and the partitions' ends."""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                asked_at = datetime.now(UTC)
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
        self._ends = {place.partition: end for place, end in ends.items()}
        self._ends_seen_at = asked_at

    async def _ask_database(self) -> None:
        """Check that the schema is ours or a later one, and read the ledger."""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                if self._connection is None or self._connection.is_closed():
                    self._connection = await connect(self._database_url, application_name="telemetry-consumer-monitor")
                revision = await self._connection.fetchval("SELECT version_num FROM public.alembic_version")
                if revision_number(revision) < revision_number(SCHEMA_REVISION):
                    self._health.block("schema", f"at {revision}, needs {SCHEMA_REVISION}: run `alembic upgrade head`")
                    return
                await self._ask_writable(self._connection)
                asked_at = {pipeline: pipeline.next_offsets() for pipeline in self._pipelines}
                found = await self._ledger.load(self._connection, self._next_offsets())
                for pipeline, at in asked_at.items():
                    if pipeline.next_offsets() == at:  # else it moves, and what was found is of its past
                        pipeline.notice(found)
                metrics.ledger_balanced.set(await self._ledger.is_balanced(self._connection))
                await self._note_ends(self._connection)
        except DATABASE_ERRORS as error:
            if self._connection:
                self._connection.terminate()
            if isinstance(error, asyncpg.UndefinedTableError):
                self._health.block("schema", "not migrated: run `alembic upgrade head`")
            return
        self._health.unblock("schema")
        self._health.answered("database")

    async def _note_ends(self, connection: asyncpg.Connection) -> None:
        """Store the topic's ends in the database, so that readers of the tables know how many records wait."""
        seen_at, noted_at = self._ends_seen_at, self._ends_noted_at
        if (
            seen_at is None
            or self._topic_id is None
            or (noted_at and seen_at - noted_at < timedelta(seconds=ENDS_EVERY_S))
        ):
            return
        await self._ledger.note_ends(connection, self._topic_id, self._ends, seen_at)
        self._ends_noted_at = seen_at

    async def _ask_writable(self, connection: asyncpg.Connection) -> None:
        """Check that rows can be written: a standby, or a server set to read-only, answers queries and refuses rows."""
        why_not = await why_not_writable(connection)
        if why_not:
            self._health.block("database_read_only", why_not)
        else:
            self._health.unblock("database_read_only")

    async def _ask_suppressions(self) -> None:
        """Check that the topic of erasures can be read: erasures must be known before anything is written."""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await self._suppressions.read()
        except (BrokerUnavailable, WrongTopic, TimeoutError) as error:
            self._health.block("suppressions", f"{self._suppressions.name}: {error or 'no answer'}")
        else:
            self._health.unblock("suppressions")

    def _record_times(self) -> dict[int, float]:
        return {partition: at for pipeline in self._pipelines for partition, at in pipeline.record_times().items()}

    def _next_offsets(self) -> dict[int, int]:
        return {partition: at for pipeline in self._pipelines for partition, at in pipeline.next_offsets().items()}

    def _interrupt_stalled(self, *, is_ready: bool) -> None:
        """Interrupt a loop that hangs: records wait, both servers work, and no attempt ends.

        A loop that fails again and again does not hang: it continues by itself once its server works.
        """
        now = time.monotonic()
        for pipeline in self._pipelines:
            offsets = pipeline.next_offsets()
            has_lag = any(self._ends.get(partition, 0) > offset for partition, offset in offsets.items())
            at = (offsets, pipeline.attempts)
            stood_at, since = self._stood.get(pipeline, (None, now))
            if not has_lag or not is_ready or at != stood_at:
                self._stood[pipeline] = (at, now)
            elif now - since > self._stall_s:
                self._stood[pipeline] = (at, now)
                pipeline.interrupt()


def revision_number(revision: str | None) -> int:
    """Revisions begin with their number: 002_ingest_schema."""
    found = re.match(r"\d+", revision or "")
    return int(found.group()) if found else 0
