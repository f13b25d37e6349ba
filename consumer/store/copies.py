"""All tables that hold analytics rows: live, of a rebuild, and replaced by a rebuild.

Statements that address rows by ctid need these: a ctid is unique within one table, and not within its parent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from asyncpg import Connection

from consumer.store.schema import ANALYTICS_TABLES


@dataclass(frozen=True, slots=True)
class Copy:
    """A table that holds rows: `name` is quoted and with its schema, `table` is which of the analytics tables.

    `schema` is where that table or its parent stands. `may_read` and `may_delete` tell this role's rights.
    """

    schema: str
    table: str
    name: str
    may_read: bool
    may_delete: bool


async def copies(connection: Connection, schemas: Sequence[str] | None = None) -> list[Copy]:
    """All tables that hold analytics rows: plain ones, and the partitions of partitioned ones.

    In `schemas`, or in any: a table counts by its name and the columns by which rows are erased.
    """
    rows = await connection.fetch(
        """
        WITH roots AS (
            SELECT class.oid, nsp.nspname AS schema, relname AS name, relkind
            FROM pg_class AS class JOIN pg_namespace AS nsp ON nsp.oid = relnamespace
            WHERE relname = ANY ($1::text[]) AND relkind IN ('r', 'p') AND nspname NOT LIKE 'pg\\_%'
                AND ($3::text[] IS NULL OR nspname = ANY ($3)) AND $2::text[] <@ ARRAY(
                    SELECT attname::text FROM pg_attribute WHERE attrelid = class.oid AND NOT attisdropped
                )
        )
        SELECT roots.schema, roots.name, format('%I.%I', leaf_nsp.nspname, leaf.relname) AS leaf,
            usable AND has_table_privilege(leaf_oid, 'SELECT') AS may_read,
            usable AND has_table_privilege(leaf_oid, 'SELECT') AND has_table_privilege(leaf_oid, 'DELETE')
                AS may_delete
        FROM roots
        CROSS JOIN LATERAL (
            SELECT roots.oid AS leaf_oid WHERE roots.relkind = 'r'
            UNION ALL SELECT relid FROM pg_partition_tree(roots.oid) WHERE isleaf AND roots.relkind = 'p'
        ) AS leaves
        JOIN pg_class AS leaf ON leaf.oid = leaf_oid JOIN pg_namespace AS leaf_nsp ON leaf_nsp.oid = leaf.relnamespace
        CROSS JOIN LATERAL (
            SELECT has_schema_privilege(roots.schema, 'USAGE') AND has_schema_privilege(leaf_nsp.oid, 'USAGE') AS usable
        ) AS rights
        ORDER BY 1, 2, 3
        """,
        list(ANALYTICS_TABLES),
        ["user_id", "organization_id", "timestamp", "event_metadata"],
        None if schemas is None else list(schemas),
    )
    return [Copy(row["schema"], row["name"], row["leaf"], row["may_read"], row["may_delete"]) for row in rows]
