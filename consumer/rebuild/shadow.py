"""The shadow of the analytics tables: a schema beside the live one, and lines of its own in the ledger."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import MetaData
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable, SetColumnComment, SetTableComment

from consumer.operations.operation import Operation
from consumer.store.ledger import LIVE
from consumer.store.partitions import copy_bounds, partitions_of
from consumer.store.schema import ANALYTICS_TABLES

SHADOW, OLD = "rebuild", "before_rebuild"
GENERATION = "rebuild"
STALLED = "the rebuild made no progress for minutes. Check Kafka and Postgres, then run it again with --resume"
_dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


def shadow_ddl() -> list[str]:
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


async def own_as_live(operation: Operation) -> None:
    """The owner of the live tables owns the new ones: partitions are made by functions that run as that owner."""
    rows = await operation.database.fetch(
        """
        SELECT relname AS name, quote_ident(pg_get_userbyid(relowner)) AS owner FROM pg_class
        WHERE oid = ANY (SELECT to_regclass('public.' || name)::oid FROM unnest($1::text[]) AS name)
        """,
        list(ANALYTICS_TABLES),
    )
    for row in rows:
        await operation.database.execute(f"ALTER TABLE {SHADOW}.{row['name']} OWNER TO {row['owner']}")
        await operation.database.execute(f"GRANT USAGE, CREATE ON SCHEMA {SHADOW} TO {row['owner']}")


async def make_partitions(operation: Operation) -> None:
    """The same partitions as the live tables have."""
    for table in ANALYTICS_TABLES:
        for partition in await partitions_of(operation.database, "public", table):
            await copy_bounds(operation.database, partition, f"{SHADOW}.{table}")


async def copy_indexes(operation: Operation) -> None:
    """Give the shadow those indexes that somebody has added to the live tables. Idempotent."""
    missing = await operation.database.fetch(
        r"""
        SELECT regexp_replace(indexdef, ' ON (ONLY )?public\.', $3) AS statement FROM pg_indexes
        WHERE schemaname = 'public' AND tablename = ANY ($1::text[])
            AND indexname NOT IN (SELECT indexname FROM pg_indexes WHERE schemaname = $2)
        """,
        list(ANALYTICS_TABLES),
        SHADOW,
        f" ON {SHADOW}.",
    )
    for row in missing:
        await operation.database.execute(row["statement"])


async def lines(operation: Operation, generation: str) -> dict[int, int]:
    rows = await operation.database.fetch(
        "SELECT partition, next_offset FROM ingest.partition_offsets WHERE generation = $1 AND topic = $2",
        generation,
        operation.topic,
    )
    return {row["partition"]: row["next_offset"] for row in rows}


async def reached(operation: Operation, target: Mapping[int, int] | None, timeout_s: float) -> bool:
    """Wait until the shadow has these offsets; False: too late. Without a target: what the live lines have then."""
    deadline = time.monotonic() + timeout_s
    while True:
        offsets = await lines(operation, LIVE) if target is None else target
        shadow = await lines(operation, GENERATION)
        if all(shadow.get(partition, -1) >= offset for partition, offset in offsets.items()):
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
