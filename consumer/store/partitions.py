"""timestamps -> partitions, made before the rows that need them. Only outliers lie in the default partition.

A partition is a month, a week or a day in UTC, shortened where it would overlap one that is there. Two functions of the
schema `ingest` make and drop them, with the rights of the tables' owner.
"""

import asyncio
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Literal, NamedTuple

import asyncpg
import structlog
from asyncpg import Connection

from consumer.store import rollups
from consumer.store.database import DATABASE_ERRORS, connect
from consumer.store.schema import ANALYTICS_TABLES, DAY_US, EPOCH, from_microseconds, to_microseconds
from shared.lifecycle import sleep_or_stop
from shared.logs import error_facts

log = structlog.get_logger("consumer.store.partitions")

IntervalName = Literal["month", "week", "day"]
EVERY_S = 3600.0
AFTER_ERROR_S = 30.0
ADVISORY_LOCK = 0x7E1E_0004  # who looks after partitions: one consumer of all
COUNTED_ROWS_MAX = 1_000_000
DROP_ATTEMPTS = 60
DROP_PAUSE_S = 0.5
MOVED_INTERVALS_MAX = 50  # out of the default partition in one go
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1

Span = tuple[datetime, datetime]  # from, to


@dataclass(frozen=True, slots=True)
class Interval:
    """`back`: how many past intervals get a partition when a row needs it; older rows go to the default partition.

    None is made for a time that is past `retention_days`; 0 is for ever.
    """

    name: IntervalName
    ahead: int
    back: int
    retention_days: int = 0

    def around(self, time: datetime) -> Span:
        """The interval that holds the time."""
        day = time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self.name == "day":
            return day, day + timedelta(days=1)
        if self.name == "week":
            monday = day - timedelta(days=day.weekday())
            return monday, monday + timedelta(days=7)
        first = day.replace(day=1)
        return first, (first + timedelta(days=31)).replace(day=1)

    def reach(self, now: datetime) -> Span:
        """The earliest and the latest time whose partitions are made on demand."""
        days = {"day": 1, "week": 7, "month": 30}[self.name] * self.back
        return now - timedelta(days=min(days, self.retention_days or days)), ahead(now, self)[-1][1]


INTERVALS = {"month": Interval("month", 2, 60), "week": Interval("week", 4, 104), "day": Interval("day", 7, 120)}


def interval_of(name: str, *, retention_days: int = 0) -> Interval:
    return replace(INTERVALS[name], retention_days=retention_days)


def ahead(now: datetime, interval: Interval) -> list[Span]:
    """The present interval and those that are made ahead of it."""
    spans = [interval.around(now)]
    for _ in range(interval.ahead):
        spans.append(interval.around(spans[-1][1]))
    return spans


class Partition(NamedTuple):
    """A partition that is not the default. Bounds in microseconds since 1970, `lower` included, `upper` not."""

    lower: int
    upper: int
    name: str
    oid: int


async def partitions_of(connection: Connection, schema: str, table: str) -> list[Partition]:
    """In the order of their bounds, without the default one."""
    rows = await connection.fetch(
        """
        SELECT pg_get_expr(leaf.relpartbound, leaf.oid) AS bound, leaf.oid,
            format('%I.%I', nsp.nspname, leaf.relname) AS name
        FROM pg_inherits JOIN pg_class AS leaf ON leaf.oid = inhrelid JOIN pg_namespace AS nsp ON nsp.oid = relnamespace
        WHERE inhparent = to_regclass($1) AND leaf.relispartition
        """,
        f"{schema}.{table}",
    )
    found = [
        Partition(_bound(bounds[1], _LOWEST), _bound(bounds[2], _HIGHEST), row["name"], row["oid"])
        for row in rows
        if (bounds := _BOUNDS.fullmatch(row["bound"]))
    ]
    return sorted(found)


_BOUNDS = re.compile(r"FOR VALUES FROM \((.*)\) TO \((.*)\)")


