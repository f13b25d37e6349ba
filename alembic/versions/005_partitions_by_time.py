"""Partition the analytics tables by range of timestamp, with the key (id, timestamp).

An existing table becomes one partition as it stands: its new key is built beside the running writers, and the table is
attached under one lock, which lasts for a scan of it. An empty table is dropped instead.
"""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import context, op

from consumer.store.partitions import Interval, ahead, interval_of

revision = "005_partitions_by_time"
down_revision = "004_service_trace_weight_models"
branch_labels = None
depends_on = None

TABLES = ("user_activity", "endpoint_usage", "feature_usage", "model_usage")
KEY_BESIDE = "pk_{table}_with_time"

# The services' roles own no table: these two functions do for them what only an owner may, and nothing else.
ATTACH = """
CREATE FUNCTION ingest.attach_partition(parent regclass, lower_bound timestamptz, upper_bound timestamptz)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '1s' AS $$
DECLARE
    parent_name name;
    leaf_name name;
    base_name text;
    number int := 1;
    default_leaf oid;
    granted record;
BEGIN
    SELECT class.relname, part.partdefid INTO parent_name, default_leaf
    FROM pg_class AS class JOIN pg_namespace AS nsp ON nsp.oid = class.relnamespace
    JOIN pg_partitioned_table AS part ON part.partrelid = class.oid
    WHERE class.oid = parent AND nsp.nspname IN ('public', 'rebuild')
        AND class.relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user);
    IF parent_name IS NULL THEN
        RAISE insufficient_privilege USING MESSAGE = 'not a partitioned table of this schema''s owner';
    END IF;
    IF lower_bound IS NULL AND default_leaf <> 0 THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(parent::oid::bigint);
    base_name := parent_name || '_' || coalesce(to_char(lower_bound, 'YYYYMMDD'), 'default');
    leaf_name := base_name;
    WHILE to_regclass(format('partitions.%I', leaf_name)) IS NOT NULL LOOP
        number := number + 1;
        leaf_name := base_name || '_' || number;
    END LOOP;
    EXECUTE format(
        'CREATE TABLE partitions.%I (LIKE %s INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMMENTS)',
        leaf_name, parent
    );
    IF lower_bound IS NULL THEN
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION partitions.%I DEFAULT', parent, leaf_name);
    ELSE
        IF default_leaf <> 0 THEN
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', default_leaf::regclass);
            EXECUTE format(
                'WITH moved AS (DELETE FROM %s WHERE timestamp >= $1 AND timestamp < $2 RETURNING *)
                INSERT INTO partitions.%I SELECT * FROM moved',
                default_leaf::regclass, leaf_name
            ) USING lower_bound, upper_bound;
        END IF;
        EXECUTE format(
            'ALTER TABLE %s ATTACH PARTITION partitions.%I FOR VALUES FROM (%L) TO (%L)',
            parent, leaf_name, lower_bound, upper_bound
        );
    END IF;
    FOR granted IN
        SELECT acl.privilege_type, acl.grantee FROM pg_class AS class, aclexplode(class.relacl) AS acl
        WHERE class.oid = parent AND acl.grantee <> class.relowner
    LOOP
        EXECUTE format(
            'GRANT %s ON partitions.%I TO %s', granted.privilege_type, leaf_name,
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(granted.grantee)) END
        );
    END LOOP;
    RETURN true;
EXCEPTION WHEN invalid_object_definition THEN  -- another one was quicker: it overlaps
    RETURN false;
END $$
"""
DROP = """
CREATE FUNCTION ingest.drop_partition(leaf regclass, expired_until timestamptz)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '150ms' AS $$
DECLARE
    upper_bound timestamptz;
BEGIN
    SELECT (regexp_match(pg_get_expr(class.relpartbound, class.oid), 'TO \\(''([^'']+)''\\)'))[1]::timestamptz
    INTO upper_bound
    FROM pg_class AS class JOIN pg_inherits ON inhrelid = class.oid JOIN pg_class AS parent ON parent.oid = inhparent
    JOIN pg_namespace AS nsp ON nsp.oid = parent.relnamespace
    WHERE class.oid = leaf AND class.relispartition AND nsp.nspname = 'public'
        AND parent.relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user);
    IF upper_bound IS NULL OR upper_bound > expired_until THEN
        RAISE insufficient_privilege USING MESSAGE = 'not a partition that is wholly past its retention';
    END IF;
    EXECUTE format('DROP TABLE %s', leaf);
END $$
"""
FUNCTIONS = (
    "ingest.attach_partition(regclass, timestamptz, timestamptz)",
    "ingest.drop_partition(regclass, timestamptz)",
)


