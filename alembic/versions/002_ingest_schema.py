"""Create the schema `ingest`: the ledger, its history, gaps, dead letters and suppressions."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "002_ingest_schema"
down_revision = "001_initial_analytics_tables"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE SCHEMA ingest")
    op.create_table(
        "partition_offsets",
        sa.Column("generation", sa.Text(), nullable=False, comment="live, or a rebuild's name"),
        sa.Column("topic", sa.Text(), nullable=False, comment="Kafka topic"),
        sa.Column("partition", sa.Integer(), nullable=False, comment="Kafka partition"),
        sa.Column(
            "topic_id", sa.UUID(), nullable=False, comment="The broker's id of the topic; all zeros where it gives none"
        ),
        sa.Column("epoch", sa.BigInteger(), nullable=False, comment="Rises when an operator moves the line"),
        sa.Column("first_offset", sa.BigInteger(), nullable=False, comment="Where this line began"),
        sa.Column("next_offset", sa.BigInteger(), nullable=False, comment="The first offset that has no fate yet"),
        sa.Column(
            "stored",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Records that made a new row",
        ),
        sa.Column(
            "duplicates",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Records whose row was there already",
        ),
        sa.Column(
            "dead_lettered",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Records that are dead letters",
        ),
        sa.Column(
            "suppressed",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Records of an erased subject",
        ),
        sa.Column(
            "expired",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Records past their retention",
        ),
        sa.Column(
            "skipped",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Tombstones, offsets without a record, offsets lost to retention",
        ),
        sa.Column(
            "last_record_hash",
            sa.LargeBinary(),
            nullable=True,
            comment="SHA-256 of the record before next_offset, if topic_id is zeros",
        ),
        sa.CheckConstraint(
            "next_offset - first_offset = stored + duplicates + dead_lettered + suppressed + expired + skipped",
            name="every_offset_has_one_fate",
        ),
        sa.PrimaryKeyConstraint("generation", "topic", "partition", name=op.f("pk_partition_offsets")),
        schema="ingest",
        comment="The ledger: moved in the transaction of the rows that it covers",
    )
    op.create_table(
        "ledger_history",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False, comment="Order of the endings"),
        sa.Column("generation", sa.Text(), nullable=False, comment="live, or a rebuild's name"),
        sa.Column("topic", sa.Text(), nullable=False, comment="Kafka topic"),
        sa.Column("partition", sa.Integer(), nullable=False, comment="Kafka partition"),
        sa.Column(
            "topic_id", sa.UUID(), nullable=False, comment="The broker's id of the topic; all zeros where it gives none"
        ),
        sa.Column("epoch", sa.BigInteger(), nullable=False, comment="Rises when an operator moves the line"),
        sa.Column("first_offset", sa.BigInteger(), nullable=False, comment="Where this line began"),
        sa.Column("next_offset", sa.BigInteger(), nullable=False, comment="The first offset that has no fate yet"),
        sa.Column(
            "stored",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Records that made a new row",
        ),
        sa.Column(
            "duplicates",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Records whose row was there already",
        ),
        sa.Column(
            "dead_lettered",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Records that are dead letters",
        ),
        sa.Column(
            "suppressed",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Records of an erased subject",
        ),
        sa.Column(
            "expired",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Records past their retention",
        ),
        sa.Column(
            "skipped",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Tombstones, offsets without a record, offsets lost to retention",
        ),
        sa.Column(
            "last_record_hash",
            sa.LargeBinary(),
            nullable=True,
            comment="SHA-256 of the record before next_offset, if topic_id is zeros",
        ),
        sa.Column(
            "ended_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it ended",
        ),
        sa.Column("reason", sa.Text(), nullable=False, comment="What ended it"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_history")),
        schema="ingest",
        comment="Lines of the ledger that a rewind, an adoption or a swap has ended",
    )
    op.create_table(
        "gaps",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False, comment="Order of the findings"),
        sa.Column("topic", sa.Text(), nullable=False, comment="Kafka topic"),
        sa.Column("partition", sa.Integer(), nullable=False, comment="Kafka partition"),
        sa.Column("from_offset", sa.BigInteger(), nullable=False, comment="First offset that is gone"),
        sa.Column("to_offset", sa.BigInteger(), nullable=False, comment="First offset that is there again"),
        sa.Column("reason", sa.Text(), nullable=False, comment="retention, or what an operator did"),
        sa.Column(
            "seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was found",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gaps")),
        schema="ingest",
        comment="Offsets that retention or an operator took away before they were read",
    )
    op.create_table(
        "dead_letters",
        sa.Column("topic_id", sa.UUID(), nullable=False, comment="The broker's id of the topic"),
        sa.Column("topic", sa.Text(), nullable=False, comment="Kafka topic"),
        sa.Column("partition", sa.Integer(), nullable=False, comment="Kafka partition"),
        sa.Column("offset", sa.BigInteger(), nullable=False, comment="Kafka offset"),
        sa.Column("key", sa.LargeBinary(), nullable=True, comment="The record's key"),
        sa.Column("value", sa.LargeBinary(), nullable=True, comment="The record's value"),
        sa.Column(
            "headers", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="Pairs of name and base64 value"
        ),
        sa.Column("record_time", sa.DateTime(timezone=True), nullable=True, comment="When the receiver got it"),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why it is no row"),
        sa.Column(
            "first_seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it came",
        ),
        sa.Column("redriven_at", sa.DateTime(timezone=True), nullable=True, comment="When it became a row after all"),
        sa.PrimaryKeyConstraint("topic_id", "topic", "partition", "offset", name=op.f("pk_dead_letters")),
        schema="ingest",
        comment="Records that could not become rows, whole",
    )
    op.create_table(
        "suppressions",
        sa.Column("kind", sa.Text(), nullable=False, comment="user or organization"),
        sa.Column("hash", sa.Text(), nullable=False, comment="Hash of the erased id"),
        sa.Column(
            "erased_at", sa.DateTime(timezone=True), nullable=False, comment="Events up to then are not stored again"
        ),
        sa.CheckConstraint("kind IN ('user', 'organization')", name="kind_is_known"),
        sa.PrimaryKeyConstraint("kind", "hash", name=op.f("pk_suppressions")),
        schema="ingest",
        comment="Erased subjects, so that no replay brings them back",
    )


def downgrade() -> None:
    op.drop_table("suppressions", schema="ingest")
    op.drop_table("dead_letters", schema="ingest")
    op.drop_table("gaps", schema="ingest")
    op.drop_table("ledger_history", schema="ingest")
    op.drop_table("partition_offsets", schema="ingest")
    op.execute("DROP SCHEMA ingest")
