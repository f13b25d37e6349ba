"""Connects to everything, and says what is wrong and how to repair it."""

import asyncio
import http.client
from collections.abc import AsyncIterator
from typing import Any, Literal

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError

from consumer.operations import audit
from consumer.operations.doctor import senders
from consumer.operations.doctor.diagnosis import Diagnosis
from consumer.operations.doctor.postgres import postgres
from consumer.settings import ConsumerSettings, DoctorSettings
from consumer.store.database import DATABASE_ERRORS, error_name, explained, is_out_of_reach
from shared import probes
from shared.broker import (
    HOUR_MS,
    KAFKA_ERRORS,
    connection_options,
    suppressions_config,
    topic_config,
)
from shared.lifecycle import stop_within
from shared.wire import BATCH_BYTES_MAX


async def doctor(settings: DoctorSettings, *, receiver_metrics: str | None = None) -> list[Diagnosis]:
    """Everything that is wrong, or would be under load or after a fault; empty when there is none.

    Also what senders do wrong, by the metrics of one receiver: the one at the URL `receiver_metrics`, else the
    one on this machine when there is one.
    """
    found = [*_settings(settings), *await _senders(settings, receiver_metrics)]
    is_reached = True
    for examine, server, remedy in (
        (
            _kafka,
            "broker",
            "start it, or correct KAFKA_BOOTSTRAP_SERVERS and the KAFKA_SASL_ and KAFKA_SSL_ settings",
        ),
        (postgres, "database", "start it, or correct ANALYTICS_DATABASE_URL, with its password and sslmode"),
    ):
        try:
            found += [diagnosis async for diagnosis in examine(settings)]
        except (*KAFKA_ERRORS, *DATABASE_ERRORS) as error:
            is_reached = False
            if isinstance(error, asyncpg.PostgresError) and not is_out_of_reach(error):
                found.append(Diagnosis(server, "error", explained(error_name(error)), "see docs/operate.md"))
            else:
                found.append(Diagnosis(server, "error", f"not reached: {explained(error_name(error))}", remedy))
    if is_reached:
        found += [_of_audit(finding) for finding in await audit.audit(settings) if finding.kind != "topic"]
    return found


def _settings(settings: ConsumerSettings) -> list[Diagnosis]:
    found = []

    def warn(check: str, detail: str, remedy: str) -> None:
        found.append(Diagnosis(check, "warning", detail, remedy))

    if not settings.hash_key:
        warn(
            "hash_key",
            "ID_HASH_KEY is not set: anybody can reverse the hashes of guessable ids",
            "set the same key of 32 bytes or more for receiver and consumer; docs/sql.md says how it changes counts",
        )
    if not settings.kafka_security_protocol.endswith("SSL"):
        warn("transport", "connections to Kafka are not encrypted", "set KAFKA_SECURITY_PROTOCOL=SSL or SASL_SSL")
    if settings.retention_days and settings.retention_days * 24 < settings.kafka_topic_retention_hours:
        warn(
            "retention_days",
            "RETENTION_DAYS is shorter than the topic's retention",
            "lower the topic's retention.ms, if personal data must not be kept longer than in the tables",
        )
    return found


async def _senders(settings: DoctorSettings, asked: str | None) -> list[Diagnosis]:
    if asked is None and settings.receiver_metrics_port == 0:
        return []
    url = asked or probes.metrics_url(settings.metrics_host, settings.receiver_metrics_port)
    try:
        text = await asyncio.to_thread(probes.metrics_of, url)
        return [Diagnosis(check, "warning", *words) for check, *words in senders.mistakes(text)]
    except (OSError, ValueError, http.client.HTTPException) as error:
        if asked is None:  # it may well run elsewhere
            return []
        remedy = "the receiver's /metrics, as http://host:9464/metrics"
        return [Diagnosis("receiver_metrics", "warning", f"not read: {type(error).__name__}", remedy)]


async def _kafka(settings: ConsumerSettings) -> AsyncIterator[Diagnosis]:
    admin = AIOKafkaAdminClient(**connection_options(settings))
    try:
        await admin.start()
        existing = await admin.list_topics()
        for topic, config in (
            (settings.kafka_topic, topic_config(settings)),
            (settings.kafka_suppressions_topic, suppressions_config(settings)),
        ):
            if topic not in existing:
                yield Diagnosis("topic", "error", f"topic {topic} does not exist", "start the receiver, or create it")
                continue
            for diagnosis in await _topic(admin, settings, topic, config):
                yield diagnosis
        for diagnosis in await _members(admin, settings):
            yield diagnosis
    finally:
        await stop_within(admin.close(), 5)


