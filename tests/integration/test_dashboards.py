"""The shipped dashboard's SQL on real rows: every panel answers, and none counts fewer than k people."""

import asyncio
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from deploy.local.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
PANELS = {
    panel["title"]: panel["targets"][0]["rawSql"]
    for panel in json.loads((ROOT / "deploy/grafana/dashboards/product.json").read_text())["panels"]
}
K = 5
READER_PASSWORD = 'reader\'s "own" \\ password'
NOON = datetime(2026, 3, 4, 12, 30, tzinfo=UTC)
QUIET_HOUR = NOON - timedelta(hours=6)  # fewer than K people were there
STEPS = "user_activity:crowd-event,feature_usage:crowd-feature/opened"
DAY = (NOON - timedelta(days=1), NOON + timedelta(hours=1))


def expanded(sql: str, *, between: tuple[datetime, datetime], k: int = K, step: str = "day", **chosen: str) -> str:
    """What Grafana makes of a panel: its macros for the range, and the dashboard's variables."""
    start, end = (f"'{moment.isoformat()}'" for moment in between)
    values = {"organization": "", "service": "", "deployment": "", "steps": STEPS} | chosen
    sql = sql.replace("$__timeFrom()", start).replace("$__timeTo()", end)
    sql = re.sub(r"\$\{(\w+):sqlstring\}", lambda found: "'" + values[found[1]].replace("'", "''") + "'", sql)
    sql = sql.replace("$k", str(k)).replace("$step", step).replace("$within", "1 day")
    assert "$" not in sql, f"a macro or variable that this function does not know: {sql}"
    return sql


@pytest.fixture
async def reader(database_url: str, postgres: PostgresServer) -> Iterator[asyncpg.Connection]:
    """A connection as the role that Grafana has, to a database with a crowd and with a few people who stand out."""
    owner = await asyncpg.connect(database_url)
    crowd = [(f"crowd-{number}", "crowd", NOON) for number in range(K)]
    rare = [(f"rare-{number}", "rare", NOON) for number in range(K - 1)] * 2
    quiet = [(f"crowd-{number}", "crowd", QUIET_HOUR) for number in range(K - 1)] * 2
    anonymous = [(None, "anonymous", NOON)] * (2 * K)
    for user, name, at in crowd + rare + quiet + anonymous:
        common = {"id": uuid.uuid4(), "user_id": user, "organization_id": f"{name}-organization", "timestamp": at}
        common |= {"deployment_type": f"{name}-deployment", "service_name": f"{name}-service", "service_version": "1"}
        usage = {"endpoint": f"/{name}", "method": "GET", "status_code": 200 if name == "crowd" else 503}
        await insert(owner, "endpoint_usage", common | usage | {"duration_ms": 12.5})
        await insert(owner, "feature_usage", common | {"feature_name": f"{name}-feature", "action": "opened"})
        call = {"operation": "chat", "provider": "openai", "model": f"{name}-model", "input_tokens": 17}
        await insert(owner, "model_usage", common | call)
        if user is not None:
            await insert(owner, "user_activity", common | {"event_type": f"{name}-event"})
    line = {"generation": "live", "topic": "telemetry.events", "partition": 0, "topic_id": uuid.UUID(int=7), "epoch": 0}
    await insert(owner, "ingest.partition_offsets", line | {"first_offset": 0, "next_offset": 5, "stored": 5})
    await owner.close()
    script = ["-v", "ON_ERROR_STOP=1", "-f", str(ROOT / "deploy/postgres/reader.sql")]
    environment = os.environ | {"ANALYTICS_READER_PASS": READER_PASSWORD}
    for _ in range(2):  # a second run is harmless
        psql = [postgres.bin_dir / "psql", "-q", database_url, *script]
        await asyncio.to_thread(subprocess.run, psql, env=environment, check=True)
    place = urlsplit(database_url)
    connection = await asyncpg.connect(
        host=place.hostname,
        port=place.port,
        database=place.path.lstrip("/"),
        user="analytics_reader",
        password=READER_PASSWORD,
    )
    yield connection
    await connection.close()


async def insert(connection: asyncpg.Connection, table: str, row: dict[str, Any]) -> None:
    names, places = ", ".join(f'"{name}"' for name in row), ", ".join(f"${n + 1}" for n in range(len(row)))
    await connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", *row.values())


