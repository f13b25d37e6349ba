"""Composition root: settings -> clients -> loop. The service is constructed here; its commands are in cli."""

import asyncio
import math
import os
import sys
from collections.abc import Sequence

import prometheus_client
import structlog
import typer
import uvloop
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from consumer import metrics
from consumer.cli.commands import app, main
from consumer.pipeline.batch import engine_of
from consumer.pipeline.loop import Pipeline, Share
from consumer.pipeline.monitor import Monitor
from consumer.pipeline.peek import peek_with
from consumer.pipeline.records.record_batches import take_record_batches
from consumer.pipeline.writer import Writer
from consumer.settings import ConsumerSettings
from consumer.store.dead_letters import Breaker
from consumer.store.erasures import carry_out_pending
from consumer.store.ledger import Ledger
from consumer.store.partitions import interval_of, keep_partitions_ahead
from consumer.store.retain import retain_now_and_then
from consumer.store.rollups import keep_rolled_up
from consumer.store.suppressions_topic import Topic as SuppressionsTopic
from shared import lifecycle, logs, probes
from shared.broker import RebalanceCount, ensure_topics, new_consumer
from shared.errors import BrokerUnavailable, WrongSetting, WrongTopic
from shared.logs import error_facts
from shared.output import Version, lay_out_help
from shared.settings import described, load

__all__ = ["app", "main"]

log = structlog.get_logger("consumer")

START_TIMEOUT_S = 30.0
YOUNG_OBJECTS = 400_000  # above the six a record of four batches in flight, which a collection would look at in vain
STOP_GRACE_S = 5.0  # for what is under way; with STOP_TIMEOUT_S, and a second for each cut, below the 15 s promised
STOP_TIMEOUT_S = 5.0


@app.callback(invoke_without_command=True)
def default(context: typer.Context, *, version: Version = False) -> None:  # noqa: ARG001  its callback answers
    """Store Kafka's events as rows in Postgres, and their offsets in the same transaction. Without a command: run.

    Examples: python -m consumer
              python -m consumer status --json
    """
    if context.invoked_subcommand is None:
        run()


@app.command()
def run() -> None:
    """Run the service, which is the default. Settings come from the environment: see docs/settings.md.

    Example: KAFKA_BOOTSTRAP_SERVERS=kafka:9092 python -m consumer run
    """
    settings = load(ConsumerSettings)
    logs.configure(settings.log_level, process="consumer", log_format=settings.log_format)
    log.info("settings_loaded", **described(settings))
    sys.exit(uvloop.run(serve(settings)))


async def serve(settings: ConsumerSettings) -> int:
    """Consume until SIGTERM; the process's exit code. Ends within 15 s with broker and database dead."""
    stop = lifecycle.stop_event()
    state = probes.Health("broker", "database")
    try:
        stop_probes = probes.serve(
            state,
            host=settings.metrics_host,
            port=settings.consumer_metrics_port,
            registry=lambda: prometheus_client.REGISTRY,
        )
    except OSError as error:
        raise WrongSetting(
            f"CONSUMER_METRICS_PORT {settings.consumer_metrics_port} on METRICS_HOST {settings.metrics_host} cannot be "
            f"used: {os.strerror(error.errno or 0)}"
        ) from error
    async with lifecycle.background(lifecycle.heartbeat(state.beat), "heartbeat"):
        try:
            await _consume(settings, state, stop)
        finally:
            stop_probes()
    log.info("consumer_stopped")
    return 0


