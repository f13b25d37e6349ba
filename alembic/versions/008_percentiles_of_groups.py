"""Percentiles from groups of durations half a percent wide, and people counted once: no sort of every row."""

from pathlib import Path

from alembic import op

revision = "008_percentiles_of_groups"
down_revision = "007_topic_ends"
branch_labels = None
depends_on = None

STATEMENTS = Path(__file__).resolve().parents[1] / "analytics"
SPLIT = "\n\n"
REPLACED = ("endpoint_health", "requests_over_time", "releases", "overview")


def upgrade() -> None:
    for statement in (STATEMENTS / "008" / "requests.sql").read_text().split(SPLIT):
        op.execute(statement)
    op.execute("REVOKE ALL ON FUNCTION analytics.duration_group FROM PUBLIC")


def downgrade() -> None:
    for statement in (STATEMENTS / "006" / "05_requests.sql").read_text().split(SPLIT):
        if statement.startswith(tuple(f"CREATE FUNCTION analytics.{name}(" for name in REPLACED)):
            op.execute(statement.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1))
    op.execute("DROP FUNCTION analytics.duration_group")
