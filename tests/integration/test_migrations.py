"""Migrations on a real Postgres: models, migrations and the running schema are one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from consumer.store.schema import SCHEMA_REVISION
from deploy.local.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[2]

COLUMNS = {
    "user_activity": """id uuid NOT NULL, user_id character varying(32) NOT NULL,
        organization_id character varying(32), event_type character varying(50) NOT NULL,
        timestamp timestamp with time zone NOT NULL, session_id character varying(255),
        deployment_type character varying(50) NOT NULL, event_metadata jsonb NOT NULL, ADDED""",
    "endpoint_usage": """id uuid NOT NULL, endpoint character varying(255) NOT NULL, method character varying(10),
        user_id character varying(32), organization_id character varying(32), status_code integer,
        duration_ms double precision, timestamp timestamp with time zone NOT NULL,
        deployment_type character varying(50) NOT NULL, event_metadata jsonb NOT NULL, ADDED""",
    "feature_usage": """id uuid NOT NULL, feature_name character varying(100) NOT NULL,
        user_id character varying(32), organization_id character varying(32), action character varying(100),
        timestamp timestamp with time zone NOT NULL, deployment_type character varying(50) NOT NULL,
        event_metadata jsonb NOT NULL, ADDED""",
}
ADDED = """service_name character varying(255), service_version character varying(100), trace_id uuid,
        weight double precision NOT NULL"""
COLUMNS["model_usage"] = """id uuid NOT NULL, operation character varying(50) NOT NULL,
        provider character varying(100), model character varying(255), user_id character varying(32),
        organization_id character varying(32), input_tokens bigint, output_tokens bigint, duration_ms double precision,
        error_type character varying(100), timestamp timestamp with time zone NOT NULL,
        deployment_type character varying(50) NOT NULL, event_metadata jsonb NOT NULL, ADDED"""


def alembic(url: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**os.environ, "ANALYTICS_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def query(postgres: PostgresServer, url: str, sql: str) -> str:
    return postgres.query(sql, database=url.rpartition("/")[2])


def test_models_and_migrations_agree(database_url: str) -> None:
    """A model that no migration made works on the developer's machine only."""
    assert "No new upgrade operations detected" in alembic(database_url, "check")
    assert SCHEMA_REVISION in alembic(database_url, "current")
    assert SCHEMA_REVISION in alembic(database_url, "heads")


def test_every_downgrade_works_and_leads_back(database_url: str, postgres: PostgresServer) -> None:
    """A release that must be taken back at night has to be."""
    revisions = [line.split()[2].rstrip(",") for line in alembic(database_url, "history").splitlines()]
    for _ in revisions:
        alembic(database_url, "downgrade", "-1")
    left = query(
        postgres,
        database_url,
        "SELECT count(*) FROM information_schema.tables WHERE table_schema IN ('public', 'ingest') "
        "AND table_name <> 'alembic_version'",
    )
    assert left == "0"
    alembic(database_url, "upgrade", "head")
    alembic(database_url, "check")


def test_the_first_revision_makes_the_analytics_tables_alone(database_url: str, postgres: PostgresServer) -> None:
    """Its name is referred to by those who already run the original product."""
    alembic(database_url, "downgrade", "001_initial_analytics_tables")
    tables = query(
        postgres,
        database_url,
        "SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_tables "
        "WHERE schemaname = 'public' OR schemaname = 'ingest'",
    )
    assert tables == "alembic_version,endpoint_usage,feature_usage,user_activity"


@pytest.mark.parametrize("table", COLUMNS)
def test_columns_are_as_documented_in_name_type_order_and_with_a_comment(
    table: str, database_url: str, postgres: PostgresServer
) -> None:
    """Queries and dashboards of the original product run unchanged on these tables."""
    found = query(
        postgres,
        database_url,
        f"""
        SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL'
            ELSE '' END, ', ' ORDER BY attnum)
        FROM pg_attribute WHERE attrelid = 'public.{table}'::regclass AND attnum > 0 AND NOT attisdropped
        """,
    )
    assert found == " ".join(COLUMNS[table].replace("ADDED", ADDED).split())


def test_every_table_and_column_has_a_comment(database_url: str, postgres: PostgresServer) -> None:
    """The schema is the first documentation that an analyst opens."""
    bare = query(
        postgres,
        database_url,
        """
        SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum >= 0 AND NOT a.attisdropped OR a.attnum IS NULL
        WHERE relkind = 'r' AND nspname IN ('public', 'ingest') AND relname <> 'alembic_version'
            AND attnum > 0 AND (col_description(c.oid, attnum) IS NULL OR obj_description(c.oid) IS NULL)
        """,
    )
    assert bare == "0"


def test_a_bad_address_is_code_2_as_of_the_services() -> None:
    """A deployment tells a typo, which no retry mends, from a migration that failed."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "current"],
        cwd=ROOT,
        env={**os.environ, "ANALYTICS_DATABASE_URL": "mysql://u:hunter2@h/n"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "ANALYTICS_DATABASE_URL" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_password_of_any_characters_works(database_url: str, postgres: PostgresServer) -> None:
    """Generated passwords hold %, @ and /, which URLs and configuration files each read in their own way."""
    postgres.query("DROP ROLE IF EXISTS odd; CREATE ROLE odd LOGIN SUPERUSER PASSWORD 'p@:/?#%ü &='")
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "current"],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ANALYTICS_")},
            "ANALYTICS_DB_USER": "odd",
            "ANALYTICS_DB_PASS": "p@:/?#%ü &=",
            "ANALYTICS_DB_HOST": "127.0.0.1",
            "ANALYTICS_DB_PORT": str(postgres.port),
            "ANALYTICS_DB_NAME": database_url.rpartition("/")[2],
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert SCHEMA_REVISION in done.stdout, done.stderr
