"""Replay beside the live tables: shadow tables are filled from the topic, compared, and swapped in at one stroke.

Live consumers go on all the while, and across the swap. Until the swap commits nothing live is touched, so a
rebuild may be killed at any moment; it is resumed or aborted later.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from sqlalchemy import MetaData
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable, SetColumnComment, SetTableComment

from consumer import positions, suppressions
from consumer.dead_letters import Breaker
from consumer.ledger import LIVE, Ledger
from consumer.operation import Operation, Refused, say
from consumer.pipeline import Pipeline
from consumer.tables import ANALYTICS_TABLES, FATES
from consumer.writer import Writer
from shared.broker import RebalanceCount, new_consumer
from shared.lifecycle import ended
from shared.probes import Health

SHADOW, OLD = "rebuild", "before_rebuild"
GENERATION = "rebuild"
ADVISORY_LOCK = 0x7E1E_0001  # one rebuild at a time
CLOSE_ENOUGH_RECORDS = 20_000  # behind the live lines, for the comparison to begin
SWAP_LOCK_TIMEOUT_S = 2.0
SWAP_WAIT_S = 3.0
SWAP_ATTEMPTS = 10
_dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Choices:
    """`rate` is records a second, 0 for no limit."""

    resume: bool = False
    dry_run: bool = False
    only_topic: bool = False
    accept_unexplained: bool = False
    rate: float = 20_000


@dataclass(frozen=True, slots=True)
class Day:
    """One table's day, live and rebuilt, where they differ: rows, and a checksum over all columns."""

    table: str
    day: str
    live_rows: int
    rebuilt_rows: int


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
        result.records = await _caught_up(operation, progress)
        for table in ANALYTICS_TABLES:
            await operation.database.execute(f"ANALYZE {SHADOW}.{table}")
        await _note_unseen(operation)
        if not choices.only_topic:
            result.carried_over = await _carry_over(operation)
        result.unexplained = await _unexplained(operation)
        result.differing = await _compare(operation)
        if sum(result.unexplained.values()) and not choices.accept_unexplained and not choices.dry_run:
            result.seconds = time.monotonic() - started_at
            return result
        if not choices.dry_run:
            result.blocked_ms = await _swap(operation)
            result.swapped = True
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


async def drop_old(operation: Operation) -> None:
    """Drop the tables that the last swap replaced. Idempotent."""
    await operation.database.execute(f"DROP SCHEMA IF EXISTS {OLD} CASCADE")


# ---- start


async def _take_turn(operation: Operation) -> None:
    if not await operation.database.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
        raise Refused("another rebuild is running")


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
    await _refuse_what_would_be_lost(operation)
    identity = await positions.identity_of(operation.kafka, operation.topic)
    partitions = await operation.partitions()
    first = await operation.kafka.beginning_offsets(operation.places(partitions))
    async with operation.database.transaction():
        await operation.database.execute(f"CREATE SCHEMA {SHADOW}")
        for statement in _shadow_ddl():
            await operation.database.execute(statement)
        await Ledger(operation.topic, GENERATION).begin(
            operation.database, identity, {place.partition: offset for place, offset in first.items()}
        )


def _shadow_ddl() -> list[str]:
    """The models' tables, indexes and comments in the shadow schema, under the names that they have when live."""
    shadow = MetaData()
    statements: list[Any] = []
    for live in ANALYTICS_TABLES.values():
        table = live.to_metadata(shadow, schema=SHADOW)
        statements += [CreateTable(table), *map(CreateIndex, table.indexes), SetTableComment(table)]
        statements += [SetColumnComment(column) for column in table.columns]
    return [
        str(statement.compile(dialect=_dialect, compile_kwargs={"literal_binds": True})) for statement in statements
    ]


async def _refuse_what_would_be_lost(operation: Operation) -> None:
    """A swap keeps grants, comments and views. What it cannot keep, a person must take away and put back."""
    found = await operation.database.fetch(
        """
        SELECT 'trigger ' || tgname AS what FROM pg_trigger
            WHERE NOT tgisinternal
            AND tgrelid = ANY (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) AS name)
        UNION ALL SELECT 'publication ' || pubname FROM pg_publication_tables
            WHERE schemaname = 'public' AND tablename = ANY ($1::text[])
        UNION ALL SELECT 'materialized view ' || view.relname FROM pg_class AS view
            JOIN pg_rewrite AS rule ON rule.ev_class = view.oid JOIN pg_depend AS depends ON depends.objid = rule.oid
            WHERE view.relkind = 'm' AND depends.refobjid
                = ANY (SELECT to_regclass('public.' || name)::oid FROM unnest($1::text[]) AS name)
        """,
        list(ANALYTICS_TABLES),
    )
    if found:
        names = ", ".join(sorted({row["what"] for row in found}))
        raise Refused(f"a swap would lose {names}: drop it, rebuild, and create it again")


