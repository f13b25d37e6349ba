"""Know a truncated topic by its last record, let gaps be acknowledged, keep the progress of erasures."""

import sqlalchemy as sa
from alembic import op

revision = "003_truncation_and_erasures"
down_revision = "002_ingest_schema"
branch_labels = None
depends_on = None

LINES = ("partition_offsets", "ledger_history")
OLD_HASH = "SHA-256 of the record before next_offset, if topic_id is zeros"
NEW_HASH = "SHA-256 of the value of the last settled record"
HISTORY = "Lines of the ledger that a rewind, an adoption or a swap has ended"
GAPS = "Offsets that retention or an operator took away before they were read"
GAP_REASON = "retention, or what an operator did"


def upgrade() -> None:
    for table in LINES:
        op.alter_column(table, "last_record_hash", existing_type=sa.LargeBinary(), comment=NEW_HASH, schema="ingest")
        op.add_column(
            table,
            sa.Column(
                "last_record_time",
                sa.DateTime(timezone=True),
                nullable=True,
                comment="When the receiver got the last settled record",
            ),
            schema="ingest",
        )
        op.add_column(
            table,
            sa.Column(
                "leader_epoch",
                sa.Integer(),
                nullable=True,
                comment="Kafka leader epoch under which the last settled record was read",
            ),
            schema="ingest",
        )
    op.create_table_comment(
        "ledger_history",
        "Lines of the ledger that a rewind, an adoption, a swap or a truncated topic has ended",
        schema="ingest",
    )
    op.add_column(
        "gaps",
        sa.Column(
            "acknowledged_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When an operator took note of it",
        ),
        schema="ingest",
    )
    op.alter_column("gaps", "reason", existing_type=sa.Text(), comment="retention, or truncated", schema="ingest")
    op.create_table_comment(
        "gaps",
        "Offsets that retention took away before they were read, or that the topic lost after they were read",
        schema="ingest",
    )
    op.create_table(
        "erasures",
        sa.Column("kind", sa.Text(), nullable=False, comment="user or organization"),
        sa.Column("hash", sa.Text(), nullable=False, comment="Hash of the erased id"),
        sa.Column(
            "erased_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Rows and dead letters up to then go",
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it began",
        ),
        sa.Column(
            "deleted",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Rows and dead letters deleted so far",
        ),
        sa.Column(
            "done_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When nothing was left to delete; null while under way",
        ),
        sa.CheckConstraint("kind IN ('user', 'organization')", name="kind_is_known"),
        sa.PrimaryKeyConstraint("kind", "hash", name=op.f("pk_erasures")),
        schema="ingest",
        comment="The deletions that suppressions ask for, with their progress",
    )
    # Roles of an earlier deploy/postgres/roles.sql: who writes suppressions writes erasures; who may take a gap
    # away may acknowledge it.
    op.execute(_granted("SELECT, INSERT, UPDATE", on="erasures", to_who_may="UPDATE", of="suppressions"))
    op.execute(_granted("UPDATE", on="gaps", to_who_may="DELETE", of="gaps"))


def _granted(privileges: str, *, on: str, to_who_may: str, of: str) -> str:
    """Grant to every role but the owner that has the privilege `to_who_may` on the table `of`."""
    return f"""
        DO $$
        DECLARE holder name;
        BEGIN
            FOR holder IN
                SELECT pg_get_userbyid(acl.grantee) FROM pg_class AS class CROSS JOIN aclexplode(class.relacl) AS acl
                WHERE class.oid = 'ingest.{of}'::regclass AND acl.privilege_type = '{to_who_may}'
                    AND acl.grantee NOT IN (0, class.relowner)
            LOOP
                EXECUTE format('GRANT {privileges} ON ingest.{on} TO %I', holder);
            END LOOP;
        END $$
    """  # noqa: S608  our own names


def downgrade() -> None:
    op.drop_table("erasures", schema="ingest")
    op.create_table_comment("gaps", GAPS, schema="ingest")
    op.alter_column("gaps", "reason", existing_type=sa.Text(), comment=GAP_REASON, schema="ingest")
    op.drop_column("gaps", "acknowledged_at", schema="ingest")
    op.create_table_comment("ledger_history", HISTORY, schema="ingest")
    for table in LINES:
        op.drop_column(table, "leader_epoch", schema="ingest")
        op.drop_column(table, "last_record_time", schema="ingest")
        op.alter_column(table, "last_record_hash", existing_type=sa.LargeBinary(), comment=OLD_HASH, schema="ingest")
