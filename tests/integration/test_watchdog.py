"""The watchdog: a loop that hangs is begun anew; one that has nothing to do is left alone."""

import asyncio
import random
from typing import Any

import pytest

from consumer import suppressions
from consumer.dead_letters import Breaker
from consumer.ledger import Ledger
from consumer.pipeline import Pipeline
from consumer.positions import peek_with
from consumer.settings import ConsumerSettings
from consumer.watch import Watch
from consumer.writer import Writer
from shared.broker import RebalanceCount, ensure_topics, new_consumer
from shared.errors import BrokerUnavailable
from shared.probes import Health
from shared.settings import load
from support.records import made
from support.stack import Stack, eventually


async def test_a_loop_that_hangs_with_records_before_it_is_begun_anew_and_an_idle_one_is_not(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client library that never answers again must not need a person at night."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    settings = load(ConsumerSettings)

    async def are_topics() -> bool:
        try:
            return bool(await ensure_topics(settings))
        except BrokerUnavailable:  # made, and not known everywhere yet
            return False

    await eventually(are_topics, 20, "the topics")
    rebalances, health, stop = RebalanceCount(lambda: None), Health("broker", "database"), asyncio.Event()
    client = new_consumer(settings, group=settings.kafka_consumer_group)
    client.subscribe([settings.kafka_topic], listener=rebalances)
    await client.start()
    ledger, erasures = Ledger(settings.kafka_topic), suppressions.Topic(settings)
    pipeline = Pipeline(
        consumer=client,
        rebalances=rebalances,
        ledger=ledger,
        writer=Writer(
            database_url=settings.database_url,
            application_name="test",
            ledger=ledger,
            breaker=Breaker(max_ratio=1, window=1),
            retention_days=0,
        ),
        suppressions=erasures,
        peek=peek_with(settings),
        health=health,
        batch_rows=1000,
        linger_ms=10,
    )
    watch = Watch(
        consumer=client,
        pipelines=[pipeline],
        ledger=ledger,
        health=health,
        database_url=settings.database_url,
        peek=peek_with(settings),
        retention_s=3600,
        stall_s=3,
    )
    interrupted: list[int] = []
    interrupt, getmany = pipeline.interrupt, client.getmany
    hangs, is_hanging = False, asyncio.Event()

    async def hanging(*places: Any, **options: Any) -> Any:
        if hangs and not interrupted:
            is_hanging.set()
            await asyncio.Event().wait()  # an answer that never comes
        return await getmany(*places, **options)

    def counted() -> None:
        interrupted.append(1)
        interrupt()

    monkeypatch.setattr(client, "getmany", hanging)
    monkeypatch.setattr(pipeline, "interrupt", counted)
    tasks = [asyncio.create_task(pipeline.run(stop)), asyncio.create_task(watch.run(stop))]
    try:
        records = [made(random.Random(index)) for index in range(60)]
        await stack.send([(record.partition(), record.value) for record in records[:30]])
        await stack.settled(30)
        await asyncio.sleep(8)  # bounded: idle for more than twice the stall
        assert interrupted == []
        hangs = True
        await asyncio.wait_for(is_hanging.wait(), 20)  # or the fetch that is under way would take the records
        await stack.send([(record.partition(), record.value) for record in records[30:]])

        async def is_over() -> bool:
            return await stack.row_count() == 60

        await eventually(is_over, 60, "the loop begun anew")
        assert interrupted == [1]
    finally:
        stop.set()
        await asyncio.wait(tasks, timeout=10)
        await pipeline.close()
        await erasures.close()
        await client.stop()