# ---- fill


@asynccontextmanager
async def _feeding(operation: Operation, rate: float) -> AsyncIterator[None]:
    """The shadow's own reader and writer, the same as the live ones, at a bounded rate."""
    settings = operation.settings
    consumer = new_consumer(settings, group=None)
    await consumer.start()
    consumer.assign(operation.places(await operation.partitions()))
    ledger = Ledger(operation.topic, GENERATION)
    erasures = suppressions.Topic(settings)
    pipeline = Pipeline(
        consumer=consumer,
        rebalances=RebalanceCount(lambda: None),
        ledger=ledger,
        writer=Writer(
            database_url=settings.database_url,
            application_name="telemetry-rebuild",
            ledger=ledger,
            breaker=Breaker(max_ratio=1, window=1),
            retention_days=settings.retention_days,
            schema=SHADOW,
        ),
        suppressions=erasures,
        peek=positions.peek_with(settings),
        health=Health(),
        batch_rows=min(settings.consumer_batch_rows, max(100, int(rate) // 4))
        if rate
        else settings.consumer_batch_rows,
        linger_ms=settings.consumer_linger_ms,
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
        await ended(consumer.stop(), 5)


def _pace(rate: float) -> Callable[[int], Awaitable[None]]:
    next_at = time.monotonic()

    async def pace(records: int) -> None:
        nonlocal next_at
        if rate:
            next_at = max(next_at, time.monotonic()) + records / rate
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))

    return pace


async def _lines(operation: Operation, generation: str) -> dict[int, int]:
    rows = await operation.database.fetch(
        "SELECT partition, next_offset FROM ingest.partition_offsets WHERE generation = $1 AND topic = $2",
        generation,
        operation.topic,
    )
    return {row["partition"]: row["next_offset"] for row in rows}


async def _caught_up(operation: Operation, progress: Progress) -> int:
    """Until the shadow is close behind the live lines; how many records it has settled."""
    first = await operation.database.fetch(
        "SELECT partition, first_offset FROM ingest.partition_offsets WHERE generation = $1 AND topic = $2",
        GENERATION,
        operation.topic,
    )
    begun_at = {row["partition"]: row["first_offset"] for row in first}
    while True:
        live, shadow = await _lines(operation, LIVE), await _lines(operation, GENERATION)
        if added := set(live) - set(shadow):
            raise Refused(f"partitions {sorted(added)} were added since the start: --abort, and begin again")
        if not shadow:
            raise Refused("this rebuild was aborted meanwhile")
        settled: int = sum(shadow.values()) - sum(begun_at.values())
        behind = sum(max(0, offset - shadow[partition]) for partition, offset in live.items())
        progress(settled, settled + behind)
        if behind <= CLOSE_ENOUGH_RECORDS:
            return settled
        await asyncio.sleep(0.5)


async def _reached(operation: Operation, target: Mapping[int, int], timeout_s: float) -> bool:
    """Whether the shadow has come to these offsets in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        shadow = await _lines(operation, GENERATION)
        if all(shadow.get(partition, -1) >= offset for partition, offset in target.items()):
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)


# ---- compare


async def _note_unseen(operation: Operation) -> None:
    """Note the live rows that the shadow has not, as of one snapshot, and wait until it has come as far.

    A snapshot's rows and offsets belong together, for they commit together. So once the shadow has come to
    these offsets, a row of the note that it still has not is one that the topic does not explain.
    """
    await operation.database.execute("DROP TABLE IF EXISTS pg_temp.unseen")
    await operation.database.execute(
        "CREATE TEMPORARY TABLE unseen (name text, id uuid, partition int, timestamp timestamptz)"
    )
    partitions = len(await operation.partitions())
    async with operation.database.transaction(isolation="repeatable_read"):
        offsets = await _lines(operation, LIVE)
        for table in ANALYTICS_TABLES:
            await operation.database.execute(
                f"""
                INSERT INTO unseen
                SELECT '{table}', live.id,
                    ('x' || right(replace(live.id::text, '-', ''), 8))::bit(32)::bigint % {partitions}, live.timestamp
                FROM public.{table} AS live LEFT JOIN {SHADOW}.{table} AS shadow USING (id) WHERE shadow.id IS NULL
                """  # noqa: S608  our own names
            )
    if not await _reached(operation, offsets, timeout_s=600):
        raise Refused("the rebuild does not get on: is Kafka well? --resume goes on")


async def _first_times(operation: Operation) -> dict[int, datetime]:
    """The record time of the first record that each partition still has; the end of time where it has none."""
    peek = positions.peek_with(operation.settings)
    places = operation.places(await operation.partitions())
    first = await operation.kafka.beginning_offsets(places)
    end = await operation.kafka.end_offsets(places)
    times = {}
    for place in places:
        record = await peek(place, first[place]) if first[place] < end[place] else None
        times[place.partition] = (
            suppressions.at(record.timestamp * 1000) if record else datetime.max.replace(tzinfo=UTC)
        )
    return times


async def _carry_over(operation: Operation) -> dict[str, int]:
    """Live rows from before the topic's reach, neither suppressed nor expired."""
    times = await _first_times(operation)
    days = operation.settings.retention_days
    expired_until = datetime.now(UTC) - timedelta(days=days) if days else None
    carried = {}
    for name, table in ANALYTICS_TABLES.items():
        columns = ", ".join(column.name for column in table.columns)
        status = await operation.database.execute(
            f"""
            INSERT INTO {SHADOW}.{name} ({columns})
            SELECT {columns} FROM public.{name} AS live
            WHERE id IN (
                SELECT unseen.id FROM unseen
                JOIN unnest($1::int[], $2::timestamptz[]) AS reach (partition, first_time) USING (partition)
                WHERE unseen.name = '{name}' AND unseen.timestamp < reach.first_time
            )
            AND ($3::timestamptz IS NULL OR live.timestamp >= $3)
            AND NOT EXISTS (
                SELECT 1 FROM ingest.suppressions AS erased WHERE live.timestamp <= erased.erased_at
                AND (erased.kind, erased.hash) IN (('user', live.user_id), ('organization', live.organization_id))
            )
            ON CONFLICT (id) DO NOTHING
            """,  # noqa: S608  our own names
            list(times.keys()),
            list(times.values()),
            expired_until,
        )
        carried[name] = int(status.rpartition(" ")[2])
    return carried


async def _unexplained(operation: Operation) -> dict[str, int]:
    """Live rows that neither the topic nor the carrying over has brought into the shadow."""
    counts = {}
    for name in ANALYTICS_TABLES:
        counts[name] = await operation.database.fetchval(
            f"""
            SELECT count(*) FROM unseen JOIN public.{name} AS live USING (id)
            LEFT JOIN {SHADOW}.{name} AS shadow USING (id) WHERE unseen.name = '{name}' AND shadow.id IS NULL
                AND NOT EXISTS (
                    SELECT 1 FROM ingest.suppressions AS erased WHERE live.timestamp <= erased.erased_at
                    AND (erased.kind, erased.hash) IN (('user', live.user_id), ('organization', live.organization_id))
                )
            """  # noqa: S608  our own names
        )
    return counts


async def _compare(operation: Operation) -> list[Day]:
    """The days on which a table's rows differ, by count or by a checksum over all columns. Late rows may differ."""
    differing = []
    for name, table in ANALYTICS_TABLES.items():
        columns = ", ".join(column.name for column in table.columns)

        def days(schema: str, name: str = name, columns: str = columns) -> str:
            return f"""
                SELECT date_trunc('day', timestamp, 'UTC') AS day, count(*) AS rows,
                    sum(hashtextextended(ROW({columns})::text, 0)::numeric) AS checksum
                FROM {schema}.{name} GROUP BY 1
            """  # noqa: S608  our own names

        rows = await operation.database.fetch(
            f"""
            SELECT day, coalesce(live.rows, 0) AS live_rows, coalesce(shadow.rows, 0) AS shadow_rows
            FROM ({days("public")}) AS live FULL JOIN ({days(SHADOW)}) AS shadow USING (day)
            WHERE (live.rows, live.checksum) IS DISTINCT FROM (shadow.rows, shadow.checksum) ORDER BY day
            """  # noqa: S608  our own names
        )
        differing += [Day(name, row["day"].date().isoformat(), row["live_rows"], row["shadow_rows"]) for row in rows]
    return differing


# ---- swap


async def _swap(operation: Operation) -> float:
    """Put the shadow in the live tables' place; how long writers stood still, in milliseconds.

    A failed attempt blocks writers for the lock timeout at most.
    """
    for attempt in range(1, SWAP_ATTEMPTS + 1):
        try:
            return await _try_swap(operation)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, _NotReached) as error:
            say(f"swap, attempt {attempt} of {SWAP_ATTEMPTS}: {type(error).__name__.strip('_')}")
            await asyncio.sleep(attempt)
    raise Refused("the tables were too busy to be swapped; nothing was changed. --resume tries again")


