"""A rebuild's verdict: which live rows the topic does not explain, which are older than it, and what differs."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from consumer.operations.operation import Operation, Refused
from consumer.pipeline.peek import peek_with
from consumer.rebuild.shadow import SHADOW, STALLED, lines, reached
from consumer.store.ledger import LIVE
from consumer.store.schema import ANALYTICS_TABLES, KEPT_COLUMNS, KEY, from_microseconds


@dataclass(frozen=True, slots=True)
class Day:
    """One table's day, live and rebuilt, where they differ: rows, and a checksum over all columns."""

    table: str
    day: str
    live_rows: int
    rebuilt_rows: int


async def note_unseen(operation: Operation) -> None:
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
        offsets = await lines(operation, LIVE)
        for table in ANALYTICS_TABLES:
            await operation.database.execute(
                f"""
                INSERT INTO unseen
                SELECT '{table}', live.id,
                    ('x' || right(replace(live.id::text, '-', ''), 8))::bit(32)::bigint % {partitions}, live.timestamp
                FROM public.{table} AS live LEFT JOIN {SHADOW}.{table} AS shadow USING ({", ".join(KEY)})
                WHERE shadow.id IS NULL
                """  # noqa: S608  our own names
            )
    if not await reached(operation, offsets, timeout_s=600):
        raise Refused(STALLED)


async def _first_times(operation: Operation) -> dict[int, datetime]:
    """The record time of the first record that each partition still has; the end of time where it has none."""
    places = operation.places(await operation.partitions())
    first = await operation.kafka.beginning_offsets(places)
    end = await operation.kafka.end_offsets(places)
    found = await peek_with(operation.settings)({place: first[place] for place in places if first[place] < end[place]})
    never = datetime.max.replace(tzinfo=UTC)
    records = {place.partition: found.get(place) for place in places}
    return {
        partition: from_microseconds(record.timestamp * 1000) if record else never
        for partition, record in records.items()
    }


async def carry_over(operation: Operation) -> dict[str, int]:
    """Live rows from before the topic's reach, neither suppressed nor expired."""
    times = await _first_times(operation)
    expired_until = _expired_until(operation)
    carried = {}
    for name, table in ANALYTICS_TABLES.items():
        columns = ", ".join(column.name for column in table.columns)
        status = await operation.database.execute(
            f"""
            INSERT INTO {SHADOW}.{name} ({columns})
            SELECT {columns} FROM public.{name} AS live
            WHERE ({", ".join(KEY)}) IN (
                SELECT unseen.id, unseen.timestamp FROM unseen
                JOIN unnest($1::int[], $2::timestamptz[]) AS reach (partition, first_time) USING (partition)
                WHERE unseen.name = '{name}' AND unseen.timestamp < reach.first_time
            )
            AND ($3::timestamptz IS NULL OR live.timestamp >= $3)
            AND NOT EXISTS (
                SELECT 1 FROM ingest.suppressions AS erased WHERE live.timestamp <= erased.erased_at
                AND (erased.kind, erased.hash) IN (('user', live.user_id), ('organization', live.organization_id))
            )
            ON CONFLICT ({", ".join(KEY)}) DO NOTHING
            """,  # noqa: S608  our own names
            list(times.keys()),
            list(times.values()),
            expired_until,
        )
        carried[name] = int(status.rpartition(" ")[2])
    return carried


async def keep_known_ids(operation: Operation) -> None:
    """Where the topic still has a later version of a span but not the one that told an id, the live row knows it."""
    for name, table in ANALYTICS_TABLES.items():
        kept = [column.name for column in table.columns if column.name in KEPT_COLUMNS and column.nullable]
        await operation.database.execute(
            f"""
            UPDATE {SHADOW}.{name} AS shadow
            SET ({", ".join(kept)}) = ROW({", ".join(f"coalesce(shadow.{column}, live.{column})" for column in kept)})
            FROM public.{name} AS live
            WHERE (live.id, live.timestamp) = (shadow.id, shadow.timestamp)
                AND ({" OR ".join(f"shadow.{column} IS NULL AND live.{column} IS NOT NULL" for column in kept)})
            """  # noqa: S608  our own names
        )


def _expired_until(operation: Operation) -> datetime | None:
    days = operation.settings.retention_days
    return datetime.now(UTC) - timedelta(days=days) if days else None


async def unexplained(operation: Operation, *, but_older: bool) -> dict[str, int]:
    """Live rows that neither the topic nor the carrying over has brought into the shadow.

    `but_older` leaves out those from before the topic's reach: for a rebuild that does not carry them over.
    """
    times = await _first_times(operation) if but_older else {}
    counts = {}
    for name in ANALYTICS_TABLES:
        counts[name] = await operation.database.fetchval(
            f"""
            SELECT count(*) FROM unseen JOIN public.{name} AS live USING ({", ".join(KEY)})
            LEFT JOIN {SHADOW}.{name} AS shadow USING ({", ".join(KEY)})
            LEFT JOIN unnest($2::int[], $3::timestamptz[]) AS reach (partition, first_time)
                ON reach.partition = unseen.partition
            WHERE unseen.name = '{name}' AND shadow.id IS NULL
                AND (reach.first_time IS NULL OR unseen.timestamp >= reach.first_time)
                AND ($1::timestamptz IS NULL OR live.timestamp >= $1)
                AND NOT EXISTS (
                    SELECT 1 FROM ingest.suppressions AS erased WHERE live.timestamp <= erased.erased_at
                    AND (erased.kind, erased.hash) IN (('user', live.user_id), ('organization', live.organization_id))
                )
            """,  # noqa: S608  our own names
            _expired_until(operation),
            list(times.keys()),
            list(times.values()),
        )
    return counts


async def compare(operation: Operation) -> list[Day]:
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
