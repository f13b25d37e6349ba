"""rows -> a table, set by set: fresh rows are copied directly, other rows through a temporary table.

A direct copy fails as a whole when one of the rows exists. Then the set goes through the temporary table,
which inserts or updates: sorted by key, or concurrent writers deadlock; and only where a column differs, so
that a replay writes little WAL. The next sets go the same way, because existing rows come in groups. A failed copy
has written WAL for nothing, so a few ids of each set are looked up first: in a replay they exist.
"""

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import asyncpg
from sqlalchemy import Table

from consumer.store.database import DATABASE_ERRORS, ENCODER_ERRORS, Fate, fate_of
from consumer.store.dead_letters import DeadLetter
from consumer.store.rows.decoded import Decoded
from consumer.store.rows.table_rows import ReferenceRows, TableRows
from consumer.store.rows.written import Written
from consumer.store.schema import ANALYTICS_TABLES, KEPT_COLUMNS, KEY

STAGED_SETS = 20  # after a row that was there already, before the straight way is tried again
SAMPLED_IDS = 16


class Upsert:
    """The statements for the tables of one schema: `public`, or that of a rebuild. One connection's own."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
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
        self, connection: asyncpg.Connection, table: str, rows: TableRows, written: Written
    ) -> list[DeadLetter]:
        """Upsert the rows, but for those that the database refuses, which are given back."""
        try:
            new_rows = await self._copy_fresh(connection, table, rows)
            if new_rows is None:
                async with connection.transaction():  # a savepoint
                    new_rows = await self._upsert(connection, table, rows)
        except (*DATABASE_ERRORS, *ENCODER_ERRORS) as error:
            if fate_of(error) is not Fate.POISON:
                raise
            return await self._without_refused(connection, table, rows.decoded(), written)
        written.count_rows(table, rows.counts, new_rows)
        return []

    async def _without_refused(
        self, connection: asyncpg.Connection, table: str, rows: Sequence[Decoded], written: Written
    ) -> list[DeadLetter]:
        """Halve the rows and upsert each half, until those that the database refuses stand alone.

        The halves keep their order, so of two versions of one row the later still wins. Gives what was refused.
        """
        if len(rows) == 1:
            return [DeadLetter(rows[0].record, "database_refused")]
        refused: list[DeadLetter] = []
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            part = ReferenceRows(table, half)
            try:
                async with connection.transaction():  # a savepoint
                    await connection.execute(f"DELETE FROM stage_{table}")  # noqa: S608  our own table name
                    new_rows = await self._upsert(connection, table, part)
            except (*DATABASE_ERRORS, *ENCODER_ERRORS) as error:
                if fate_of(error) is not Fate.POISON:
                    raise
                refused += await self._without_refused(connection, table, half, written)
            else:
                written.count_rows(table, part.counts, new_rows)
        return refused

    async def _copy_fresh(self, connection: asyncpg.Connection, table: str, rows: TableRows) -> Counter[int] | None:
        """Copy the rows directly; returns new rows by partition. None, and nothing written, when a row exists."""
        if self._staged_left[table]:
            self._staged_left[table] -= 1
            return None
        sample = rows.sample(SAMPLED_IDS)
        times = [timestamp_us for _, timestamp_us in sample]  # so that other partitions are not looked at
        if await connection.fetchval(self._is_any_there[table], [id_ for id_, _ in sample], min(times), max(times)):
            self._staged_left[table] = STAGED_SETS
            return None
        try:
            async with connection.transaction():  # a savepoint
                await self._copy(connection, table, rows, is_staged=False)
        except (*DATABASE_ERRORS, *ENCODER_ERRORS) as error:
            if fate_of(error) is not Fate.POISON:  # a unique violation is one, here
                raise
            self._staged_left[table] = STAGED_SETS
            return None
        return rows.latest_counts

    async def _upsert(self, connection: asyncpg.Connection, table: str, rows: TableRows) -> Counter[int]:
        """How many rows are new, by partition."""
        await self._copy(connection, table, rows, is_staged=True)
        times = rows.times()  # so that other partitions are not looked at
        found = await connection.fetch(self._sql[table], min(times), max(times))
        return Counter({row["kafka_partition"]: row["count"] for row in found})

    async def _copy(self, connection: asyncpg.Connection, table: str, rows: TableRows, *, is_staged: bool) -> None:
        """Into the table, or into its stage. Columns are named: a migration may have added others."""
        into: dict[str, Any] = {
            "table_name": f"stage_{table}" if is_staged else table,
            "schema_name": None if is_staged else self._schema,
            "columns": [*_COLUMNS[table], "kafka_partition"] if is_staged else _COLUMNS[table],
        }
        data = rows.copy_data(is_staged=is_staged)
        if data is None:
            await connection.copy_records_to_table(**into, records=rows.copy_records(is_staged=is_staged))
        else:
            with BytesIO(data) as source:  # asyncpg ties it into a cycle: only closing it frees the rows at once
                await connection.copy_to_table(**into, source=source, format="binary")


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