def _bound(text: str, unbounded: int) -> int:
    """Our connections' time zone is UTC, so that bounds are told as '2026-11-01 00:00:00+00'."""
    if text in ("MINVALUE", "MAXVALUE", "'-infinity'", "'infinity'"):
        return unbounded
    return to_microseconds(datetime.fromisoformat(text.strip("'")))


class Known:
    """The partitions of one schema's tables, as one writer knows them. Makes missing ones for its rows."""

    def __init__(self, schema: str, interval: Interval) -> None:
        self._schema = schema
        self._interval = interval
        self._partitions: dict[str, list[Partition]] = {}
        self._unmade: set[tuple[str, Span]] = set()

    async def load(self, connection: Connection) -> None:
        """Look the partitions up again; make missing default partitions, without which outliers would be refused."""
        self._unmade = set()
        for table in ANALYTICS_TABLES:
            await _attach(connection, self._schema, table, None)
            self._partitions[table] = await partitions_of(connection, self._schema, table)

    async def make_for(self, connection: Connection, table: str, times: Sequence[int]) -> None:
        """Make the partitions that rows of these times lack, within reach of now. Idempotent; not in a transaction.

        `times` are microseconds since 1970, one at least. While somebody reads the default partition none can be made:
        then rows go there, so that a long query holds up no writer, and `keep_ahead` moves them later.
        """
        first = self._at(table, min(times))
        if first is not None and max(times) < first.upper:
            return
        lowest, highest = (to_microseconds(bound) for bound in self._interval.reach(datetime.now(UTC)))
        missing = {
            self._interval.around(EPOCH + timedelta(days=day))
            for day in {time // DAY_US for time in times}  # every bound is a midnight in UTC
            if lowest <= day * DAY_US < highest and self._at(table, day * DAY_US) is None
        }
        for span in sorted(missing):
            if (table, span) not in self._unmade:
                try:
                    await self._make(connection, table, span)
                except asyncpg.LockNotAvailableError:
                    self._unmade.add((table, span))
                    log.warning("partition_put_off", table=table, lower=span[0].isoformat())

    async def _make(self, connection: Connection, table: str, span: Span) -> None:
        for lower, upper in _free(self._partitions[table], span):
            if await _attach(connection, self._schema, table, (lower, upper)):
                log.info("partition_made", table=table, lower=lower.isoformat(), upper=upper.isoformat())
        self._partitions[table] = await partitions_of(connection, self._schema, table)
        self._unmade.add((table, span))  # what is still missing of it was refused, and is not asked for again

    def _at(self, table: str, time_us: int) -> Partition | None:
        partitions = self._partitions[table]
        index = bisect_right(partitions, time_us, key=lambda partition: partition.lower) - 1
        return partitions[index] if index >= 0 and time_us < partitions[index].upper else None

    async def keep_ahead(self, connection: Connection) -> None:
        """Make the coming partitions, and move rows out of the default partition that now have one of their own."""
        now = datetime.now(UTC)
        lowest, highest = self._interval.reach(now)
        for table in ANALYTICS_TABLES:
            spans = set(ahead(now, self._interval))
            default = await connection.fetchval(
                """
                SELECT format('%I.%I', relnamespace::regnamespace, relname) FROM pg_class
                WHERE oid = (SELECT partdefid FROM pg_partitioned_table WHERE partrelid = to_regclass($1))
                """,
                f"{self._schema}.{table}",
            )
            rows = await connection.fetch(
                f"""
                SELECT DISTINCT date_trunc('day', timestamp, 'UTC') AS day FROM {default}
                WHERE timestamp >= $1 AND timestamp < $2 LIMIT 1000
                """,  # noqa: S608  our own names
                lowest,
                highest,
            )
            spans |= {self._interval.around(row["day"]) for row in rows}
            for span in sorted(spans)[-MOVED_INTERVALS_MAX:]:
                await self._make(connection, table, span)


def _free(partitions: Iterable[Partition], span: Span) -> list[Span]:
    """The parts of the span that no partition covers."""
    lower, upper = to_microseconds(span[0]), to_microseconds(span[1])
    free = []
    for partition in partitions:
        if partition.upper <= lower or partition.lower >= upper:
            continue
        if partition.lower > lower:
            free.append((lower, partition.lower))
        lower = max(lower, partition.upper)
    if lower < upper:
        free.append((lower, upper))
    return [(EPOCH + timedelta(microseconds=start), EPOCH + timedelta(microseconds=end)) for start, end in free]


async def drop_expired(connection: Connection, table: str, until: datetime) -> int:
    """Drop the live partitions that end at or before `until`; how many rows they held, above a million an estimate.

    Raises:
        asyncpg.LockNotAvailableError: the table was busy at every attempt; writers waited for 150 ms at each.
    """
    rows = 0
    for partition in await partitions_of(connection, "public", table):
        if partition.upper <= to_microseconds(until):
            rows += await _count(connection, partition)
            await _drop(connection, partition, until)
            log.info("partition_dropped", table=table, partition=partition.name)
    return rows


async def _count(connection: Connection, partition: Partition) -> int:
    estimate: float = await connection.fetchval("SELECT reltuples FROM pg_class WHERE oid = $1", partition.oid)
    if estimate > COUNTED_ROWS_MAX:
        return int(estimate)
    return int(await connection.fetchval(f"SELECT count(*) FROM {partition.name}"))  # noqa: S608  our own name


def _days(partition: Partition) -> list[date] | None:
    """The days that the partition holds; None when it has no lower bound."""
    if partition.lower == _LOWEST:
        return None
    return [from_microseconds(at).date() for at in range(partition.lower, partition.upper, DAY_US)]


async def _drop(connection: Connection, partition: Partition, until: datetime) -> None:
    for attempt in range(1, DROP_ATTEMPTS + 1):
        try:
            async with connection.transaction():
                await rollups.mark_days(connection, _days(partition))
                await connection.execute("SELECT ingest.drop_partition($1::oid::regclass, $2)", partition.oid, until)
        except asyncpg.LockNotAvailableError:
            if attempt == DROP_ATTEMPTS:
                raise
            await asyncio.sleep(DROP_PAUSE_S)
        else:
            return


async def _attach(connection: Connection, schema: str, table: str, span: Span | None) -> bool:
    """Whether it was made; False when it is there already. None is the default partition."""
    lower, upper = span or (None, None)
    made: bool = await connection.fetchval(
        "SELECT ingest.attach_partition(to_regclass($1), $2, $3)", f"{schema}.{table}", lower, upper
    )
    return made


async def copy_bounds(connection: Connection, partition: Partition, parent: str) -> None:
    """Make a partition of `parent` for the same time. Its unbounded ends become those of what a timestamp can be."""
    await connection.execute(
        """
        SELECT ingest.attach_partition(
            to_regclass($1), coalesce($2::timestamptz, '-infinity'), coalesce($3::timestamptz, 'infinity')
        )
        """,
        parent,
        None if partition.lower == _LOWEST else EPOCH + timedelta(microseconds=partition.lower),
        None if partition.upper == _HIGHEST else EPOCH + timedelta(microseconds=partition.upper),
    )


# ---- beside a consumer


async def keep_partitions_ahead(database_url: str, *, interval: Interval, stop: asyncio.Event) -> None:
    """At once and every hour, on the one consumer that gets the advisory lock."""
    while True:
        is_done = await _keep_ahead_once(database_url, interval)
        if await sleep_or_stop(stop, EVERY_S if is_done else AFTER_ERROR_S):
            return


async def _keep_ahead_once(database_url: str, interval: Interval) -> bool:
    connection = None
    try:
        connection = await connect(database_url, application_name="telemetry-partitions")
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
            known = Known("public", interval)
            await known.load(connection)
            await known.keep_ahead(connection)
    except DATABASE_ERRORS as error:
        log.warning("partitions_put_off", **error_facts(error))
        return False
    finally:
        if connection is not None:
            connection.terminate()
    return True