PEOPLE = {"people", "users", "new_users", "returning_users", "daily", "weekly", "monthly", "returned"}


@pytest.mark.parametrize("title", PANELS)
async def test_a_panel_shows_the_crowd_and_hides_those_who_stand_out(title: str, reader: asyncpg.Connection) -> None:
    """A cell of two people in a small company names them. k below the database's own limit shows no more."""
    rows = await reader.fetch(expanded(PANELS[title], between=DAY))
    assert rows
    assert "rare" not in str(rows)
    for row in rows:
        assert not any(0 < row[name] < K for name in PEOPLE & set(row.keys()) if row[name] is not None), row
    below = await reader.fetch(expanded(PANELS[title], between=DAY, k=1))
    assert below == rows


@pytest.mark.parametrize("title", PANELS)
async def test_a_panel_of_a_quiet_hour_names_nobody(title: str, reader: asyncpg.Connection) -> None:
    """Zooming in must not do what the dashboard refuses to do: fewer than k people are not counted."""
    quiet = (QUIET_HOUR - timedelta(minutes=5), QUIET_HOUR + timedelta(minutes=5))
    for row in await reader.fetch(expanded(PANELS[title], between=quiet)):
        assert not any(row[name] for name in PEOPLE & set(row.keys()) if name not in {"weekly", "monthly"}), row
        assert "crowd" not in str(row).replace(STEPS.split(",", maxsplit=1)[0], "").replace(STEPS.split(",")[1], "")


@pytest.mark.parametrize("step", ["day", "week", "month"])
async def test_every_choice_of_the_dashboard_works(step: str, reader: asyncpg.Connection) -> None:
    """And a filter with a quote in it is text."""
    for title, sql in PANELS.items():
        await reader.fetch(expanded(sql, between=DAY, step=step))
        rows = await reader.fetch(expanded(sql, between=DAY, organization="o'; --", service="s", deployment="d"))
        assert "crowd-organization" not in str(rows), title


async def test_the_numbers_of_endpoints_are_right(reader: asyncpg.Connection) -> None:
    """A dashboard that is wrong is worse than none. Requests of no known person are nobody's, and are shown."""
    rows = {row["endpoint"]: row for row in await reader.fetch(expanded(PANELS["Endpoints"], between=DAY))}
    assert rows.keys() == {"/crowd", "/anonymous"}
    crowd = rows["/crowd"]
    assert (crowd["requests"], crowd["people"], crowd["p50_ms"], crowd["p99_ms"]) == (K + 2 * (K - 1), K, 12.5, 12.5)
    assert [rows[name]["server_errors"] for name in rows] == [0, 1]


async def test_the_role_of_dashboards_reads_the_tables_and_does_nothing_else(reader: asyncpg.Connection) -> None:
    """Whoever takes Grafana's password must find no dead letters and change no row."""
    for statement in (
        "DELETE FROM user_activity",
        "SELECT * FROM ingest.dead_letters",
        "CREATE TABLE public.t (id int)",
    ):
        await reader.execute("SET default_transaction_read_only = off")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.execute(statement)


async def test_the_role_of_dashboards_runs_the_functions_whichever_came_first(
    database_url: str, reader: asyncpg.Connection
) -> None:
    """Docker compose makes the role before the migrations, an administrator after them."""
    question = "SELECT * FROM analytics.freshness()"
    await reader.fetch(question)
    for direction, revision in (("downgrade", "005_partitions_by_time"), ("upgrade", "head")):
        command = [sys.executable, "-m", "alembic", direction, revision]
        environment = {**os.environ, "ANALYTICS_DATABASE_URL": database_url}
        await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=environment, check=True)
    await reader.fetch(question)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await reader.fetch("SELECT * FROM analytics.settings")


async def test_a_table_that_a_later_migration_makes_is_readable_too(
    database_url: str, reader: asyncpg.Connection
) -> None:
    """A new analytics table must not need a second visit of an administrator."""
    owner = await asyncpg.connect(database_url)
    await owner.execute("CREATE TABLE public.later (id int)")
    await owner.close()
    assert await reader.fetch("SELECT id FROM later") == []
