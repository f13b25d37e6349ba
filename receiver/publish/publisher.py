"""records -> acknowledgements: one open batch a partition, which the records of all requests share.

`append` puts a record into its partition's open batch and gives back that batch's future, so a request of a
thousand spans waits for a dozen futures. A batch is shipped when it is full or has lingered; its future then
says whether every in-sync replica has it. A batch belongs to no caller: when a caller leaves, its records stay in it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import ClusterAuthorizationFailedError, KafkaError, TopicAuthorizationFailedError

from receiver import metrics
from receiver.budget import Budget
from receiver.settings import ReceiverSettings
from receiver.translate.engines.engine import Builder, Engine, Translation
from shared.broker import ensure_topics, new_producer
from shared.errors import BrokerUnavailable, WrongTopic
from shared.lifecycle import backoff_s, stop_within
from shared.logs import error_facts
from shared.probes import Health

log = structlog.get_logger(__name__)

NEED = "broker"
CONNECT_TIMEOUT_S = 10.0
RETRY_S_MAX = 1.0  # publishing works again within 5 s of the broker's return
PROBE_EVERY_S = 1.0
PROBE_TIMEOUT_S = 3.0
SILENCE_S_MAX = 15.0  # without an answer from the broker; then a new producer replaces this one, in case it is broken
FLUSH_TIMEOUT_S = 3.5  # this, the next and the server's stop fit into 15 s
STOP_TIMEOUT_S = 3.0
AUTHORIZATION = "authorization"  # what Health calls it
UNAUTHORIZED = (TopicAuthorizationFailedError, ClusterAuthorizationFailedError)
UNAUTHORIZED_S = 30.0  # not ready for so long after a refusal; then ready, so that a new write can show the result


@dataclass(slots=True, eq=False)
class Batch:
    """Records on their way to one partition. `acknowledged` is True once every in-sync replica has them."""

    builder: Builder
    acknowledged: asyncio.Future[bool]
    opened_at: float
    bytes: int = 0
    is_due: bool = False


@dataclass(slots=True, eq=False)
class PartitionQueue:
    """One partition's batches: one that is open, and those that are on their way."""

    partition: int
    open: Batch | None = None
    unsettled: int = 0
    # When several sends wait for one partition's place in aiokafka's buffer, aiokafka 0.14 gives up long before its
    # timeout. So only one batch of a partition waits there at a time.
    entrance: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True, eq=False)
class Connection:
    producer: AIOKafkaProducer
    queues: list[PartitionQueue]


