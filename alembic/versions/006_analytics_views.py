"""Create the schema `analytics`: functions that define each number once, for SQL, dashboards and the page.

The functions run as their owner, with a fixed search path, so a role that may run them needs no right on the tables.
They name tables in strings that are read at each call: a rebuild's swap needs no step for them.
"""

from pathlib import Path

from alembic import op

revision = "006_analytics_views"
down_revision = "005_partitions_by_time"
branch_labels = None
depends_on = None

STATEMENTS = Path(__file__).resolve().parents[1] / "analytics" / "006"
SPLIT = "\n\n"  # asyncpg prepares one statement at a time; inside a function no line is empty

# Roles that read user_activity, other than its owner: those of deploy/postgres/reader.sql, and any of the deployment's.
GRANT = """
DO $$
DECLARE reader text; function regprocedure;
BEGIN
    FOR reader IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class AS class CROSS JOIN aclexplode(class.relacl) AS acl
        WHERE class.oid = 'public.user_activity'::regclass AND acl.privilege_type = 'SELECT'
            AND acl.grantee <> class.relowner
    LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA analytics TO %s', reader);
        FOR function IN
            SELECT oid FROM pg_proc WHERE pronamespace = 'analytics'::regnamespace AND prosecdef
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', function, reader);
        END LOOP;
    END LOOP;
END $$
"""


def upgrade() -> None:
    op.execute("CREATE SCHEMA analytics")
    op.execute("COMMENT ON SCHEMA analytics IS 'Numbers about people, use and health, each defined once'")
    for path in sorted(STATEMENTS.glob("*.sql")):
        for statement in path.read_text().split(SPLIT):
            op.execute(statement)
    op.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA analytics FROM PUBLIC")
    op.execute(GRANT)


def downgrade() -> None:
    op.execute(
        """
        DO $$
        DECLARE function regprocedure;
        BEGIN
            FOR function IN
                SELECT oid FROM pg_proc WHERE pronamespace = 'analytics'::regnamespace ORDER BY prosecdef DESC
            LOOP
                EXECUTE format('DROP FUNCTION %s', function);
            END LOOP;
        END $$
        """
    )
    op.execute("DROP TABLE analytics.settings")
    op.execute("DROP SCHEMA analytics")