async def _topic(admin: Any, settings: ConsumerSettings, topic: str, config: dict[str, str]) -> list[Diagnosis]:
    described = (await admin.describe_topics([topic]))[0]
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    actual = {entry[0]: entry[1] for entry in answers[0].resources[0][4]}
    replicas = min(len(partition["replicas"]) for partition in described["partitions"])
    found = [
        Diagnosis(
            "topic_settings",
            "warning",
            f"{topic}: {name} is {actual.get(name)}, and would be created as {value}",
            f"alter the topic, or the KAFKA_TOPIC_ setting: kafka-configs --alter --entity-name {topic}",
        )
        for name, value in config.items()
        if actual.get(name, value) != value
    ]
    if replicas == 1:
        found.append(
            Diagnosis(
                "replication",
                "warning",
                f"{topic} has one replica: acknowledged records are lost with its disk",
                "run three brokers with KAFKA_TOPIC_REPLICATION=3 and KAFKA_TOPIC_MIN_INSYNC_REPLICAS=2",
            )
        )
    elif int(actual.get("min.insync.replicas") or 1) < 2:
        found.append(
            Diagnosis(
                "min_insync",
                "warning",
                f"{topic}: min.insync.replicas is 1",
                "set it to 2, so that acks=all waits for two",
            )
        )
    if any(not partition["isr"] or partition["leader"] < 0 for partition in described["partitions"]):
        found.append(Diagnosis("leader", "error", f"{topic} has partitions without a leader", "bring the brokers back"))
    largest = int(actual.get("max.message.bytes") or 0)
    if topic == settings.kafka_topic and largest < BATCH_BYTES_MAX + 64 * 1024:
        found.append(
            Diagnosis(
                "message_size",
                "error",
                f"{topic}: max.message.bytes is {largest}, and batches go up to {BATCH_BYTES_MAX}",
                "set it to 1048588, the broker's default, or more",
            )
        )
    retention_ms = int(actual.get("retention.ms") or -1)
    if topic == settings.kafka_topic and 0 < retention_ms < 24 * HOUR_MS:
        found.append(
            Diagnosis(
                "retention",
                "warning",
                f"{topic} keeps records for only {retention_ms / HOUR_MS:.1f} h: a longer outage loses records",
                "raise retention.ms to three days or more, so that a weekend's outage loses nothing",
            )
        )
    return found


async def _members(admin: Any, settings: ConsumerSettings) -> list[Diagnosis]:
    """More consumers than partitions: some are idle."""
    described = (await admin.describe_topics([settings.kafka_topic]))[0]
    partitions = len(described.get("partitions", []))
    try:
        groups = await admin.describe_consumer_groups([settings.kafka_consumer_group])
    except GroupCoordinatorNotAvailableError:  # a cluster that never had a group
        groups = []
    members = len(groups[0].groups[0][5]) if groups and groups[0].groups else 0
    if members > partitions > 0:
        return [
            Diagnosis(
                "consumers",
                "warning",
                f"{members} consumers share {partitions} partitions, so some are idle",
                "stop some, or add partitions",
            )
        ]
    if members == 0:
        return [Diagnosis("consumers", "warning", "no consumer is running", "start one: python -m consumer")]
    return []


_REMEDIES: dict[str, str] = {
    "topic_identity": "if the topic was recreated on purpose: consumer rewind --to-start --accept-new-topic. If not, "
    "correct KAFKA_BOOTSTRAP_SERVERS or KAFKA_TOPIC",
    "bounds": "this is another cluster, or retention has passed a stopped consumer: start the consumer, or rewind",
    "balance": "somebody wrote to ingest.partition_offsets: restore it, or rewind --to-start",
    "no_line": "start a consumer",
    "gap": "these records are lost: docs/operate.md says what to do. Then acknowledge it with `consumer gaps ack`",
    "database": "do what it says",
    "erasure": "run `consumer erase` again, or start a consumer; copies of a rebuild need the owner's role",
    "suppressions": "restart a consumer; if that does not help, see docs/operate.md",
    "schema": "run alembic upgrade head; if it is at head, somebody altered the tables by hand",
    "unreachable": "bring the server back",
}


def _of_audit(finding: audit.AuditFinding) -> Diagnosis:
    place = "" if finding.partition is None else f"partition {finding.partition}: "
    severity: Literal["error", "warning"] = "warning" if finding.kind in ("gap", "no_line") else "error"
    return Diagnosis(finding.kind, severity, place + finding.detail, _REMEDIES.get(finding.kind, "see the runbook"))
