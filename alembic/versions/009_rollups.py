"""Add up closed days, so that a month of ten million rows is read in a second.

Each number is still defined once: the functions of schema `analytics` read sums by day, and for the days that are not
rolled up the same sums made from the rows. A consumer rolls days up; whoever changes rows marks their days.
"""

from pathlib import Path

from alembic import op

revision = "009_rollups"
down_revision = "008_percentiles_of_groups"
branch_labels = None
depends_on = None

STATEMENTS = Path(__file__).resolve().parents[1] / "analytics"
SPLIT = "\n\n"
ANALYTICS_TABLES = ("user_activity", "endpoint_usage", "feature_usage", "model_usage")
REPLACED = {  # functions, by where their text before stands
    "006/01_base.sql": ("activity", "requests"),
    "008/requests.sql": ("duration_group", "endpoint_health", "requests_over_time", "releases", "overview"),
    "006/02_people.sql": ("active_users", "stickiness", "retention"),
    "006/03_funnel.sql": ("funnel_steps",),
    "006/04_use.sql": ("feature_adoption", "organizations", "models"),
    "006/05_requests.sql": ("choices",),
}
FOR_CONSUMERS = ("mark_days", "days_to_roll_up", "number_people", "roll_up", "forget", "forget_unseen", "wrong_days")
HELPERS = (
    *("rows_of_user_activity", "rows_of_endpoint_usage", "rows_of_feature_usage", "rows_of_model_usage"),
    *(
        "rows_of_answered",
        "rows",
        "counted_days",
        "uncounted_rows",
        "period_of",
        "keys_of",
        "key_list",
        "key_columns",
        "serving_days",
    ),
    *("sums", "durations", "people_seen", "organization_days", "bits"),
)

# Whoever moves the ledger may run the functions for consumers.
GRANTS = f"""
    DO $$
    DECLARE holder text;
    BEGIN
        FOR holder IN
            SELECT quote_ident(pg_get_userbyid(acl.grantee))
            FROM pg_class AS class CROSS JOIN aclexplode(class.relacl) AS acl
            WHERE class.oid = 'ingest.partition_offsets'::regclass AND acl.privilege_type = 'UPDATE'
                AND acl.grantee NOT IN (0, class.relowner)
        LOOP
            EXECUTE format(
                'GRANT EXECUTE ON FUNCTION {", ".join(f"ingest.{name}" for name in FOR_CONSUMERS)} TO %s', holder
            );
        END LOOP;
    END $$
"""  # noqa: S608  our own names


def upgrade() -> None:
    for path in sorted((STATEMENTS / "009").glob("*.sql")):
        for statement in path.read_text().split(SPLIT):
            op.execute(statement)
    for name in ("activity", "requests"):
        op.execute(f"DROP FUNCTION analytics.{name}(timestamptz, timestamptz, text, text, text)")
    for name in HELPERS:
        op.execute(f"REVOKE ALL ON FUNCTION analytics.{name} FROM PUBLIC")
    for name in (*FOR_CONSUMERS, "mark_every_day"):
        op.execute(f"REVOKE ALL ON FUNCTION ingest.{name} FROM PUBLIC")
    for table in ANALYTICS_TABLES:
        op.execute(
            f"""
            CREATE TRIGGER mark_every_day AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON public.{table}
            FOR EACH STATEMENT EXECUTE FUNCTION ingest.mark_every_day()
            """
        )
    op.execute(GRANTS)


def downgrade() -> None:
    for table in ANALYTICS_TABLES:
        op.execute(f"DROP TRIGGER mark_every_day ON public.{table}")
    for path, names in REPLACED.items():
        for statement in (STATEMENTS / path).read_text().split(SPLIT):
            _, found, rest = statement.partition("FUNCTION analytics.")
            if found and rest.partition("(")[0] in names:
                op.execute(f"CREATE OR REPLACE FUNCTION analytics.{rest}")
    for name in ("activity", "requests"):
        op.execute(f"REVOKE ALL ON FUNCTION analytics.{name} FROM PUBLIC")
    op.execute("DROP AGGREGATE analytics.bits(integer, integer)")
    for name in HELPERS[-2::-1]:
        op.execute(f"DROP FUNCTION analytics.{name}")
    for name in (*FOR_CONSUMERS, "mark_every_day"):
        op.execute(f"DROP FUNCTION ingest.{name}")
    for name in ("day_organizations", "day_people", "day_sums", "people", "rolled_days", "rollup_marks"):
        op.execute(f"DROP TABLE analytics.{name}")
