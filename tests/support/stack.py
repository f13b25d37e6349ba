"""A test's own corner of the run's servers: topics, database, group, and the product's processes on them."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local.kafka import KafkaBroker
from deploy.local.postgres import PostgresServer
from deploy.local.server import Server
from deploy.local.stack import ModuleServer

TABLES = ("user_activity", "endpoint_usage", "feature_usage", "model_usage")


class Stack:
    """Everything carries the test's own suffix, so tests never meet each other's records."""

    def __init__(self, *, kafka: KafkaBroker, postgres: PostgresServer, database_url: str, folder: Path) -> None:
        self.kafka = kafka
        self.postgres = postgres
        self.database_url = database_url
        self.folder = folder
        suffix = uuid.uuid4().hex[:8]
        self.topic = f"events-{suffix}"
        self.suppressions_topic = f"suppressions-{suffix}"
        self.group = f"group-{suffix}"
        self._processes: list[Server] = []

    def environment(self, **more: str) -> dict[str, str]:
        """Settings of any process of this test."""
        return {
            "ANALYTICS_DATABASE_URL": self.database_url,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "KAFKA_TOPIC": self.topic,
            "KAFKA_SUPPRESSIONS_TOPIC": self.suppressions_topic,
            "KAFKA_CONSUMER_GROUP": self.group,
            "KAFKA_TOPIC_PARTITIONS": "4",
            "METRICS_HOST": "127.0.0.1",
            "HOST": "127.0.0.1",
            **more,
        }

    def consumer(self, *, is_awaited: bool = True, **settings: str) -> ModuleServer:
        """Start a consumer process; returns when it is ready."""
        return self._start("consumer", {"CONSUMER_METRICS_PORT": None}, settings, is_awaited=is_awaited)

    def receiver(self, *, is_awaited: bool = True, **settings: str) -> ModuleServer:
        """Start a receiver process; returns when it is ready."""
        return self._start(
            "receiver",
            {"PORT": None, "HTTP_PORT": None, "RECEIVER_METRICS_PORT": None},
            settings,
            is_awaited=is_awaited,
        )

    def _start(
        self, module: str, ports: dict[str, int | None], settings: dict[str, str], *, is_awaited: bool
    ) -> ModuleServer:
        folder = self.folder / f"{module}-{len(self._processes)}"
        process = (ModuleServer if is_awaited else Unawaited)(module, folder, self.environment(**settings), ports=ports)
        process.start_seconds = 40
        process.stop_seconds = 16
        self._processes.append(process)
        process.start()
        return process

    def close(self) -> None:
        for process in self._processes:
            process.kill()

    async def create_topic(self, partitions: int = 4, **config: str) -> None:
        """The topic of events, made by the test and not by the product."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap_servers)
        await admin.start()
        try:
            answer = await admin.create_topics(
                [NewTopic(self.topic, partitions, 1, topic_configs={"message.timestamp.type": "CreateTime", **config})]
            )
            assert answer.topic_errors[0][1] == 0, answer
        finally:
            await admin.close()

    async def send(self, records: list[tuple[int, bytes | None]], **options: Any) -> None:
        """Records as (partition, value), in order within each partition, acknowledged by the broker."""
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka.bootstrap_servers, acks="all", linger_ms=5)
        await producer.start()
        try:
            sent = [
                await producer.send(self.topic, value, partition=partition, **{"key": b"key", **options})
                for partition, value in records
            ]
            await asyncio.gather(*sent)
        finally:
            await producer.stop()

    async def read_topic(self, topic: str | None = None) -> list[ConsumerRecord]:
        """Every record of the topic as it is now."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.kafka.bootstrap_servers, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            topic = topic or self.topic
            await consumer._client.force_metadata_update()
            found = await consumer._client.fetch_all_metadata()
            places = [TopicPartition(topic, partition) for partition in found.partitions_for_topic(topic) or ()]
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            records: list[ConsumerRecord] = []
            for place in places:
                while await consumer.position(place) < ends[place]:
                    for batch in (await consumer.getmany(place, timeout_ms=500)).values():
                        records += batch
            return records
        finally:
            await consumer.stop()

    async def group_offsets(self) -> dict[int, int]:
        """What the group has committed, by partition."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap_servers)
        await admin.start()
        try:
            found = await admin.list_consumer_group_offsets(self.group)
            return {place.partition: committed.offset for place, committed in found.items()}
        finally:
            await admin.close()

    async def set_group_offsets(self, offsets: dict[int, int]) -> None:
        """Overwrite what the group has committed. It must have no members."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka.bootstrap_servers, group_id=self.group)
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self.topic, partition) for partition in offsets])
            await consumer.commit({TopicPartition(self.topic, partition): at for partition, at in offsets.items()})
        finally:
            await consumer.stop()

    async def fetch(self, sql: str, *arguments: Any) -> list[dict[str, Any]]:
        """Rows of a query on the test's database."""
        connection = await asyncpg.connect(self.database_url, timeout=5)
        try:
            return [dict(row) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    async def rows(self, table: str) -> dict[uuid.UUID, dict[str, Any]]:
        """All rows of a table, by id."""
        return {row["id"]: row for row in await self.fetch(f"SELECT * FROM public.{table}")}

    async def row_count(self) -> int:
        return sum([(await self.fetch(f"SELECT count(*) FROM public.{table}"))[0]["count"] for table in TABLES])

    async def ledger(self) -> list[dict[str, Any]]:
        return await self.fetch("SELECT * FROM ingest.partition_offsets ORDER BY generation, partition")

    async def settled(self, records: int, seconds: float = 60) -> None:
        """Wait until the ledger covers so many records of this topic."""

        async def is_settled() -> bool:
            return sum(line["next_offset"] - line["first_offset"] for line in await self.ledger()) >= records

        await eventually(is_settled, seconds, f"{records} records settled")


class Unawaited(ModuleServer):
    """A process that counts as started as soon as it runs."""

    def _answers(self) -> bool:
        return self.is_running


async def eventually(condition: Callable[[], Awaitable[Any]], seconds: float, what: str, every_s: float = 0.1) -> Any:
    """Wait for a condition, with a deadline that fails the test. Errors of a server that is down count as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := await condition():
                return found
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pass
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(every_s)