class Publisher:
    """Keeps a producer alive and publishes through it. `run` must be running for anything to be published."""

    def __init__(self, settings: ReceiverSettings, *, engine: Engine, budget: Budget, health: Health) -> None:
        self._settings = settings
        self._engine = engine
        self._topic = settings.kafka_topic
        self._linger_s = settings.publish_linger_ms / 1000
        self._ship_timeout_s = settings.publish_timeout_ms / 1000
        self._budget = budget
        self._health = health
        self._connection: Connection | None = None
        self._shipping: set[asyncio.Task[None]] = set()
        self._unauthorized_at: float | None = None

    def append(self, translation: Translation, *, received_at_ms: int) -> set[asyncio.Future[bool]]:
        """Put a request's records into their partitions' open batches, and return the futures of those batches.

        Their bytes count towards the budget until their batch is settled.

        Raises:
            BrokerUnavailable: no broker has been reached yet, or none is now. Nothing was put anywhere.
        """
        connection = self._connection
        if connection is None:
            raise BrokerUnavailable("not connected")
        batches: set[asyncio.Future[bool]] = set()
        for partition, records in translation.partitioned(len(connection.queues)):
            queue, placed = connection.queues[partition], 0
            while placed < records:
                batch = queue.open or self._opened(connection, queue)
                added = translation.add(batch.builder, partition, placed, received_at_ms)
                if added:
                    self._charge(batch)
                    batches.add(batch.acknowledged)
                    placed += added
                if placed < records:  # the batch is full
                    self._ship(connection, queue)
        return batches

    def _charge(self, batch: Batch) -> None:
        size = batch.builder.size()
        self._budget.charge(size - batch.bytes)
        batch.bytes = size

    async def acknowledged(self, batches: Iterable[asyncio.Future[bool]]) -> None:
        """Return once every in-sync replica has every one of these batches.

        When the caller is cancelled here, the batches are still sent.

        Raises:
            BrokerUnavailable: at least one batch was refused or is late. Its records may be stored all the same.
        """
        waiting = set(batches)
        if not waiting:
            return
        done, _ = await asyncio.wait(waiting)
        if not all(batch.result() for batch in done):
            raise BrokerUnavailable("not acknowledged")

    def _opened(self, connection: Connection, queue: PartitionQueue) -> Batch:
        loop = asyncio.get_running_loop()
        batch = Batch(self._engine.builder(connection.producer), loop.create_future(), time.monotonic())
        loop.call_later(self._linger_s, self._due, connection, queue, batch)
        queue.open = batch
        return batch

    def _due(self, connection: Connection, queue: PartitionQueue, batch: Batch) -> None:
        """Ship a batch that has lingered, unless another one is on its way: so batches grow under load."""
        batch.is_due = True
        if queue.open is batch and not queue.unsettled:
            self._ship(connection, queue)

    def _ship(self, connection: Connection, queue: PartitionQueue) -> None:
        assert queue.open is not None
        batch, queue.open = queue.open, None
        queue.unsettled += 1
        task = asyncio.create_task(self._send(connection, queue, batch), name="ship")
        self._shipping.add(task)
        task.add_done_callback(self._shipping.discard)

    async def _send(self, connection: Connection, queue: PartitionQueue, batch: Batch) -> None:
        """Settle the batch's future, whatever happens."""
        outcome = "failed"
        try:
            async with asyncio.timeout(self._ship_timeout_s):
                async with queue.entrance:
                    delivery = await connection.producer.send_batch(
                        batch.builder, self._topic, partition=queue.partition
                    )
                await delivery  # from here on every in-sync replica has the records
            outcome = "acknowledged"
            self._unauthorized_at = None
            self._health.unblock(AUTHORIZATION)
            self._health.answered(NEED)
        except TimeoutError:
            outcome = "expired"
        except Exception as error:  # noqa: BLE001  a batch without an acknowledgement has failed, whatever it was
            if isinstance(error, UNAUTHORIZED):
                self._refused(self._topic)
            log.warning("batch_failed", partition=queue.partition, **error_facts(error))
        finally:
            self._settle(connection, queue, batch, outcome)

    def _refused(self, topic: str) -> None:
        """The broker refused a write for lack of a right. Not ready, so that a load balancer uses other receivers."""
        self._unauthorized_at = time.monotonic()
        self._health.block(AUTHORIZATION, f"Kafka refuses writes to {topic}: give this user WRITE and DESCRIBE on it")

    def _settle(self, connection: Connection, queue: PartitionQueue, batch: Batch, outcome: str) -> None:
        self._budget.release(batch.bytes)
        batch.acknowledged.set_result(outcome == "acknowledged")
        metrics.batches.labels(outcome).inc()
        metrics.publish_seconds.observe(time.monotonic() - batch.opened_at)
        queue.unsettled -= 1
        if queue.open is not None and queue.open.is_due and not queue.unsettled:
            self._ship(connection, queue)

    async def run(self) -> None:
        """Connect, monitor and reconnect until cancelled; then ship the open batches once more."""
        attempt = 0
        while True:
            try:
                async with self._connected() as connection:
                    attempt = 0
                    await self._watch(connection)
            except (BrokerUnavailable, WrongTopic, KafkaError, OSError, TimeoutError) as error:
                if isinstance(error, WrongTopic):
                    self._health.block("topic", str(error))
                log.warning("broker_lost", attempt=attempt, **error_facts(error))
            await asyncio.sleep(backoff_s(attempt, first_s=0.1, most_s=RETRY_S_MAX))
            attempt += 1

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            state = (await ensure_topics(self._settings))[self._topic]
        producer = new_producer(self._settings)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await producer.start()
                partitions = len(await producer.partitions_for(self._topic))
            for name, actual, expected in state.differing:
                log.warning("topic_differs", topic=self._topic, setting=name, actual=actual, expected=expected)
            connection = self._connection = Connection(producer, _queues(range(partitions)))
            self._health.unblock("topic")
            self._health.answered(NEED)
            log.info("broker_connected", topic=self._topic, partitions=partitions)
            yield connection
        finally:
            self._connection = None
            await self._flush(connection)
            await stop_within(producer.stop(), STOP_TIMEOUT_S)

    async def _flush(self, connection: Connection | None) -> None:
        """Ship the open batches, and wait for all that are on their way."""
        if connection is None:
            return
        for queue in connection.queues:
            if queue.open is not None:
                self._ship(connection, queue)
        if self._shipping:
            await asyncio.wait(self._shipping, timeout=FLUSH_TIMEOUT_S)

    async def _watch(self, connection: Connection) -> None:
        """Ask the broker for metadata every second, to set readiness and to find added partitions.

        Raises:
            BrokerUnavailable: no answer, no sender task, or no topic any more: the producer must be replaced.
        """
        client = connection.producer.client
        answered_at = time.monotonic()
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            if self._unauthorized_at is not None and time.monotonic() - self._unauthorized_at > UNAUTHORIZED_S:
                self._unauthorized_at = None
                self._health.unblock(AUTHORIZATION)
            if connection.producer._sender.sender_task.done():  # noqa: SLF001  nothing public tells
                raise BrokerUnavailable("the producer's sender has ended")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    if await client.force_metadata_update():
                        answered_at = time.monotonic()
                        self._health.answered(NEED)
            if time.monotonic() - answered_at > SILENCE_S_MAX:
                raise BrokerUnavailable("no answer")
            partitions = client.cluster.partitions_for_topic(self._topic) or set()
            if len(partitions) < len(connection.queues):
                raise BrokerUnavailable("the topic is gone, or another")
            if len(partitions) > len(connection.queues):
                log.info("partitions_added", partitions=len(partitions))
                connection.queues += _queues(range(len(connection.queues), len(partitions)))


def _queues(partitions: range) -> list[PartitionQueue]:
    return [PartitionQueue(partition) for partition in partitions]
