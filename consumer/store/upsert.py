"""rows -> a table, set by set: fresh ones are copied straight in, others by way of a temporary table.

The straight way fails as a whole when one of the rows is there already. Then the set goes the other way,
where it is inserted or updated: sorted by key, or concurrent writers deadlock; and guarded, so that a replay
writes next to no WAL. So do the next sets, for where there was one such row there are more. What a failed copy
has written until then is WAL for nothing, so a few ids of each set are looked up before: a replay shows in them.
"""

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from operator import itemgetter
from typing import Any

import asyncpg
from sqlalchemy import Table

from consumer.pipeline.batch import Decoded, Written, partition_of
from consumer.store.database import DATABASE_ERRORS, ENCODER_ERRORS, Fate, fate_of
from consumer.store.dead_letters import DeadLetter
from consumer.store.plain_rows import PlainRows
from consumer.store.schema import ANALYTICS_TABLES, INDEX, KEPT_COLUMNS, KEY, Row

STAGED_SETS = 20  # after a row that was there already, before the straight way is tried again
SAMPLED_IDS = 16


class Upsert:
    """The statements for the tables of one schema: `public`, or that of a rebuild. One connection's own."""

    def __init__(self, schema: str, plain: PlainRows) -> None:
        self._schema = schema
        self._plain = plain
        self._staged_left = dict.fromkeys(ANALYTICS_TABLES, 0)
        self._sql = {name: _upsert_sql(schema, table) for name, table in ANALYTICS_TABLES.items()}
        self._is_any_there = {
            name: f"""
                SELECT EXISTS (
                    SELECT 1 FROM {schema}.{name} WHERE id = ANY($1::uuid[]) AND timestamp BETWEEN $2 AND $3
                )
            """  # noqa: S608  our own names
            for name in ANALYTICS_TABLES
        }

    async def store(
        self,
        connection: asyncpg.Connection,
        table: str,
        rows: Sequence[Decoded],
        written: Written,
        *,
        is_part: bool = False,
    ) -> list[DeadLetter]:
        """Upsert the rows; halve and try again when the database refuses one, until those it refuses stand alone.

        The halves keep their order, so of two versions of one row the later still wins. Gives what was refused.
        """
        try:
            new_rows = None if is_part else await self._copy_fresh(connection, table, rows)
            if new_rows is None:
                async with connection.transaction():  # a savepoint
                    if is_part:
                        await connection.execute(f"DELETE FROM stage_{table}")  # noqa: S608  our own table name
                    new_rows = await self._upsert(connection, table, rows)
        except (*DATABASE_ERRORS, *ENCODER_ERRORS) as error:
            if fate_of(error) is not Fate.POISON:
                raise
            if len(rows) == 1:
                return [DeadLetter(rows[0].record, "database_refused")]
            middle = len(rows) // 2
            refused = await self.store(connection, table, rows[:middle], written, is_part=True)
            return refused + await self.store(connection, table, rows[middle:], written, is_part=True)
        for partition, records in Counter(map(partition_of, rows)).items():
            written.count("stored", table, partition, new_rows[partition])
            written.count("duplicates", table, partition, records - new_rows[partition])
        return []

    async def _copy_fresh(
        self, connection: asyncpg.Connection, table: str, rows: Sequence[Decoded]
    ) -> Counter[int] | None:
        """How many rows are new, by partition: all. None, and nothing written, when they must go the other way."""
        if self._staged_left[table]:
            self._staged_left[table] -= 1
            return None
        latest = latest_rows(table, rows)
        sample = list(latest)[:: len(latest) // SAMPLED_IDS + 1]
        times = [timestamp_us for _, timestamp_us in sample]  # so that other partitions are not looked at
        if await connection.fetchval(self._is_any_there[table], [id_ for id_, _ in sample], min(times), max(times)):
            self._staged_left[table] = STAGED_SETS
            return None
        try:
            async with connection.transaction():  # a savepoint
                await self._copy(connection, table, [row for row, _ in latest.values()])
        except (*DATABASE_ERRORS, *ENCODER_ERRORS) as error:
            if fate_of(error) is not Fate.POISON:  # a unique violation is one, here
                raise
            self._staged_left[table] = STAGED_SETS
            return None
        return Counter(partition for _, partition in latest.values())

    async def _upsert(self, connection: asyncpg.Connection, table: str, rows: Sequence[Decoded]) -> Counter[int]:
        """How many rows are new, by partition. Of two versions of a row in `rows` the later one is written."""
        latest = latest_rows(table, rows)
        await self._copy(
            connection, table, [row for row, _ in latest.values()], [partition for _, partition in latest.values()]
        )
        times = [timestamp_us for _, timestamp_us in latest]  # so that other partitions are not looked at
        found = await connection.fetch(self._sql[table], min(times), max(times))
        return Counter({row["kafka_partition"]: row["count"] for row in found})

    async def _copy(
        self, connection: asyncpg.Connection, table: str, rows: list[Row], partitions: list[int] | None = None
    ) -> None:
        """Into the table; with `partitions`, into its stage. Columns are named: a migration may have added others."""
        is_staged = partitions is not None
        into: dict[str, Any] = {
            "table_name": f"stage_{table}" if is_staged else table,
            "schema_name": None if is_staged else self._schema,
            "columns": [*_COLUMNS[table], "kafka_partition"] if is_staged else _COLUMNS[table],
        }
        data = self._plain.copy_data(table, rows, partitions)
        if data is not None:
            await connection.copy_to_table(**into, source=BytesIO(data), format="binary")
            return
        records = [(*row, partition) for row, partition in zip(rows, partitions, strict=True)] if partitions else rows
        await connection.copy_records_to_table(**into, records=records)


Key = tuple[Any, int]  # id, timestamp in microseconds since 1970


def latest_rows(table: str, rows: Sequence[Decoded]) -> dict[Key, tuple[Row, int]]:
    """By key, the last version of each row and its partition; an id that it lacks comes from an earlier version."""
    key_of = _key_of[table]
    latest: dict[Key, tuple[Row, int]] = {key_of(each.row): (each.row, each.record.partition) for each in rows}
    if len(latest) == len(rows):
        return latest
    kept_at = _KEPT_AT[table]
    merged: dict[Key, tuple[Row, int]] = {}
    for each in rows:
        row, key = each.row, key_of(each.row)
        if earlier := merged.get(key):
            values = list(row)
            for at in kept_at:
                if values[at] is None:
                    values[at] = earlier[0][at]
            row = tuple(values)
        merged[key] = (row, each.record.partition)
    return merged


_key_of = {name: itemgetter(*(index[column] for column in KEY)) for name, index in INDEX.items()}
_KEPT_AT = {
    name: [index for index, column in enumerate(table.columns) if column.name in KEPT_COLUMNS]
    for name, table in ANALYTICS_TABLES.items()
}
_COLUMNS = {name: [column.name for column in table.columns] for name, table in ANALYTICS_TABLES.items()}


async def make_stages(connection: asyncpg.Connection) -> None:
    """A connection's own temporary copy of each table's columns, empty again after every commit."""
    for name in ANALYTICS_TABLES:
        await connection.execute(
            f"""
            CREATE TEMPORARY TABLE IF NOT EXISTS stage_{name} (LIKE public.{name}, kafka_partition int)
            ON COMMIT DELETE ROWS
            """
        )


def _upsert_sql(schema: str, table: Table) -> str:
    """New rows by partition.

    Each staged row is looked up once, by its key, which tells its partition: is_same is NULL for a new row, and true
    for one that is there just so. The latter is left out: ON CONFLICT would lock it, and a lock is written to the WAL.
    The lookup is a scalar subquery, which no plan turns into a join over all partitions; $1 and $2 are the earliest and
    the latest staged time, so that only their partitions are planned for.
    """
    columns = [column.name for column in table.columns]
    values = [name for name in columns if name not in KEY]

    def over(new: str, old: str) -> list[str]:
        """The values of a version `new` over those of `old`."""
        return [f"coalesce({new}.{name}, {old}.{name})" if name in KEPT_COLUMNS else f"{new}.{name}" for name in values]

    return f"""
        WITH looked_up AS MATERIALIZED (
            SELECT stage.*, (
                SELECT ({", ".join(f"same.{name}" for name in values)})
                    IS NOT DISTINCT FROM ({", ".join(over("stage", "same"))})
                FROM {schema}.{table.name} AS same
                WHERE same.id = stage.id AND same.timestamp = stage.timestamp
                    AND same.timestamp BETWEEN $1::timestamptz AND $2::timestamptz
            ) AS is_same
            FROM stage_{table.name} AS stage
        ), written AS (
            INSERT INTO {schema}.{table.name} AS live ({", ".join(columns)})
            SELECT {", ".join(columns)} FROM looked_up WHERE is_same IS NOT TRUE ORDER BY {", ".join(KEY)}
            ON CONFLICT ({", ".join(KEY)})
            DO UPDATE SET ({", ".join(values)}) = ROW({", ".join(over("EXCLUDED", "live"))})
            WHERE ({", ".join(f"live.{name}" for name in values)})
                IS DISTINCT FROM ({", ".join(over("EXCLUDED", "live"))})
        )
        SELECT kafka_partition, count(*) FROM looked_up WHERE is_same IS NULL GROUP BY 1
    """  # noqa: S608  schema, table and column names are our own
