"""The shipped dashboard's SQL on real rows: every panel answers, and none shows a cell of fewer than k people."""

import asyncio
import json
import os
import re
import runpy
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
DAY = (NOON - timedelta(days=1), NOON + timedelta(hours=1))


def expanded(sql: str, *, between: tuple[datetime, datetime], k: int, bucket: str = "hour") -> str:
    """What Grafana makes of a panel: the variables, and the one macro that our panels use."""
    start, end = (moment.isoformat() for moment in between)
    sql = re.sub(r"\$__timeFilter\(([^)]+)\)", rf"\1 BETWEEN '{start}' AND '{end}'", sql)
    sql = sql.replace("$k", str(k)).replace("$bucket", bucket)
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
        common["deployment_type"] = f"{name}-deployment"
        usage = {"endpoint": f"/{name}", "method": "GET", "status_code": 200 if name == "crowd" else 503}
        await insert(owner, "endpoint_usage", common | usage | {"duration_ms": 12.5})
        await insert(owner, "feature_usage", common | {"feature_name": f"{name}-feature", "action": "opened"})
        if user is not None:
            await insert(owner, "user_activity", common | {"event_type": f"{name}-event"})
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


@pytest.mark.parametrize("title", PANELS)
async def test_a_panel_shows_the_crowd_and_hides_those_who_stand_out(title: str, reader: asyncpg.Connection) -> None:
    """A cell of two people in a small company names them; the same panel with k = 1 shows that they were there."""
    rows = await reader.fetch(expanded(PANELS[title], between=DAY, k=K))
    assert rows
    assert not any(word in str(rows) for word in ("rare", "anonymous", "5xx"))
    assert all(row["users"] >= K for row in rows if "users" in row)
    assert all(row["time"].hour != QUIET_HOUR.hour for row in rows if "time" in row)
    if "GROUP BY" not in PANELS[title]:
        return  # one total of everybody: the quiet hour below tries it
    everything = await reader.fetch(expanded(PANELS[title], between=DAY, k=1))
    assert [dict(row) for row in everything] != [dict(row) for row in rows]


@pytest.mark.parametrize("title", PANELS)
async def test_a_panel_of_a_quiet_hour_is_empty(title: str, reader: asyncpg.Connection) -> None:
    """Zooming in must not do what the dashboard refuses to do: with fewer than k people there is nothing to see."""
    quiet = (QUIET_HOUR - timedelta(minutes=5), QUIET_HOUR + timedelta(minutes=5))
    assert await reader.fetch(expanded(PANELS[title], between=quiet, k=K)) == []
    assert await reader.fetch(expanded(PANELS[title], between=quiet, k=K - 1)) != []


@pytest.mark.parametrize("bucket", ["hour", "day", "week"])
async def test_every_width_of_a_bucket_works(bucket: str, reader: asyncpg.Connection) -> None:
    """They are choices of the dashboard."""
    for title, sql in PANELS.items():
        assert await reader.fetch(expanded(sql, between=DAY, k=K, bucket=bucket)), title


async def test_the_dashboard_can_be_drawn_from_its_own_queries(
    database_url: str, reader: asyncpg.Connection, tmp_path: Path
) -> None:
    """The pictures of the docs are made by it: they must not be of another dashboard than the one that is shipped."""
    picture = tmp_path / "product.png"
    script = [sys.executable, str(ROOT / "deploy/grafana/plot.py"), "product", "--database", database_url]
    done = await asyncio.to_thread(
        subprocess.run,
        [*script, "--days", "400", "--out", str(picture)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 30_000 < picture.stat().st_size < 300_000


async def test_the_made_up_rows_of_the_picture_fill_every_panel(database_url: str) -> None:
    """An empty panel in the docs looks like a broken one."""
    made_up = runpy.run_path(str(ROOT / "deploy/grafana/plot.py"))["MADE_UP"]
    connection = await asyncpg.connect(database_url)
    await connection.execute(made_up)
    now = datetime.now(UTC)
    for title, sql in PANELS.items():
        rows = await connection.fetch(expanded(sql, between=(now - timedelta(days=14), now), k=K, bucket="day"))
        assert rows, title
    await connection.close()


async def test_the_numbers_of_top_endpoints_are_right(reader: asyncpg.Connection) -> None:
    """A dashboard that is wrong is worse than none."""
    [crowd] = await reader.fetch(expanded(PANELS["Top endpoints"], between=DAY, k=K))
    assert (crowd["endpoint"], crowd["hits"], crowd["users"]) == ("/crowd", K + 2 * (K - 1), K)
    assert (crowd["p50_ms"], crowd["p99_ms"], crowd["server_errors_percent"]) == (12.5, 12.5, 0)
    shown = await reader.fetch(expanded(PANELS["Top endpoints"], between=DAY, k=1))
    assert {row["endpoint"]: row["server_errors_percent"] for row in shown} == {"/crowd": 0, "/rare": 100}


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
