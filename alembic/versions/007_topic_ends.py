"""Keep where each partition ended and when: `freshness` tells how many records wait, and a quiet topic is complete."""

import sqlalchemy as sa
from alembic import op

revision = "007_topic_ends"
down_revision = "006_analytics_views"
branch_labels = None
depends_on = None

COLUMNS = """
    topic text, partitions bigint, complete_until timestamptz, newest_record timestamptz, settled numeric,
    stored numeric, duplicates numeric, suppressed numeric, expired numeric, skipped numeric, dead_lettered numeric,
    dead_letters_waiting bigint, gaps bigint, gaps_open bigint, lost numeric
"""
SELECTED = """
    sum(line.next_offset - line.first_offset), sum(line.stored), sum(line.duplicates), sum(line.suppressed),
    sum(line.expired), sum(line.skipped), sum(line.dead_lettered),
    (SELECT count(*) FROM ingest.dead_letters AS letter
        WHERE letter.topic = line.topic AND letter.redriven_at IS NULL),
    (SELECT count(*) FROM ingest.gaps AS gap WHERE gap.topic = line.topic),
    (SELECT count(*) FROM ingest.gaps AS gap WHERE gap.topic = line.topic AND gap.acknowledged_at IS NULL),
    (SELECT coalesce(sum(gap.to_offset - gap.from_offset), 0) FROM ingest.gaps AS gap
        WHERE gap.topic = line.topic AND gap.reason = 'retention')
"""
# Where a partition's end, as it was seen, is settled, everything is that was received until it was seen.
WITH_ENDS = f"""
    CREATE FUNCTION analytics.freshness() RETURNS TABLE ({COLUMNS}, waiting numeric, end_seen_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        SELECT line.topic, count(*),
            min(CASE WHEN seen.end_offset <= line.next_offset THEN greatest(seen.seen_at, line.last_record_time)
                ELSE line.last_record_time END),
            max(line.last_record_time), {SELECTED},
            sum(greatest(seen.end_offset - line.next_offset, 0)) FILTER (WHERE seen.end_offset IS NOT NULL),
            min(seen.seen_at)
        FROM ingest.partition_offsets AS line
        LEFT JOIN ingest.topic_ends AS seen
            ON seen.topic = line.topic AND seen.partition = line.partition AND seen.topic_id = line.topic_id
        WHERE line.generation = 'live' GROUP BY line.topic ORDER BY line.topic
    $$
"""  # noqa: S608  our own names
WITHOUT_ENDS = f"""
    CREATE FUNCTION analytics.freshness() RETURNS TABLE ({COLUMNS})
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        SELECT line.topic, count(*), min(line.last_record_time), max(line.last_record_time), {SELECTED}
        FROM ingest.partition_offsets AS line WHERE line.generation = 'live' GROUP BY line.topic ORDER BY line.topic
    $$
"""  # noqa: S608  our own names
COMMENT = """
    COMMENT ON FUNCTION analytics.freshness IS
    'How complete the tables are: every record that the receiver took up to complete_until has its fate'
"""

# Whoever writes the ledger notes the ends; whoever may run the functions beside it may run the new one.
GRANTS = """
    DO $$
    DECLARE holder text; function regprocedure;
    BEGIN
        FOR holder IN
            SELECT quote_ident(pg_get_userbyid(acl.grantee))
            FROM pg_class AS class CROSS JOIN aclexplode(class.relacl) AS acl
            WHERE class.oid = 'ingest.partition_offsets'::regclass AND acl.privilege_type = 'UPDATE'
                AND acl.grantee NOT IN (0, class.relowner)
        LOOP
            EXECUTE format('GRANT SELECT, INSERT, UPDATE ON ingest.topic_ends TO %s', holder);
        END LOOP;
    END $$
"""
READERS = """
    DO $$
    DECLARE reader text;
    BEGIN
        REVOKE ALL ON FUNCTION analytics.freshness() FROM PUBLIC;
        FOR reader IN
            SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
            FROM pg_proc AS function CROSS JOIN aclexplode(function.proacl) AS acl
            WHERE function.oid = 'analytics.partitions()'::regprocedure AND acl.grantee <> function.proowner
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION analytics.freshness() TO %s', reader);
        END LOOP;
    END $$
"""


def upgrade() -> None:
    op.create_table(
        "topic_ends",
        sa.Column("topic", sa.Text(), nullable=False, comment="Kafka topic"),
        sa.Column("partition", sa.Integer(), nullable=False, comment="Kafka partition"),
        sa.Column("topic_id", sa.UUID(), nullable=False, comment="The broker's id of the topic; all zeros for none"),
        sa.Column("end_offset", sa.BigInteger(), nullable=False, comment="The offset that the next record will get"),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False, comment="When a consumer asked for it"),
        sa.PrimaryKeyConstraint("topic", "partition", name=op.f("pk_topic_ends")),
        schema="ingest",
        comment="Where each partition ended when it was last asked, every ten seconds",
    )
    op.execute(GRANTS)
    _replace_freshness(WITH_ENDS)


def downgrade() -> None:
    _replace_freshness(WITHOUT_ENDS)
    op.drop_table("topic_ends", schema="ingest")


def _replace_freshness(statement: str) -> None:
    op.execute("DROP FUNCTION analytics.freshness()")
    for each in (statement, COMMENT, READERS):
        op.execute(each)
