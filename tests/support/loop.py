"""The consumer's loop in the test's own process, on the test's own stack, where its parts can be bent."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer.pipeline.batch import engine_of
from consumer.pipeline.loop import Pipeline
from consumer.pipeline.peek import peek_with
from consumer.pipeline.records.record_batches import take_record_batches
from consumer.pipeline.writer import Writer
from consumer.settings import ConsumerSettings
from consumer.store.dead_letters import Breaker
from consumer.store.ledger import Ledger
from consumer.store.partitions import interval_of
from consumer.store.suppressions_topic import Topic as SuppressionsTopic
from shared.broker import RebalanceCount, ensure_topics, new_consumer
from shared.errors import BrokerUnavailable
from shared.probes import Health
from shared.settings import load
from support.stack import Stack, eventually


@dataclass(frozen=True)
class Loop:
    """Built, and not running before `start`."""

    settings: ConsumerSettings
    client: AIOKafkaConsumer
    ledger: Ledger
    health: Health
    pipeline: Pipeline
    erasures: SuppressionsTopic
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self, *works: Coroutine[Any, Any, None]) -> None:
        self.tasks.extend(map(asyncio.create_task, works))


@asynccontextmanager
async def consumer_loop(stack: Stack, monkeypatch: pytest.MonkeyPatch, *, in_group: bool) -> AsyncIterator[Loop]:
    """In the group, or else alone at partition 0. Its tasks are awaited at the end."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    settings = load(ConsumerSettings)
    await _topics_made(settings)
    client = new_consumer(settings, group=settings.kafka_consumer_group if in_group else None)
    rebalances = RebalanceCount(lambda: None)
    if in_group:
        client.subscribe([settings.kafka_topic], listener=rebalances)
    await client.start()
    take_record_batches(client)
    if not in_group:
        client.assign([TopicPartition(settings.kafka_topic, 0)])
    ledger, erasures, health = Ledger(settings.kafka_topic), SuppressionsTopic(settings), Health("broker", "database")
    engine = engine_of()
    writer = Writer(
        database_url=settings.database_url,
        application_name="test",
        ledger=ledger,
        breaker=Breaker(max_ratio=1, window=1),
        retention_days=0,
        interval=interval_of("month"),
        engine=engine,
    )
    pipeline = Pipeline(
        consumer=client,
        rebalances=rebalances,
        ledger=ledger,
        engine=engine,
        writer=writer,
        suppressions=erasures,
        peek=peek_with(settings),
        health=health,
        batch_rows=1000,
        linger_ms=10,
    )
    loop = Loop(settings, client, ledger, health, pipeline, erasures)
    try:
        yield loop
    finally:
        loop.stop.set()
        if loop.tasks:
            await asyncio.wait(loop.tasks, timeout=10)
        await pipeline.close()
        await erasures.close()
        await client.stop()


async def _topics_made(settings: ConsumerSettings) -> None:
    async def are_topics() -> bool:
        try:
            return bool(await ensure_topics(settings))
        except BrokerUnavailable:  # made, and not known everywhere yet
            return False

    await eventually(are_topics, 20, "the topics")
