"""Where rows of the analytics tables are: the live tables, those of a rebuild, and what a rebuild replaced.

Statements that address rows by ctid need these: a ctid is unique within one table, and not within its parent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from asyncpg import Connection

from consumer.store.schema import ANALYTICS_TABLES


@dataclass(frozen=True, slots=True)
class Copy:
    """A table that holds rows: `name` is quoted and with its schema, `table` is which of the analytics tables."""

    schema: str
    table: str
    name: str
    oid: int


async def copies(connection: Connection, schemas: Sequence[str] | None = None) -> list[Copy]:
    """All tables that hold analytics rows: plain ones, and the partitions of partitioned ones.

    In `schemas`, or wherever all the analytics tables stand together.
    """
    rows = await connection.fetch(
        """
        WITH roots AS (
            SELECT class.oid, nsp.nspname AS schema, relname AS name, relkind,
                count(*) OVER (PARTITION BY nsp.oid) AS together
            FROM pg_class AS class JOIN pg_namespace AS nsp ON nsp.oid = relnamespace
            WHERE relname = ANY ($1::text[]) AND relkind IN ('r', 'p') AND nspname NOT LIKE 'pg\\_%'
        )
        SELECT roots.schema, roots.name, format('%I.%I', leaf_nsp.nspname, leaf.relname) AS leaf, leaf_oid
        FROM roots
        CROSS JOIN LATERAL (
            SELECT roots.oid AS leaf_oid WHERE roots.relkind = 'r'
            UNION ALL SELECT relid FROM pg_partition_tree(roots.oid) WHERE isleaf AND roots.relkind = 'p'
        ) AS leaves
        JOIN pg_class AS leaf ON leaf.oid = leaf_oid JOIN pg_namespace AS leaf_nsp ON leaf_nsp.oid = leaf.relnamespace
        WHERE CASE WHEN $3::text[] IS NULL THEN together = $2 ELSE roots.schema = ANY ($3) END
        ORDER BY 1, 2, 3
        """,
        list(ANALYTICS_TABLES),
        len(ANALYTICS_TABLES),
        None if schemas is None else list(schemas),
    )
    return [Copy(row["schema"], row["name"], row["leaf"], row["leaf_oid"]) for row in rows]


async def may_read(connection: Connection, table: Copy) -> bool:
    return bool(
        await connection.fetchval(
            """
            SELECT has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, 'SELECT')
            FROM pg_class WHERE oid = $1
            """,
            table.oid,
        )
    )


async def may_delete(connection: Connection, schema: str) -> bool:
    """Whether this role may read and delete in the schema's copies."""
    return bool(
        await connection.fetchval(
            """
            SELECT has_schema_privilege(nsp.oid, 'USAGE') AND bool_and(
                has_table_privilege(class.oid, 'SELECT') AND has_table_privilege(class.oid, 'DELETE')
            )
            FROM pg_class AS class JOIN pg_namespace AS nsp ON nsp.oid = relnamespace
            WHERE nspname = $1 AND relname = ANY ($2::text[]) AND relkind IN ('r', 'p') GROUP BY nsp.oid
            """,
            schema,
            list(ANALYTICS_TABLES),
        )
    )
