"""The shadow of the analytics tables: a schema beside the live one, and lines of its own in the ledger."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import MetaData
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable, SetColumnComment, SetTableComment

from consumer.operations.operation import Operation, Refused
from consumer.store.schema import ANALYTICS_TABLES

SHADOW, OLD = "rebuild", "before_rebuild"
GENERATION = "rebuild"
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


async def refuse_what_would_be_lost(operation: Operation) -> None:
    """A swap keeps grants, comments and views. What it cannot keep, a person must take away and put back."""
    found = await operation.database.fetch(
        """
        SELECT 'trigger ' || tgname AS what FROM pg_trigger
            WHERE NOT tgisinternal
            AND tgrelid = ANY (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) AS name)
        UNION ALL SELECT 'column ' || attrelid::regclass || '.' || attname FROM pg_attribute
            WHERE attnum > 0 AND NOT attisdropped AND attrelid::regclass::text || '.' || attname <> ALL ($2::text[])
            AND attrelid = ANY (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) AS name)
        UNION ALL SELECT 'constraint ' || conname FROM pg_constraint
            WHERE contype NOT IN ('p', 'n')
            AND (conrelid = ANY (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) AS name)
                OR confrelid = ANY (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) AS name))
        UNION ALL SELECT 'policy ' || polname FROM pg_policy
            WHERE polrelid = ANY (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) AS name)
        UNION ALL SELECT 'publication ' || pubname FROM pg_publication_tables
            WHERE schemaname = 'public' AND tablename = ANY ($1::text[])
        UNION ALL SELECT 'materialized view ' || view.relname FROM pg_class AS view
            JOIN pg_rewrite AS rule ON rule.ev_class = view.oid JOIN pg_depend AS depends ON depends.objid = rule.oid
            WHERE view.relkind = 'm' AND depends.refobjid
                = ANY (SELECT to_regclass('public.' || name)::oid FROM unnest($1::text[]) AS name)
        """,
        list(ANALYTICS_TABLES),
        [f"{name}.{column.name}" for name, table in ANALYTICS_TABLES.items() for column in table.columns],
    )
    if found:
        names = ", ".join(sorted({row["what"] for row in found}))
        raise Refused(
            f"a swap would lose {names}: drop it, rebuild, and create it again. "
            "A column of a later migration needs the rebuild of that version"
        )


async def copy_indexes(operation: Operation) -> None:
    """Give the shadow those indexes that somebody has added to the live tables. Idempotent."""
    missing = await operation.database.fetch(
        """
        SELECT replace(indexdef, ' ON public.', $3) AS statement FROM pg_indexes
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


async def reached(operation: Operation, target: Mapping[int, int], timeout_s: float) -> bool:
    """Whether the shadow has come to these offsets in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        shadow = await lines(operation, GENERATION)
        if all(shadow.get(partition, -1) >= offset for partition, offset in target.items()):
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
