"""Replay beside the live tables: shadow tables are filled from the topic, compared, and swapped in by one transaction.

Live consumers go on all the while, and across the swap. Until the swap commits nothing live is touched, so a
rebuild may be killed at any moment; it is resumed or aborted later.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from consumer.operations.operation import REBUILD_LOCK, Operation, Refused, say
from consumer.pipeline import positions
from consumer.pipeline.batch import engine_of
from consumer.pipeline.loop import Pipeline
from consumer.pipeline.peek import peek_with
from consumer.pipeline.records.record_batches import take_record_batches
from consumer.pipeline.writer import Writer
from consumer.rebuild.compare import Day, carry_over, compare, keep_known_ids, note_unseen, unexplained
from consumer.rebuild.kept import dependants, refuse_what_would_be_lost
from consumer.rebuild.shadow import (
    GENERATION,
    OLD,
    SHADOW,
    STALLED,
    copy_indexes,
    lines,
    make_partitions,
    own_as_live,
    shadow_ddl,
)
from consumer.rebuild.swap import swap
from consumer.store.dead_letters import Breaker
from consumer.store.ledger import LIVE, Ledger
from consumer.store.partitions import interval_of
from consumer.store.schema import ANALYTICS_TABLES
from consumer.store.suppressions_topic import Topic as SuppressionsTopic
from shared.broker import RebalanceCount, new_consumer
from shared.lifecycle import stop_within
from shared.probes import Health

STALLED_S = 120.0
LINGER_MS = 10  # writers stand still in the swap until the last records have come through
CLOSE_ENOUGH_RECORDS = 20_000  # behind the live lines, for the comparison to begin


@dataclass(frozen=True, slots=True)
class Choices:
    """`rate` is records a second, 0 for no limit."""

    resume: bool = False
    dry_run: bool = False
    only_topic: bool = False
    accept_unexplained: bool = False
    rate: float = 20_000


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild found and did. `blocked_ms`: how long writers stood still in the swap."""

    records: int = 0
    seconds: float = 0
    differing: list[Day] = field(default_factory=list)
    carried_over: dict[str, int] = field(default_factory=dict)
    unexplained: dict[str, int] = field(default_factory=dict)
    swapped: bool = False
    blocked_ms: float | None = None


Progress = Callable[[int, int], None]  # settled, of how many


async def rebuild(operation: Operation, choices: Choices, progress: Progress) -> Rebuilt:
    """Fill, catch up, compare, swap.

    Raises:
        Refused: another rebuild is under way, or something must be decided first; nothing live was touched.
        BrokerUnavailable, DatabaseUnavailable: resume later.
    """
    started_at = time.monotonic()
    result = Rebuilt()
    await _take_turn(operation)
    await (_check_resumable(operation) if choices.resume else _start(operation))
    async with _feeding(operation, choices.rate):
        say("filling the new tables from the topic")
        await _caught_up(operation, progress)
        say("adding indexes and statistics")
        await copy_indexes(operation)
        for table in ANALYTICS_TABLES:
            await operation.database.execute(f"ANALYZE {SHADOW}.{table}")
        say("comparing with the live tables")
        await note_unseen(operation)
        await keep_known_ids(operation)
        if not choices.only_topic:
            result.carried_over = await carry_over(operation)
        result.unexplained = await unexplained(operation, but_older=choices.only_topic)
        result.differing = await compare(operation)
        if not choices.dry_run and (choices.accept_unexplained or not sum(result.unexplained.values())):
            say("swapping")
            result.blocked_ms = await swap(operation)
            result.swapped = True
        result.records = await _settled(operation, LIVE if result.swapped else GENERATION)
    if choices.dry_run:
        await abort(operation)
    result.seconds = time.monotonic() - started_at
    return result


async def abort(operation: Operation) -> None:
    """Drop the shadow tables and their lines. Idempotent; nothing live is touched."""
    await _take_turn(operation)
    async with operation.database.transaction():
        await operation.database.execute(
            "DELETE FROM ingest.partition_offsets WHERE generation = $1 AND topic = $2", GENERATION, operation.topic
        )
        await operation.database.execute(f"DROP SCHEMA IF EXISTS {SHADOW} CASCADE")


async def old_described(operation: Operation) -> str:
    """What `drop_old` would drop, in words."""
    if not await _has_schema(operation, OLD):
        return "there are no old tables"
    counts = [
        f"{await operation.database.fetchval(f'SELECT count(*) FROM {OLD}.{table}')} rows of {OLD}.{table}"  # noqa: S608  our own names
        for table in ANALYTICS_TABLES
    ]
    return "would be dropped: " + ", ".join(counts)


async def drop_old(operation: Operation) -> None:
    """Drop the tables that the last swap replaced. Idempotent.

    Raises:
        Refused: something outside uses them, and would be dropped with them.
    """
    if used := await dependants(operation, OLD):
        raise Refused(
            f"{', '.join(used)} would be dropped with the old tables: drop it first, or bind it to the new ones"
        )
    await operation.database.execute(f"DROP SCHEMA IF EXISTS {OLD} CASCADE")