class _NotReached(Exception):  # noqa: N818  an attempt's outcome
    pass


async def _try_swap(operation: Operation) -> float:
    database = operation.database
    views = await _views(operation)
    grants = await _grants(operation)
    started_at = time.monotonic()
    async with database.transaction():
        await database.execute(f"SET LOCAL lock_timeout = '{int(SWAP_LOCK_TIMEOUT_S * 1000)}ms'")
        live = await _lock_lines(operation, LIVE)  # writers wait from here on
        if not await _reached(operation, live, SWAP_WAIT_S):
            raise _NotReached
        await _lock_lines(operation, GENERATION)
        await suppressions.lock(database)
        tables = ", ".join(f"{schema}.{name}" for name in ANALYTICS_TABLES for schema in ("public", SHADOW))
        await database.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
        await database.execute(f"CREATE SCHEMA {OLD}")
        for name in ANALYTICS_TABLES:
            owner = await database.fetchval(
                "SELECT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename = $1", name
            )
            await database.execute(f"ALTER TABLE public.{name} SET SCHEMA {OLD}")
            await database.execute(f"ALTER TABLE {SHADOW}.{name} SET SCHEMA public")
            await database.execute(f"ALTER TABLE public.{name} OWNER TO {_quoted(owner)}")
        for statement in (*grants, *views):
            await database.execute(statement)
        await _promote_lines(operation)
        await database.execute(f"DROP SCHEMA {SHADOW}")
    return (time.monotonic() - started_at) * 1000