def upgrade() -> None:
    interval = interval_of(context.config.attributes["partition_interval"])
    with op.get_context().autocommit_block():
        for table in TABLES:  # the long part, beside running writers
            key = KEY_BESIDE.format(table=table)
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS public.{key}")  # of a migration that was interrupted
            op.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {key} ON public.{table} (id, timestamp)")
    op.execute("CREATE SCHEMA partitions")
    op.execute("COMMENT ON SCHEMA partitions IS 'Partitions of the analytics tables: ask the tables in public'")
    op.execute(ATTACH)
    op.execute(DROP)
    for function in FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
    op.execute(_to_writers("USAGE ON SCHEMA partitions"))
    for function in FUNCTIONS:
        op.execute(_to_writers(f"EXECUTE ON FUNCTION {function}"))
    # A day ahead, so that the attached partition takes what old clocks send until the first new one begins.
    _, until = interval.around(datetime.now(UTC) + timedelta(days=1))
    for table in TABLES:
        _partition(table, until, interval)


def _partition(table: str, until: datetime, interval: Interval) -> None:
    op.execute(f"LOCK TABLE public.{table} IN ACCESS EXCLUSIVE MODE")
    _refuse_what_cannot_follow(table)
    views = _views(table)
    grants = _grants(table)
    key, old = f"pk_{table}", f"{table}_before_partitions"
    beside = KEY_BESIDE.format(table=table)
    for name in _fetch(
        "SELECT quote_ident(conname) FROM pg_constraint WHERE contype = 'p' AND conrelid = CAST(:name AS regclass)",
        table,
    ):  # a table of the original product has another name for it
        op.execute(f"ALTER TABLE public.{table} DROP CONSTRAINT {name}")
    op.execute(f"ALTER TABLE public.{table} ADD CONSTRAINT {key} PRIMARY KEY USING INDEX {beside}")
    op.execute(f"ALTER TABLE public.{table} RENAME TO {old}")
    op.execute(f"ALTER TABLE public.{old} SET SCHEMA partitions")
    op.execute(
        f"""
        CREATE TABLE public.{table} (
            LIKE partitions.{old} INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMMENTS,
            CONSTRAINT {key} PRIMARY KEY (id, timestamp)
        ) PARTITION BY RANGE (timestamp)
        """
    )
    _comment_and_index(table, f"partitions.{old}")
    for statement in grants:
        op.execute(statement)
    op.execute(f"SELECT ingest.attach_partition('public.{table}', NULL, NULL)")
    is_empty = not op.get_bind().scalar(sa.text(f"SELECT EXISTS (SELECT 1 FROM partitions.{old})"))  # noqa: S608  our own names
    if is_empty:
        op.execute(f"DROP TABLE partitions.{old}")
        since, _ = interval.around(datetime.now(UTC))
        spans = [interval.around(since - timedelta(hours=1)), *ahead(datetime.now(UTC), interval)]
    else:
        op.execute(
            f"""
            WITH outliers AS (DELETE FROM partitions.{old} WHERE timestamp >= '{until.isoformat()}' RETURNING *)
            INSERT INTO public.{table} SELECT * FROM outliers
            """  # noqa: S608  our own names
        )
        op.execute(
            f"ALTER TABLE public.{table} ATTACH PARTITION partitions.{old} "
            f"FOR VALUES FROM (MINVALUE) TO ('{until.isoformat()}')"
        )
        spans = [span for span in ahead(datetime.now(UTC), interval) if span[0] >= until]
    for lower, upper in spans:
        op.execute(f"SELECT ingest.attach_partition('public.{table}', '{lower.isoformat()}', '{upper.isoformat()}')")
    for statement in views:
        op.execute(statement)


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"LOCK TABLE public.{table} IN ACCESS EXCLUSIVE MODE")
        _refuse_what_cannot_follow(table)
        views, grants, old = _views(table), _grants(table), f"{table}_partitioned"
        op.execute(f"ALTER TABLE public.{table} RENAME TO {old}")
        op.execute(
            f"""
            CREATE TABLE public.{table} (
                LIKE public.{old} INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMMENTS
            )
            """
        )
        # The key was the id alone: of versions with several timestamps the youngest stays.
        op.execute(
            f"INSERT INTO public.{table} SELECT DISTINCT ON (id) * FROM public.{old} ORDER BY id, timestamp DESC"  # noqa: S608  our own names
        )
        op.execute(_comment(table, f"public.{old}"))
        for statement in views:
            op.execute(statement)
        op.execute(f"DROP TABLE public.{old}")
        op.execute(f"ALTER TABLE public.{table} ADD CONSTRAINT pk_{table} PRIMARY KEY (id)")
        _index(table)
        for statement in grants:
            op.execute(statement)
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}")
    op.execute("DROP SCHEMA partitions")