async def _consume(settings: ConsumerSettings, state: probes.Health, stop: asyncio.Event) -> None:
    rebalances = RebalanceCount(metrics.rebalances.inc)
    joined = await _joined(settings, rebalances, state, stop)
    if joined is None:
        return
    consumer, retention_ms = joined
    ledger = Ledger(settings.kafka_topic)
    interval = interval_of(settings.partition_interval, retention_days=settings.retention_days)
    erasures = SuppressionsTopic(settings)
    breaker = Breaker(max_ratio=settings.dead_letter_max_ratio, window=settings.dead_letter_window)
    engine = engine_of(settings.engine)
    metrics.engine_info.labels(engine.name).set(1)
    for table in engine.unknown_tables:
        log.warning("table_left_to_reference", table=table)
    pipelines = [
        Pipeline(
            consumer=consumer,
            rebalances=rebalances,
            ledger=ledger,
            engine=engine,
            writer=Writer(
                database_url=settings.database_url,
                application_name="telemetry-consumer",
                ledger=ledger,
                breaker=breaker,
                retention_days=settings.retention_days,
                interval=interval,
                engine=engine,
            ),
            suppressions=erasures,
            peek=peek_with(settings),
            health=state,
            batch_rows=settings.consumer_batch_rows,
            linger_ms=settings.consumer_linger_ms,
            share=Share(index, settings.consumer_writers),
        )
        for index in range(settings.consumer_writers)
    ]
    monitor = Monitor(
        consumer=consumer,
        pipelines=pipelines,
        ledger=ledger,
        health=state,
        database_url=settings.database_url,
        peek=peek_with(settings),
        suppressions=erasures,
        retention_s=retention_ms / 1000 if retention_ms >= 0 else math.inf,
    )
    lifecycle.spare_garbage_collector(young_objects=YOUNG_OBJECTS)
    log.info("consumer_started", topic=settings.kafka_topic, group=settings.kafka_consumer_group, engine=engine.name)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(monitor.run(stop), name="monitor")]
            tasks += [group.create_task(pipeline.run(stop), name="pipeline") for pipeline in pipelines]
            ahead = keep_partitions_ahead(settings.database_url, interval=interval, stop=stop)
            tasks.append(group.create_task(ahead, name="partitions"))
            tasks.append(group.create_task(carry_out_pending(settings.database_url, stop), name="erase"))
            tasks.append(group.create_task(keep_rolled_up(settings.database_url, stop), name="rollups"))
            if settings.retention_days:
                retaining = retain_now_and_then(settings.database_url, days=settings.retention_days, stop=stop)
                tasks.append(group.create_task(retaining, name="retain"))
            await stop.wait()
            state.block("stopping", "SIGTERM")
            log.info("consumer_stopping")
            await _wound_up(tasks, pipelines)
    finally:
        leaving = lifecycle.stop_within(consumer.stop(), STOP_TIMEOUT_S)
        has_left, *_ = await asyncio.gather(leaving, erasures.close(), *(pipeline.close() for pipeline in pipelines))
        if not has_left:
            log.warning("group_left_uncleanly")


async def _wound_up(tasks: Sequence[asyncio.Task[None]], pipelines: Sequence[Pipeline]) -> None:
    """Let the batches under way end; cut off what waits for a frozen server: the ledger tells what became of it."""
    _, hanging = await asyncio.wait(tasks, timeout=STOP_GRACE_S)
    if not hanging:
        return
    log.warning("stop_forced", tasks=sorted(task.get_name() for task in hanging))
    await asyncio.gather(*(pipeline.close() for pipeline in pipelines))  # or a rollback would wait like the write
    for task in hanging:
        task.cancel()
    await asyncio.wait(hanging, timeout=1)


async def _joined(
    settings: ConsumerSettings, rebalances: RebalanceCount, state: probes.Health, stop: asyncio.Event
) -> tuple[AIOKafkaConsumer, int] | None:
    """A member of the group, however long Kafka is down, and the topic's retention; None when `stop` came first."""
    attempt = 0
    while not stop.is_set():
        consumer = new_consumer(settings, group=settings.kafka_consumer_group)
        consumer.subscribe([settings.kafka_topic], listener=rebalances)
        try:
            topics = await ensure_topics(settings, joins_group=True)
            for topic, state_of in topics.items():
                for name, actual, expected in state_of.differing:
                    log.warning("topic_differs", topic=topic, setting=name, actual=actual, expected=expected)
            await asyncio.wait_for(consumer.start(), START_TIMEOUT_S)
        except (BrokerUnavailable, WrongTopic, KafkaError, OSError, TimeoutError) as error:
            state.block("group", f"not joined: {error if isinstance(error, WrongTopic) else type(error).__name__}")
            log.warning("broker_awaited", attempt=attempt, **error_facts(error))
            await lifecycle.stop_within(consumer.stop(), STOP_TIMEOUT_S)
            await lifecycle.sleep_or_stop(stop, lifecycle.backoff_s(attempt, first_s=0.5))
            attempt += 1
            continue
        take_record_batches(consumer)
        state.unblock("group")
        return consumer, topics[settings.kafka_topic].retention_ms
    return None


lay_out_help(app)

if __name__ == "__main__":
    main()
