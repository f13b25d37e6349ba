"""rows -> a table, set by set: fresh ones are copied straight in, others by way of a temporary table.

The straight way fails as a whole when one of the rows is there already. Then the set goes the other way,
where it is inserted or updated: sorted by key, or concurrent writers deadlock; and guarded, so that a replay
writes next to no WAL. So do the next sets, for where there was one such row there are more. What a failed copy
has written until then is WAL for nothing, so a few ids of each set are looked up before: a replay shows in them.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import asyncpg
from sqlalchemy import Table

from consumer.pipeline.batch import Decoded, Written, partition_of
from consumer.store.database import DATABASE_ERRORS, ENCODER_ERRORS, Fate, fate_of
from consumer.store.dead_letters import DeadLetter
from consumer.store.schema import ANALYTICS_TABLES, KEPT_COLUMNS, Row

STAGED_SETS = 20  # after a row that was there already, before the straight way is tried again
SAMPLED_IDS = 16


class Upsert:
    """The statements for the tables of one schema: `public`, or that of a rebuild. One connection's own."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._staged_left = dict.fromkeys(ANALYTICS_TABLES, 0)
        self._sql = {name: _upsert_sql(schema, table) for name, table in ANALYTICS_TABLES.items()}
        self._is_any_there = {
            name: f"SELECT EXISTS (SELECT 1 FROM {schema}.{name} WHERE id = ANY($1::uuid[]))"  # noqa: S608  our own names
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
        if await connection.fetchval(self._is_any_there[table], sample):
            self._staged_left[table] = STAGED_SETS
            return None
        try:
            async with connection.transaction():  # a savepoint
                await connection.copy_records_to_table(
                    table,
                    schema_name=self._schema,
                    columns=_COLUMNS[table],
                    records=[row for row, _ in latest.values()],
                )
        except (*DATABASE_ERRORS, *ENCODER_ERRORS) as error:
            if fate_of(error) is not Fate.POISON:  # a unique violation is one, here
                raise
            self._staged_left[table] = STAGED_SETS
            return None
        return Counter(partition for _, partition in latest.values())

    async def _upsert(self, connection: asyncpg.Connection, table: str, rows: Sequence[Decoded]) -> Counter[int]:
        """How many rows are new, by partition. Of two versions of a row in `rows` the later one is written."""
        staged = [(*row, partition) for row, partition in latest_rows(table, rows).values()]
        await connection.copy_records_to_table(
            f"stage_{table}", columns=[*_COLUMNS[table], "kafka_partition"], records=staged
        )  # by name: a migration to come may add columns that this code does not know
        found = await connection.fetch(self._sql[table])
        return Counter({row["kafka_partition"]: row["count"] for row in found})


def latest_rows(table: str, rows: Sequence[Decoded]) -> dict[Any, tuple[Row, int]]:
    """By id, the last version of each row and its partition; an id that it lacks comes from an earlier version."""
    latest: dict[Any, tuple[Row, int]] = {each.row[0]: (each.row, each.record.partition) for each in rows}
    if len(latest) == len(rows):
        return latest
    kept_at = _KEPT_AT[table]
    merged: dict[Any, tuple[Row, int]] = {}
    for each in rows:
        row = each.row
        if earlier := merged.get(row[0]):
            values = list(row)
            for at in kept_at:
                if values[at] is None:
                    values[at] = earlier[0][at]
            row = tuple(values)
        merged[row[0]] = (row, each.record.partition)
    return merged


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

    Rows that are there already, just so, are left out beforehand: ON CONFLICT would lock each of them, and a
    lock is written to the WAL. xmax is 0 only in a row version that was inserted rather than updated.
    """
    columns = [column.name for column in table.columns]
    values = columns[1:]

    def over(new: str, old: str) -> list[str]:
        """The values of a version `new` over those of `old`."""
        return [f"coalesce({new}.{name}, {old}.{name})" if name in KEPT_COLUMNS else f"{new}.{name}" for name in values]

    return f"""
        WITH written AS (
            INSERT INTO {schema}.{table.name} AS live ({", ".join(columns)})
            SELECT {", ".join(columns)} FROM stage_{table.name} AS stage
            WHERE NOT EXISTS (
                SELECT 1 FROM {schema}.{table.name} AS same
                WHERE same.id = stage.id AND ({", ".join(f"same.{name}" for name in values)})
                    IS NOT DISTINCT FROM ({", ".join(over("stage", "same"))})
            )
            ORDER BY id
            ON CONFLICT (id) DO UPDATE SET ({", ".join(values)}) = ROW({", ".join(over("EXCLUDED", "live"))})
            WHERE ({", ".join(f"live.{name}" for name in values)})
                IS DISTINCT FROM ({", ".join(over("EXCLUDED", "live"))})
            RETURNING id, xmax = 0 AS is_new
        )
        SELECT kafka_partition, count(*) FROM stage_{table.name} JOIN written USING (id) WHERE is_new GROUP BY 1
    """  # noqa: S608  schema, table and column names are our own