def _comment_and_index(table: str, like: str) -> None:
    op.execute(_comment(table, like))
    _index(table)


def _comment(table: str, like: str) -> str:
    return f"""
        DO $$ BEGIN
            EXECUTE format('COMMENT ON TABLE public.{table} IS %L', obj_description('{like}'::regclass));
        END $$
    """


def _index(table: str) -> None:
    for column in ("organization_id", "user_id"):
        op.create_index(f"ix_{table}_{column}", table, [column], postgresql_where=sa.text(f"{column} IS NOT NULL"))
    op.create_index(
        f"ix_{table}_timestamp",
        table,
        ["timestamp"],
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": True},
    )


def _fetch(sql: str, table: str) -> list[str]:
    return [str(row[0]) for row in op.get_bind().execute(sa.text(sql), {"name": f"public.{table}"})]


def _refuse_what_cannot_follow(table: str) -> None:
    found = _fetch(
        """
        SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = CAST(:name AS regclass)
        UNION ALL SELECT 'policy ' || polname FROM pg_policy WHERE polrelid = CAST(:name AS regclass)
        UNION ALL SELECT 'constraint ' || conname FROM pg_constraint WHERE contype NOT IN ('p', 'n')
            AND CAST(:name AS regclass) IN (conrelid, confrelid)
        UNION ALL SELECT 'materialized view ' || view.relname FROM pg_class AS view
            JOIN pg_rewrite AS rule ON rule.ev_class = view.oid JOIN pg_depend AS depends ON depends.objid = rule.oid
            WHERE view.relkind = 'm' AND depends.refobjid = CAST(:name AS regclass)
        """,
        table,
    )
    if found:
        names = ", ".join(sorted(set(found)))
        raise RuntimeError(f"{table} would lose {names}: drop it, migrate, and create it again")


def _views(table: str) -> list[str]:
    """Statements that bind the table's views to the one that takes its name."""
    return _fetch(
        """
        SELECT DISTINCT 'CREATE OR REPLACE VIEW ' || view.oid::regclass || ' '
            || coalesce('WITH (' || array_to_string(view.reloptions, ', ') || ')', '')
            || ' AS ' || pg_get_viewdef(view.oid)
        FROM pg_class AS view JOIN pg_rewrite AS rule ON rule.ev_class = view.oid
        JOIN pg_depend AS depends ON depends.objid = rule.oid
        WHERE view.relkind = 'v' AND depends.refobjid = CAST(:name AS regclass)
        """,
        table,
    )


def _grants(table: str) -> list[str]:
    """Statements that give the same grants, on the whole and on columns, to the table of that name."""
    return _fetch(
        """
        SELECT format('GRANT %s%s ON %s TO %s', acl.privilege_type, given.columns, class.oid::regclass,
            CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END)
            || CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        FROM pg_class AS class CROSS JOIN LATERAL (
            SELECT class.relacl AS acl, '' AS columns
            UNION ALL SELECT attacl, ' (' || quote_ident(attname) || ')' FROM pg_attribute WHERE attrelid = class.oid
        ) AS given CROSS JOIN aclexplode(given.acl) AS acl
        WHERE class.oid = CAST(:name AS regclass)
        """,
        table,
    )


def _to_writers(privilege: str) -> str:
    """Grant to every role but the owner that may delete in user_activity: those of deploy/postgres/roles.sql."""
    return f"""
        DO $$
        DECLARE holder name;
        BEGIN
            FOR holder IN
                SELECT pg_get_userbyid(acl.grantee) FROM pg_class AS class CROSS JOIN aclexplode(class.relacl) AS acl
                WHERE class.oid = 'public.user_activity'::regclass AND acl.privilege_type = 'DELETE'
                    AND acl.grantee NOT IN (0, class.relowner)
            LOOP
                EXECUTE format('GRANT {privilege} TO %I', holder);
            END LOOP;
        END $$
    """  # noqa: S608  our own names
