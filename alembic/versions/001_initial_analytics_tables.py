"""Create user_activity, endpoint_usage and feature_usage."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "001_initial_analytics_tables"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "user_activity",
        sa.Column("id", sa.UUID(), nullable=False, comment="From trace id and span id: one span, one row"),
        sa.Column(
            "user_id",
            sa.String(length=32),
            nullable=False,
            comment="Hash of the user id: 16 hex digits. Personal data all the same",
        ),
        sa.Column(
            "organization_id", sa.String(length=32), nullable=True, comment="Hash of the organization id: 16 hex digits"
        ),
        sa.Column("event_type", sa.String(length=50), nullable=False, comment="login, logout, ..."),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False, comment="Start of the span"),
        sa.Column("session_id", sa.String(length=255), nullable=True, comment="Session identifier"),
        sa.Column("deployment_type", sa.String(length=50), nullable=False, comment="cloud, self-hosted, ..."),
        sa.Column(
            "event_metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
            comment="Allowed attributes of the span, redacted",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_activity")),
        comment="User engagement: login, logout, sessions",
    )
    op.create_index(
        op.f("ix_user_activity_organization_id"),
        "user_activity",
        ["organization_id"],
        unique=False,
        postgresql_where=sa.text("organization_id IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_user_activity_timestamp"),
        "user_activity",
        ["timestamp"],
        unique=False,
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": True},
    )
    op.create_index(
        op.f("ix_user_activity_user_id"),
        "user_activity",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
    op.create_table(
        "endpoint_usage",
        sa.Column("id", sa.UUID(), nullable=False, comment="From trace id and span id: one span, one row"),
        sa.Column("endpoint", sa.String(length=255), nullable=False, comment="Route or path; ids in it are {id}"),
        sa.Column("method", sa.String(length=10), nullable=True, comment="HTTP method, upper case"),
        sa.Column(
            "user_id",
            sa.String(length=32),
            nullable=True,
            comment="Hash of the user id: 16 hex digits. Personal data all the same",
        ),
        sa.Column(
            "organization_id", sa.String(length=32), nullable=True, comment="Hash of the organization id: 16 hex digits"
        ),
        sa.Column("status_code", sa.Integer(), nullable=True, comment="HTTP status code"),
        sa.Column("duration_ms", sa.Double(), nullable=True, comment="Duration in milliseconds"),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False, comment="Start of the span"),
        sa.Column("deployment_type", sa.String(length=50), nullable=False, comment="cloud, self-hosted, ..."),
        sa.Column(
            "event_metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
            comment="Allowed attributes of the span, redacted",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_endpoint_usage")),
        comment="Requests by endpoint, with status and duration",
    )
    op.create_index(
        op.f("ix_endpoint_usage_organization_id"),
        "endpoint_usage",
        ["organization_id"],
        unique=False,
        postgresql_where=sa.text("organization_id IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_endpoint_usage_timestamp"),
        "endpoint_usage",
        ["timestamp"],
        unique=False,
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": True},
    )
    op.create_index(
        op.f("ix_endpoint_usage_user_id"),
        "endpoint_usage",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
    op.create_table(
        "feature_usage",
        sa.Column("id", sa.UUID(), nullable=False, comment="From trace id and span id: one span, one row"),
        sa.Column("feature_name", sa.String(length=100), nullable=False, comment="Feature identifier"),
        sa.Column(
            "user_id",
            sa.String(length=32),
            nullable=True,
            comment="Hash of the user id: 16 hex digits. Personal data all the same",
        ),
        sa.Column(
            "organization_id", sa.String(length=32), nullable=True, comment="Hash of the organization id: 16 hex digits"
        ),
        sa.Column("action", sa.String(length=100), nullable=True, comment="created, viewed, updated, deleted, ..."),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False, comment="Start of the span"),
        sa.Column("deployment_type", sa.String(length=50), nullable=False, comment="cloud, self-hosted, ..."),
        sa.Column(
            "event_metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
            comment="Allowed attributes of the span, redacted",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feature_usage")),
        comment="Use of features",
    )
    op.create_index(
        op.f("ix_feature_usage_organization_id"),
        "feature_usage",
        ["organization_id"],
        unique=False,
        postgresql_where=sa.text("organization_id IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_feature_usage_timestamp"),
        "feature_usage",
        ["timestamp"],
        unique=False,
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": True},
    )
    op.create_index(
        op.f("ix_feature_usage_user_id"),
        "feature_usage",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("feature_usage")
    op.drop_table("endpoint_usage")
    op.drop_table("user_activity")