async def _lock_lines(operation: Operation, generation: str) -> dict[int, int]:
    rows = await operation.database.fetch(
        """
        SELECT partition, next_offset FROM ingest.partition_offsets
        WHERE generation = $1 AND topic = $2 ORDER BY partition FOR UPDATE
        """,
        generation,
        operation.topic,
    )
    return {row["partition"]: row["next_offset"] for row in rows}


async def _promote_lines(operation: Operation) -> None:
    """The live lines end, and the shadow's go on as the live ones, an epoch later: so live consumers load anew."""
    columns = ", ".join(
        (
            "generation",
            "topic",
            "partition",
            "topic_id",
            "epoch",
            "first_offset",
            "next_offset",
            *FATES,
            "last_record_hash",
        )
    )
    await operation.database.execute(
        f"""
        WITH ended AS (
            DELETE FROM ingest.partition_offsets WHERE generation = $1 AND topic = $2 RETURNING *
        )
        INSERT INTO ingest.ledger_history ({columns}, reason) SELECT {columns}, 'replaced by a rebuild' FROM ended
        """,  # noqa: S608  our own names
        LIVE,
        operation.topic,
    )
    await operation.database.execute(
        """
        UPDATE ingest.partition_offsets AS line SET generation = $1, epoch = 1 + coalesce((
            SELECT max(epoch) FROM ingest.ledger_history AS past
            WHERE past.topic = line.topic AND past.partition = line.partition AND past.generation = $1
        ), 0)
        WHERE generation = $2 AND topic = $3
        """,
        LIVE,
        GENERATION,
        operation.topic,
    )


async def _views(operation: Operation) -> list[str]:
    """Statements that bind the live tables' views to the new ones; made while the old names still resolve."""
    rows = await operation.database.fetch(
        """
        SELECT DISTINCT view.oid::regclass::text AS name, pg_get_viewdef(view.oid) AS definition
        FROM pg_class AS view JOIN pg_rewrite AS rule ON rule.ev_class = view.oid
        JOIN pg_depend AS depends ON depends.objid = rule.oid
        WHERE view.relkind = 'v' AND depends.refobjid
            = ANY (SELECT to_regclass('public.' || name)::oid FROM unnest($1::text[]) AS name)
        """,
        list(ANALYTICS_TABLES),
    )
    return [f"CREATE OR REPLACE VIEW {row['name']} AS {row['definition']}" for row in rows]


async def _grants(operation: Operation) -> list[str]:
    """The live tables' grants, for the new ones."""
    rows = await operation.database.fetch(
        """
        SELECT class.relname AS name, acl.privilege_type AS privilege, acl.is_grantable,
            CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS grantee
        FROM pg_class AS class CROSS JOIN aclexplode(class.relacl) AS acl
        WHERE class.oid = ANY (SELECT to_regclass('public.' || name)::oid FROM unnest($1::text[]) AS name)
        """,
        list(ANALYTICS_TABLES),
    )
    return [
        f"GRANT {row['privilege']} ON public.{row['name']} TO {row['grantee']}"
        + (" WITH GRANT OPTION" if row["is_grantable"] else "")
        for row in rows
    ]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
