"""Kafka clients, with every option that delivery, order or size depends on; topics and their settings."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    TopicAlreadyExistsError,
    for_code,
)

from shared.errors import BrokerUnavailable, WrongTopic
from shared.settings import KafkaSettings
from shared.wire import BATCH_BYTES_MAX

REQUEST_TIMEOUT_MS = 3_000
HOUR_MS = 3_600_000
SETTLE_S, SETTLE_POLL_S = 5.0, 0.1  # for topics that were just made, and the coordinator of a new cluster
KAFKA_ERRORS = (KafkaError, OSError, TimeoutError)  # what aiokafka raises when brokers fail it


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """What every client needs to reach the brokers."""
    password = settings.kafka_sasl_password
    return {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "security_protocol": settings.kafka_security_protocol,
        "sasl_mechanism": settings.kafka_sasl_mechanism or "PLAIN",
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": password.get_secret_value() if password else None,
        "ssl_context": _ssl_context(settings),
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "retry_backoff_ms": 100,
        "metadata_max_age_ms": 10_000,  # how late an added partition or a moved leader is seen
        "connections_max_idle_ms": 540_000,
    }


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    if not settings.kafka_security_protocol.endswith("SSL"):
        return None
    context = ssl.create_default_context(cafile=settings.kafka_ssl_ca_file)
    if settings.kafka_ssl_cert_file:
        context.load_cert_chain(settings.kafka_ssl_cert_file, settings.kafka_ssl_key_file)
    return context


def new_producer(settings: KafkaSettings) -> AIOKafkaProducer:
    """A producer whose acknowledgement means: every in-sync replica has it.

    Not idempotent: one oversized batch would wedge an idempotent producer's partition until a restart
    (aiokafka #1017). A record that is sent twice is absorbed by the row's key.
    """
    return AIOKafkaProducer(
        **connection_options(settings),
        client_id="telemetry-receiver",
        acks="all",
        enable_idempotence=False,
        compression_type="zstd",
        max_batch_size=BATCH_BYTES_MAX,
        max_request_size=1024 * 1024,
        linger_ms=0,  # the publisher's partition queues linger
    )


def new_consumer(settings: KafkaSettings, *, group: str | None, fetch_wait_ms: int = 100) -> AIOKafkaConsumer:
    """A consumer that never chooses a position and never commits by itself: the ledger does both."""
    return AIOKafkaConsumer(
        **connection_options(settings),
        client_id="telemetry-consumer",
        group_id=group,
        auto_offset_reset="none",
        enable_auto_commit=False,
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
        session_timeout_ms=10_000,
        heartbeat_interval_ms=2_000,
        rebalance_timeout_ms=30_000,
        max_poll_interval_ms=24 * HOUR_MS,  # an outage of the database may last, and is no reason to leave the group
        fetch_max_wait_ms=fetch_wait_ms,
        fetch_min_bytes=1,
        fetch_max_bytes=32 * 1024 * 1024,
        max_partition_fetch_bytes=2 * 1024 * 1024,
        check_crcs=True,
        isolation_level="read_committed",
    )


class RebalanceCount(ConsumerRebalanceListener):
    """Counts rebalances and does nothing else: aiokafka does not wait for a listener, and only logs its errors."""

    def __init__(self, counted: Callable[[], None]) -> None:
        self.generation = 0
        self._counted = counted

    def on_partitions_revoked(self, _: object) -> None:
        self.generation += 1

    def on_partitions_assigned(self, _: object) -> None:
        self.generation += 1
        self._counted()


def topic_config(settings: KafkaSettings) -> dict[str, str]:
    """What the topic of events is created with. Kafka deletes whole segments, so these are kept short."""
    retention_ms = settings.kafka_topic_retention_hours * HOUR_MS
    return {
        "cleanup.policy": "delete",
        "message.timestamp.type": "CreateTime",
        "retention.ms": str(retention_ms),
        "segment.ms": str(min(12 * HOUR_MS, retention_ms // 4)),
        "min.insync.replicas": str(settings.kafka_topic_min_insync_replicas),
    }


def suppressions_config(settings: KafkaSettings) -> dict[str, str]:
    """What the topic of erasures is created with: the last record of every subject stays for ever."""
    return {
        "cleanup.policy": "compact",
        "message.timestamp.type": "CreateTime",
        "retention.ms": "-1",
        "min.insync.replicas": str(settings.kafka_topic_min_insync_replicas),
    }


async def topic_settings(settings: KafkaSettings, topic: str) -> dict[str, str]:
    """The settings that the topic really has, by name. Raises aiokafka's errors."""
    admin = AIOKafkaAdminClient(**connection_options(settings))
    try:
        await admin.start()
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        return {entry[0]: entry[1] for entry in answers[0].resources[0][4]}
    finally:
        await admin.close()


@dataclass(frozen=True, slots=True)
class TopicState:
    """An existing topic. `differing` is each setting that is not as we would create it: (name, is, would be)."""

    partitions: int
    replication: int
    retention_ms: int  # -1: without limit
    differing: list[tuple[str, str, str]]


async def ensure_topics(settings: KafkaSettings, *, joins_group: bool = False) -> dict[str, TopicState]:
    """Create the two topics where they are missing, if the settings allow it, and say what they are.

    Idempotent, and safe when several processes do it at once. Never by auto-creation, which gives one
    partition and the broker's own retention. With `joins_group` the group's coordinator is there as well: a new
    cluster makes it when it is first asked for, and aiokafka logs an ERROR for each question until then.

    Raises:
        BrokerUnavailable: no broker answered, or it refused for now.
        WrongTopic: a topic is missing and KAFKA_TOPIC_CREATE is false.
    """
    wanted = {
        settings.kafka_topic: (settings.kafka_topic_partitions, topic_config(settings)),
        settings.kafka_suppressions_topic: (1, suppressions_config(settings)),
    }
    admin = AIOKafkaAdminClient(**connection_options(settings))
    try:
        await admin.start()
        missing = [topic for topic in wanted if topic not in await admin.list_topics()]
        if missing and not settings.kafka_topic_create:
            raise WrongTopic(f"topic {missing[0]} is missing, and KAFKA_TOPIC_CREATE is false")
        if missing:
            await _create(admin, {topic: wanted[topic] for topic in missing}, settings.kafka_topic_replication)
            await _until(lambda: _are_listed(admin, wanted))
        if joins_group:
            await _until(lambda: _has_coordinator(admin, settings.kafka_consumer_group))
        return {topic: await _state(admin, topic, config) for topic, (_, config) in wanted.items()}
    except KAFKA_ERRORS as error:
        raise BrokerUnavailable(f"topics: {type(error).__name__}") from error
    finally:
        await admin.close()


async def _create(admin: Any, topics: dict[str, tuple[int, dict[str, str]]], replication: int) -> None:
    new = [
        NewTopic(topic, partitions, replication, topic_configs=config) for topic, (partitions, config) in topics.items()
    ]
    response = await admin.create_topics(new, timeout_ms=REQUEST_TIMEOUT_MS)
    for topic, code, *_ in response.topic_errors:
        error = for_code(code)
        if code != 0 and error is not TopicAlreadyExistsError:
            raise BrokerUnavailable(f"topic {topic} was not created: {error.__name__}")


async def _until(is_there: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the cluster knows a new topic. After some seconds the caller goes on and sees the error."""
    ends_at = time.monotonic() + SETTLE_S
    while not await is_there() and time.monotonic() < ends_at:  # noqa: ASYNC110  a server tells nobody
        await asyncio.sleep(SETTLE_POLL_S)


async def _are_listed(admin: Any, topics: Iterable[str]) -> bool:
    return set(topics) <= set(await admin.list_topics())


async def _has_coordinator(admin: Any, group: str) -> bool:
    try:
        await admin.find_coordinator(group)
    except (GroupCoordinatorNotAvailableError, GroupLoadInProgressError):
        return False
    except KafkaError:  # as for want of a right: joining the group meets it again, and says so
        return True
    return True


async def _state(admin: Any, topic: str, config: dict[str, str]) -> TopicState:
    described = (await admin.describe_topics([topic]))[0]
    if described["error_code"] != 0:  # just created, and not everywhere yet
        raise BrokerUnavailable(f"topic {topic}: {for_code(described['error_code']).__name__}")
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    actual = {entry[0]: entry[1] for entry in answers[0].resources[0][4]}
    return TopicState(
        partitions=len(described["partitions"]),
        replication=min(len(partition["replicas"]) for partition in described["partitions"]),
        retention_ms=int(actual.get("retention.ms") or -1),
        differing=[(name, actual[name], value) for name, value in config.items() if actual.get(name, value) != value],
    )
