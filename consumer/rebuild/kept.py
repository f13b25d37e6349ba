"""What the live tables have beside rows: copied to those that take their place, or refused by name."""

from consumer.operations.operation import Operation, Refused
from consumer.rebuild.shadow import SHADOW
from consumer.store.schema import ANALYTICS_TABLES


async def refuse_what_would_be_lost(operation: Operation) -> None:
    """A swap keeps what `settings_of` and `views_of` copy. What it cannot keep, a person must take away and put back.

    Asked at the start, and again inside the swap, for a rebuild takes hours.

    Raises:
        Refused: names what would be lost; nothing was changed.
    """
    found = await operation.database.fetch(
        """
        SELECT 'trigger ' || tgname AS what FROM pg_trigger
            WHERE NOT tgisinternal AND tgname <> 'mark_every_day'
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
        UNION ALL SELECT 'rule ' || rulename FROM pg_rewrite
            WHERE rulename <> '_RETURN'
            AND ev_class = ANY (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) AS name)
        UNION ALL SELECT 'function ' || proname FROM pg_proc AS function
            JOIN pg_depend AS depends ON depends.classid = 'pg_proc'::regclass AND depends.objid = function.oid
            JOIN pg_class AS used ON used.oid = depends.refobjid OR used.reltype = depends.refobjid
            WHERE used.oid = ANY (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) AS name)
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


async def settings_of(operation: Operation) -> list[str]:
    """Statements that give the new tables the live ones' grants, storage options, statistics and row security.

    Made while the old names still resolve, and run when the new tables have them.
    """
    return [*await _grants(operation), *await _options(operation)]


async def _options(operation: Operation) -> list[str]:
    rows = await operation.database.fetch(
        """
        WITH live AS (
            SELECT class.* FROM pg_class AS class
            WHERE oid = ANY (SELECT to_regclass('public.' || name)::oid FROM unnest($1::text[]) AS name)
        )
        SELECT format('ALTER TABLE public.%I SET (%s)', relname, array_to_string(reloptions, ', ')) AS statement
            FROM live WHERE reloptions IS NOT NULL
        UNION ALL SELECT format('ALTER TABLE %s SET (%s)', shadow_leaf.oid::regclass,
                array_to_string(leaf.reloptions, ', '))
            FROM live JOIN pg_inherits AS of_live ON of_live.inhparent = live.oid
            JOIN pg_class AS leaf ON leaf.oid = of_live.inhrelid
            JOIN pg_inherits AS of_shadow ON of_shadow.inhparent = to_regclass(format('%I.%I', $2::text, live.relname))
            JOIN pg_class AS shadow_leaf ON shadow_leaf.oid = of_shadow.inhrelid
                AND pg_get_expr(shadow_leaf.relpartbound, shadow_leaf.oid) = pg_get_expr(leaf.relpartbound, leaf.oid)
            WHERE leaf.reloptions IS NOT NULL
        UNION ALL SELECT format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', relname)
            FROM live WHERE relrowsecurity
        UNION ALL SELECT format('ALTER TABLE public.%I FORCE ROW LEVEL SECURITY', relname)
            FROM live WHERE relforcerowsecurity
        UNION ALL SELECT format('ALTER TABLE public.%I REPLICA IDENTITY %s', relname,
                CASE relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END)
            FROM live WHERE relreplident IN ('f', 'n')
        UNION ALL SELECT format('ALTER TABLE public.%I REPLICA IDENTITY USING INDEX %I', live.relname, used.relname)
            FROM live JOIN pg_index AS index ON indrelid = live.oid AND indisreplident
            JOIN pg_class AS used ON used.oid = indexrelid
        UNION ALL SELECT format('ALTER TABLE public.%I ALTER COLUMN %I SET STATISTICS %s', relname, attname,
                attstattarget)
            FROM live JOIN pg_attribute ON attrelid = live.oid WHERE attnum > 0 AND attstattarget >= 0
        UNION ALL SELECT format('ALTER TABLE public.%I ALTER COLUMN %I SET (%s)', relname, attname,
                array_to_string(attoptions, ', '))
            FROM live JOIN pg_attribute ON attrelid = live.oid WHERE attoptions IS NOT NULL
        """,
        list(ANALYTICS_TABLES),
        SHADOW,
    )
    return [row["statement"] for row in rows]


async def statistics_of(operation: Operation, old_schema: str) -> list[str]:
    """Statements that take the live tables' extended statistics to the old ones' schema, and make them anew."""
    rows = await operation.database.fetch(
        """
        SELECT format('ALTER STATISTICS %I.%I SET SCHEMA %I', stxnamespace::regnamespace, stxname, $2::text) AS away,
            pg_get_statisticsobjdef(oid) AS anew
        FROM pg_statistic_ext
        WHERE stxrelid = ANY (SELECT to_regclass('public.' || name)::oid FROM unnest($1::text[]) AS name)
        """,
        list(ANALYTICS_TABLES),
        old_schema,
    )
    return [statement for row in rows for statement in (row["away"], row["anew"])]


async def triggers_of(operation: Operation) -> list[str]:
    """Statements that give the new tables the live ones' trigger, which marks days whose sums are old."""
    rows = await operation.database.fetch(
        """
        SELECT pg_get_triggerdef(oid) AS statement FROM pg_trigger WHERE tgname = 'mark_every_day'
            AND tgrelid = ANY (SELECT to_regclass('public.' || name)::oid FROM unnest($1::text[]) AS name)
        """,
        list(ANALYTICS_TABLES),
    )
    return [row["statement"] for row in rows]


async def dependants(operation: Operation, schema: str) -> list[str]:
    """What lies outside the schema and uses its tables: views, functions, constraints. CASCADE would take it along."""
    rows = await operation.database.fetch(
        """
        SELECT DISTINCT pg_describe_object(depends.classid, depends.objid, 0) AS what
        FROM pg_class AS used JOIN pg_namespace AS nsp ON nsp.oid = used.relnamespace
        JOIN pg_depend AS depends ON depends.refobjid IN (used.oid, used.reltype) AND depends.deptype = 'n'
        LEFT JOIN pg_rewrite AS rule ON depends.classid = 'pg_rewrite'::regclass AND rule.oid = depends.objid
        LEFT JOIN pg_class AS user_class ON user_class.oid = coalesce(rule.ev_class, depends.objid)
        WHERE nsp.nspname = $1 AND used.relkind IN ('r', 'p')
            AND (user_class.relnamespace IS NULL OR user_class.relnamespace <> nsp.oid)
        ORDER BY 1
        """,
        schema,
    )
    return [row["what"] for row in rows]


async def views_of(operation: Operation) -> list[str]:
    """Statements that bind the live tables' views to the new ones; made while the old names still resolve."""
    rows = await operation.database.fetch(
        """
        SELECT DISTINCT view.oid::regclass::text AS name, pg_get_viewdef(view.oid) AS definition,
            coalesce('WITH (' || array_to_string(view.reloptions, ', ') || ')', '') AS options
        FROM pg_class AS view JOIN pg_rewrite AS rule ON rule.ev_class = view.oid
        JOIN pg_depend AS depends ON depends.objid = rule.oid
        WHERE view.relkind = 'v' AND depends.refobjid
            = ANY (SELECT to_regclass('public.' || name)::oid FROM unnest($1::text[]) AS name)
        """,
        list(ANALYTICS_TABLES),
    )
    return [f"CREATE OR REPLACE VIEW {row['name']} {row['options']} AS {row['definition']}" for row in rows]


async def _grants(operation: Operation) -> list[str]:
    """The live tables' grants, on the whole and on columns, for the new ones."""
    rows = await operation.database.fetch(
        """
        SELECT class.relname AS name, acl.privilege_type AS privilege, given.columns, acl.is_grantable,
            CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS grantee
        FROM pg_class AS class CROSS JOIN LATERAL (
            SELECT class.relacl AS acl, '' AS columns
            UNION ALL SELECT attacl, ' (' || quote_ident(attname) || ')' FROM pg_attribute WHERE attrelid = class.oid
        ) AS given CROSS JOIN aclexplode(given.acl) AS acl
        WHERE class.oid = ANY (SELECT to_regclass('public.' || name)::oid FROM unnest($1::text[]) AS name)
        """,
        list(ANALYTICS_TABLES),
    )
    return [
        f"GRANT {row['privilege']}{row['columns']} ON public.{row['name']} TO {row['grantee']}"
        + (" WITH GRANT OPTION" if row["is_grantable"] else "")
        for row in rows
    ]