# ---- start


async def _take_turn(operation: Operation) -> None:
    if not await operation.database.fetchval("SELECT pg_try_advisory_lock($1)", REBUILD_LOCK):
        raise Refused("another rebuild, a rewind, or a redrive of dead letters is running: wait for its end")


async def _has_schema(operation: Operation, name: str) -> bool:
    return bool(await operation.database.fetchval("SELECT to_regnamespace($1) IS NOT NULL", name))


async def _check_resumable(operation: Operation) -> None:
    if not await _has_schema(operation, SHADOW):
        raise Refused("there is no rebuild to resume")


async def _start(operation: Operation) -> None:
    """Shadow tables from the models, and a line for each partition at its first offset; only here are they begun."""
    if await _has_schema(operation, SHADOW):
        raise Refused("a rebuild was interrupted: add --resume to go on, or --abort to drop it")
    if await _has_schema(operation, OLD):
        raise Refused("the tables of the last rebuild are still kept: drop them first, with --drop-old")
    await refuse_what_would_be_lost(operation)
    identity = await positions.identity_of(operation.kafka, operation.topic)
    partitions = await operation.partitions()
    first = await operation.kafka.beginning_offsets(operation.places(partitions))
    async with operation.database.transaction():
        await operation.database.execute(f"CREATE SCHEMA {SHADOW}")
        for statement in shadow_ddl():
            await operation.database.execute(statement)
        await own_as_live(operation)
        await make_partitions(operation)
        await Ledger(operation.topic, GENERATION).begin(
            operation.database, identity, {place.partition: offset for place, offset in first.items()}
        )


# ---- fill


@asynccontextmanager
async def _feeding(operation: Operation, rate: float) -> AsyncIterator[None]:
    """The shadow's own reader and writer, the same as the live ones, at a bounded rate."""
    settings = operation.settings
    consumer = new_consumer(settings, group=None)
    await consumer.start()
    take_record_batches(consumer)
    consumer.assign(operation.places(await operation.partitions()))
    ledger = Ledger(operation.topic, GENERATION)
    erasures = SuppressionsTopic(settings)
    engine = engine_of(settings.engine)
    pipeline = Pipeline(
        consumer=consumer,
        rebalances=RebalanceCount(lambda: None),
        ledger=ledger,
        engine=engine,
        writer=Writer(
            database_url=settings.database_url,
            application_name="telemetry-rebuild",
            ledger=ledger,
            breaker=Breaker(max_ratio=1, window=1),
            retention_days=settings.retention_days,
            interval=interval_of(settings.partition_interval, retention_days=settings.retention_days),
            engine=engine,
            schema=SHADOW,
        ),
        suppressions=erasures,
        peek=peek_with(settings),
        health=Health(),
        batch_rows=min(settings.consumer_batch_rows, max(100, int(rate) // 4))
        if rate
        else settings.consumer_batch_rows,
        linger_ms=min(LINGER_MS, settings.consumer_linger_ms),
        pace=_pace(rate),
    )
    stop = asyncio.Event()
    feeding = asyncio.create_task(pipeline.run(stop), name="rebuild")
    try:
        yield
    finally:
        stop.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(feeding), 30)
        feeding.cancel()
        await asyncio.wait([feeding])
        await pipeline.close()
        await erasures.close()
        await stop_within(consumer.stop(), 5)


def _pace(rate: float) -> Callable[[int], Awaitable[None]]:
    next_at = time.monotonic()

    async def pace(records: int) -> None:
        nonlocal next_at
        if rate:
            next_at = max(next_at, time.monotonic()) + records / rate
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))

    return pace


async def _settled(operation: Operation, generation: str) -> int:
    """How many records of the topic have a fate in these tables."""
    found = await operation.database.fetchval(
        """
        SELECT coalesce(sum(next_offset - first_offset), 0) FROM ingest.partition_offsets
        WHERE generation = $1 AND topic = $2
        """,
        generation,
        operation.topic,
    )
    return int(found)


async def _caught_up(operation: Operation, progress: Progress) -> None:
    """Until the shadow is close behind the live lines."""
    last, moved_at = -1, time.monotonic()
    while True:
        live, shadow = await lines(operation, LIVE), await lines(operation, GENERATION)
        if added := set(live) - set(shadow):
            raise Refused(f"partitions {sorted(added)} were added since the start: --abort, and begin again")
        if not shadow:
            raise Refused("this rebuild was aborted meanwhile")
        settled = await _settled(operation, GENERATION)
        behind = sum(max(0, offset - shadow[partition]) for partition, offset in live.items())
        progress(settled, settled + behind)
        if behind <= CLOSE_ENOUGH_RECORDS:
            return
        if settled != last:
            last, moved_at = settled, time.monotonic()
        elif time.monotonic() - moved_at > STALLED_S:
            raise Refused(STALLED)
        await asyncio.sleep(0.5)
