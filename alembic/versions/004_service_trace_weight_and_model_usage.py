"""Add service, trace and weight to the analytics tables, and the table model_usage."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "004_service_trace_weight_models"
down_revision = "003_truncation_and_erasures"
branch_labels = None
depends_on = None

OLDER_TABLES = ("user_activity", "endpoint_usage", "feature_usage")

# Whoever may use the older tables may use the new one in the same way: the roles of deploy/postgres, where they exist.
GRANTS = """
DO $$
DECLARE granted record;
BEGIN
    FOR granted IN
        SELECT acl.privilege_type, acl.grantee
        FROM pg_class AS class, aclexplode(class.relacl) AS acl
        WHERE class.oid = 'public.user_activity'::regclass AND acl.grantee <> class.relowner
    LOOP
        EXECUTE format(
            'GRANT %s ON public.model_usage TO %s',
            granted.privilege_type,
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(granted.grantee)) END
        );
    END LOOP;
END $$
"""


def _added() -> list[sa.Column]:
    return [
        sa.Column("service_name", sa.String(length=255), nullable=True, comment="Service that sent the span"),
        sa.Column("service_version", sa.String(length=100), nullable=True, comment="Version of that service"),
        sa.Column("trace_id", sa.UUID(), nullable=True, comment="Trace of the span"),
        sa.Column(
            "weight",
            sa.Double(),
            server_default=sa.text("1"),
            nullable=False,
            comment="Spans that this one stands for, when the sender samples",
        ),
    ]


def upgrade() -> None:
    for table in OLDER_TABLES:
        for column in _added():
            op.add_column(table, column)
    op.create_table(
        "model_usage",
        sa.Column("id", sa.UUID(), nullable=False, comment="From trace id and span id: one span, one row"),
        sa.Column("operation", sa.String(length=50), nullable=False, comment="chat, embeddings, text_completion, ..."),
        sa.Column("provider", sa.String(length=100), nullable=True, comment="openai, aws.bedrock, ..."),
        sa.Column("model", sa.String(length=255), nullable=True, comment="Model that answered, or that was asked"),
        sa.Column(
            "user_id",
            sa.String(length=32),
            nullable=True,
            comment="Hash of the user id: 16 hex digits. Personal data all the same",
        ),
        sa.Column(
            "organization_id", sa.String(length=32), nullable=True, comment="Hash of the organization id: 16 hex digits"
        ),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True, comment="Tokens of the prompt"),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True, comment="Tokens of the answer"),
        sa.Column("duration_ms", sa.Double(), nullable=True, comment="Duration in milliseconds"),
        sa.Column("error_type", sa.String(length=100), nullable=True, comment="Why the call failed"),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False, comment="Start of the span"),
        sa.Column("deployment_type", sa.String(length=50), nullable=False, comment="cloud, self-hosted, ..."),
        sa.Column(
            "event_metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
            comment="Allowed attributes of the span, redacted",
        ),
        *_added(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_usage")),
        comment="Calls of language models, with tokens and duration",
    )
    op.create_index(
        op.f("ix_model_usage_organization_id"),
        "model_usage",
        ["organization_id"],
        unique=False,
        postgresql_where=sa.text("organization_id IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_model_usage_timestamp"),
        "model_usage",
        ["timestamp"],
        unique=False,
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": True},
    )
    op.create_index(
        op.f("ix_model_usage_user_id"),
        "model_usage",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
    op.execute(GRANTS)


def downgrade() -> None:
    op.drop_table("model_usage")
    for table in OLDER_TABLES:
        for column in reversed(_added()):
            op.drop_column(table, column.name)
