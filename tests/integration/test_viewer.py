"""The page over HTTP, on a real Postgres: what it shows, what it refuses, and what it leaves behind."""

import asyncio
import csv
import io
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlencode

import asyncpg
import pytest

from deploy.local.postgres import PostgresServer
from support.analytics import Event, insert, random_events
from support.viewer import PAGES, Tags, Viewer
from viewer.catalogue import PAGES as CATALOGUE
from viewer.catalogue import QUESTIONS

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse"
RANGE = "from=2026-03-02&to=2026-03-31"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`"
FORMULA = '=HYPERLINK("http://evil.example","x")'
BIDI = "abc\u202egnp.exe\u2066"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def viewer(database: asyncpg.Connection, database_url: str, tmp_path: Path) -> AsyncIterator[Viewer]:
    """A page over two months of random rows."""
    await insert(database, random_events(random.Random(3), 3000, people=60))
    page = Viewer(tmp_path / "viewer", database_url)
    await asyncio.to_thread(page.start)
    yield page
    await asyncio.to_thread(page.stop)


async def asked(viewer: Viewer, *paths: str) -> list[str]:
    answers = [await asyncio.to_thread(viewer.get, path) for path in paths]
    assert [answer.status for answer in answers] == [200] * len(paths)
    return [answer.text for answer in answers]


async def test_every_page_answers_with_picture_table_query_and_csv(viewer: Viewer) -> None:
    """And loads nothing from any other address: an analytics page that tells a third party who looks is no good."""
    for page in PAGES:
        answer = await asyncio.to_thread(viewer.get, f"/{page}?{RANGE}")
        assert answer.status == 200, page
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        tags = Tags(answer.text)
        assert not re.search(r"https?://|url\(|style=|\son[a-z]+=", answer.text.replace("(Python", "")), page
        loaded = [tag.get("src") or tag.get("href") for name in ("script", "link", "img") for tag in tags.every(name)]
        assert loaded
        for path in loaded:
            assert path is not None
            assert path.startswith("/static/")
            assert (await asyncio.to_thread(viewer.get, path)).status == 200
        for key in CATALOGUE[page or "overview"][1]:
            [link] = [a["href"] for a in tags.every("a") if (a.get("href") or "").startswith(f"/csv/{key}?")]
            assert f'id="{key}"' in answer.text
            table = await asyncio.to_thread(viewer.get, str(link))
            assert table.headers["Content-Type"].startswith("text/csv")
            heading, *_ = csv.reader(io.StringIO(table.text))
            assert heading == [column.name for column in QUESTIONS[key].columns]
        assert answer.text.count('class="copy"') == len(CATALOGUE[page or "overview"][1])
        assert "failure" not in answer.text


async def test_the_query_that_is_shown_gives_the_numbers_that_are_shown(
    viewer: Viewer, database: asyncpg.Connection
) -> None:
    """A query to copy that answers something else is a trap."""
    view = (
        f"{RANGE}&zone=America/New_York&service=shop&organization=acme&funnel={quote('user_activity:login')}&within=1d"
    )
    for page in PAGES:
        [html] = await asked(viewer, f"/{page}?{view}")
        queries = re.findall(r"<pre[^>]*>(.*?)</pre>", html, re.DOTALL)
        for key, query in zip(CATALOGUE[page or "overview"][1], queries, strict=True):
            rows = await database.fetch(Tags(query).text)
            [text] = await asked(viewer, f"/csv/{key}?{view}&ids=1")
            lines = list(csv.DictReader(io.StringIO(text)))
            assert len(lines) == len(rows), key
            for line, row in zip(lines, rows, strict=True):
                assert line.keys() == dict(row).keys()
                for name, value in row.items():
                    if isinstance(value, int | float):
                        assert float(line[name]) == pytest.approx(value)
                    elif value is None:
                        assert line[name] == ""


async def test_hostile_values_are_text_in_every_column(
    database: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    """Every text of a row comes from somebody's browser."""
    for hostile in (SCRIPT, FORMULA, BIDI):
        short = hostile[:50]
        now = datetime.now(UTC) - timedelta(hours=1)
        common = {"organization_id": hostile[:32], "service_name": hostile, "deployment_type": short}
        await insert(
            database,
            [
                Event(table, f"user-{n}", now, **common, service_version=hostile, own=own)
                for n in range(6)
                for table, own in (
                    ("user_activity", {"event_type": short}),
                    ("endpoint_usage", {"endpoint": hostile, "method": hostile[:10]}),
                    ("feature_usage", {"feature_name": hostile, "action": hostile}),
                    ("model_usage", {"operation": short, "provider": hostile, "model": hostile}),
                )
            ],
        )
    page = Viewer(tmp_path / "viewer", database_url)
    await asyncio.to_thread(page.start)
    try:
        hostile_view = urlencode({"service": SCRIPT, "zone": "UTC", "ids": "1"})
        for name in PAGES:
            for view in ("ids=1", hostile_view):
                [html] = await asked(page, f"/{name}?{view}")
                tags = Tags(html)
                assert len(tags.every("script")) == 1
                assert not tags.every("img")
                assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
                assert "\u202e" not in html.replace(f'value="{BIDI}"', "").partition("<pre")[0].partition("<option")[0]
        [html] = await asked(page, "/endpoints")
        assert "\u2039U+202E\u203a" in html
        assert "&lt;script&gt;" in html
        for key in QUESTIONS:
            [text] = await asked(page, f"/csv/{key}?ids=1")
            for line in csv.reader(io.StringIO(text)):
                assert not any(cell.startswith(("=", "+", "@", "\t")) for cell in line)
    finally:
        await asyncio.to_thread(page.stop)


async def test_nothing_of_the_address_reaches_the_database_unbound(
    viewer: Viewer, database: asyncpg.Connection
) -> None:
    """An address is written by anybody who can send a link."""
    injection = "'; DROP TABLE user_activity; --"
    for name in ("organization", "service", "deployment", "funnel"):
        await asyncio.to_thread(viewer.get, f"/funnel?{urlencode({name: injection})}")
    assert await database.fetchval("SELECT count(*) FROM user_activity") > 0
    for bad in (
        "zone=Nowhere",
        "zone=" + quote(injection),
        "days=0",
        "days=x",
        "from=2026-13-01",
        "step=year",
        "within=9y",
    ):
        answer = await asyncio.to_thread(viewer.get, f"/people?{bad}")
        assert answer.status == 400, bad
        assert bad.partition("=")[0] in answer.text
    for bad in (
        "from=2026-03-02&to=2026-03-01",
        "from=1000-01-01&to=2026-01-01",
        "service=%00",
        "service=" + "x" * 500,
    ):
        assert (await asyncio.to_thread(viewer.get, f"/?{bad}")).status == 400, bad
    for step in ("nonsense", "user_activity", ":", "pg_class:x"):
        assert (await asyncio.to_thread(viewer.get, f"/funnel?funnel={step}")).status == 400
    assert (await asyncio.to_thread(viewer.get, "/nowhere")).status == 404
    assert (await asyncio.to_thread(viewer.get, "/csv/nothing")).status == 404
    assert (await asyncio.to_thread(lambda: viewer.get("/", method="POST"))).status == 405


async def test_the_role_that_only_reads_is_all_that_the_page_needs(
    database: asyncpg.Connection, database_url: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    """So the page's password file and its URL open no way to write, whatever is wrong with the page."""
    script = (ROOT / "deploy/postgres/reader.sql").read_text().replace("analytics_reader", "page_reader")
    psql = [postgres.bin_dir / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-v", "password=p", database_url]
    text = script.replace("\\getenv password ANALYTICS_READER_PASS", "")
    await asyncio.to_thread(subprocess.run, psql, input=text, text=True, check=True)
    await insert(database, random_events(random.Random(5), 500))
    owner = database_url.split("//")[1].split("@", maxsplit=1)[0]
    page = Viewer(tmp_path / "viewer", database_url.replace(owner, "page_reader:p"))
    await asyncio.to_thread(page.start)
    try:
        for html in await asked(page, *(f"/{name}?{RANGE}" for name in PAGES)):
            assert 'class="failure"' not in html
            assert "did not answer" not in html
        await database.execute("REVOKE USAGE ON SCHEMA analytics FROM page_reader")
        [html] = await asked(page, "/features?days=11")
        assert "reader.sql" in html
    finally:
        await asyncio.to_thread(page.stop)
        await database.execute("DROP OWNED BY page_reader; DROP ROLE page_reader")


async def test_a_hash_is_shown_to_those_who_ask_for_it_only(viewer: Viewer) -> None:
    """A page on a wall shows no ids."""
    for path in ("/organizations?", "/csv/organizations?"):
        plain, with_ids = await asked(viewer, f"{path}{RANGE}", f"{path}{RANGE}&ids=1")
        assert "acme" not in plain
        assert "acme" in with_ids


async def test_filters_and_range_are_in_every_link(viewer: Viewer) -> None:
    """So that a link is a view, and a change of page keeps what was chosen."""
    [html] = await asked(viewer, f"/people?{RANGE}&service=shop&deployment=cloud&zone=Asia/Kolkata&step=week")
    links = [a["href"] or "" for a in Tags(html).every("a")]
    for link in [link for link in links if link.startswith("/") and "?" in link]:
        for part in ("from=2026-03-02", "to=2026-03-31", "service=shop", "deployment=cloud", "step=week", "Kolkata"):
            assert part in link, link


async def test_small_groups_are_hidden_and_the_page_cannot_be_talked_into_them(
    database: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    """Neither by its address nor by its own setting: the database has the last word."""
    rare = {"feature_name": "rare-feature"}
    await insert(database, [Event("feature_usage", f"u{n}", datetime.now(UTC), own=rare) for n in range(4)])
    page = Viewer(tmp_path / "viewer", database_url, VIEWER_SMALLEST_GROUP="1")
    await asyncio.to_thread(page.start)
    try:
        [html] = await asked(page, "/features?smallest_group=1")
        assert "rare-feature" not in html
        await database.execute("UPDATE analytics.settings SET smallest_group = 2")
        [html] = await asked(page, "/features?days=29")  # another question, as answers are kept for seconds
        assert "rare-feature" in html
    finally:
        await asyncio.to_thread(page.stop)


async def test_a_password_opens_the_page_and_wrong_ones_are_slow_and_counted(database_url: str, tmp_path: Path) -> None:
    """And those who have the right one do not wait behind somebody who guesses."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    page = Viewer(tmp_path / "viewer", database_url, VIEWER_PASSWORD_FILE=str(tmp_path / "password"))
    await asyncio.to_thread(page.start)
    try:
        unasked = await asyncio.to_thread(page.get, "/")
        assert unasked.status == 401
        assert unasked.headers["WWW-Authenticate"].startswith("Basic ")
        assert "Overview" not in unasked.text.replace('<a href="/">Overview</a>', "")
        assert (await asyncio.to_thread(lambda: page.get("/", password=PASSWORD))).status == 200
        assert (await asyncio.to_thread(page.get, "/healthz")).status == 200
        started_at = time.monotonic()
        guesses = [asyncio.to_thread(lambda: page.get("/people", password="wrong")) for _ in range(3)]
        wrong = asyncio.gather(*guesses)
        await asyncio.sleep(0.2)
        right = await asyncio.to_thread(lambda: page.get("/static/style.css", password=PASSWORD))
        assert (right.status, time.monotonic() - started_at < 2) == (200, True)
        assert [answer.status for answer in await wrong] == [401] * 3
        assert time.monotonic() - started_at >= 3  # one after another
        count = await asyncio.to_thread(lambda: page.metric("viewer_wrong_passwords_total", password=PASSWORD))
        assert count == 3
        for path in ("/metrics", "/csv/features", "/static/style.css", "/funnel"):
            assert (await asyncio.to_thread(page.get, path)).status == 401
        assert PASSWORD not in (tmp_path / "viewer").joinpath("viewer.log").read_text()
    finally:
        await asyncio.to_thread(page.stop)


@pytest.mark.parametrize("with_password", [False, True])
async def test_a_person_whom_the_proxy_names_is_let_in(with_password: bool, database_url: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    settings = {"VIEWER_HOST": "0.0.0.0", "VIEWER_PROXY_HEADER": "X-Forwarded-User"}
    if with_password:
        settings["VIEWER_PASSWORD_FILE"] = str(tmp_path / "password")
    page = Viewer(tmp_path / "viewer", database_url, **settings)
    await asyncio.to_thread(page.start)
    try:
        named = {"x-forwarded-user": "ada", "Host": "page.example"}
        for path in ("/", "/metrics", "/csv/features", "/static/style.css"):
            assert (await asyncio.to_thread(page.get, path, headers=named)).status == 200, path
            for nobody in ({}, {"x-forwarded-user": " "}, {"x-forwarded-email": "ada"}):
                refused = await asyncio.to_thread(page.get, path, headers=nobody)
                assert refused.status == (401 if with_password else 403)
        right = await asyncio.to_thread(page.get, "/", password=PASSWORD)
        assert right.status == (200 if with_password else 403)
        assert (await asyncio.to_thread(page.get, "/healthz")).status == 200
    finally:
        await asyncio.to_thread(page.stop)


async def test_without_a_password_another_sites_name_gets_nothing(viewer: Viewer) -> None:
    """A page elsewhere can point its own name at 127.0.0.1, and would read this one through the visitor's browser."""
    for host, status in (("evil.example", 403), (f"localhost:{viewer.port}", 200)):
        assert (await asyncio.to_thread(viewer.get, "/", headers={"Host": host})).status == status


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"VIEWER_HOST": "0.0.0.0"}, "VIEWER_PASSWORD_FILE or VIEWER_PROXY_HEADER"),
        ({"VIEWER_PROXY_HEADER": "X-User: ada"}, "VIEWER_PROXY_HEADER"),
        ({"VIEWER_HOST": "0.0.0.0", "VIEWER_PASSWORD_FILE": "short"}, "VIEWER_PASSWORD_FILE"),
        ({"VIEWER_DATABASE_URL": "mysql://u:hunter2@h/n"}, "VIEWER_DATABASE_URL"),
        ({"VIEWER_DATABASE_URL": "", "ANALYTICS_DATABASE_URL": ""}, "ANALYTICS_DATABASE_URL"),
        ({"VIEWER_SMALLEST_GROUP": "0"}, "VIEWER_SMALLEST_GROUP"),
        ({"VIEWER_PORT": "99999"}, "VIEWER_PORT"),
        ({"VIEWER_HOST": "127.0.0.1", "VIEWER_PORT": "taken"}, "VIEWER_PORT"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_a_sentence(
    settings: dict[str, str], named: str, postgres: PostgresServer, database_url: str, tmp_path: Path
) -> None:
    """An open page that nobody meant to open is found by others first."""
    (tmp_path / "short").write_text("1234567\n")
    settings = settings | ({"VIEWER_PORT": str(postgres.port)} if settings.get("VIEWER_PORT") == "taken" else {})
    done = subprocess.run(
        [sys.executable, "-m", "viewer"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "VIEWER_DATABASE_URL": database_url} | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("viewer: ")
    assert named in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_browser_that_leaves_takes_its_query_with_it(viewer: Viewer, database: asyncpg.Connection) -> None:
    """Else a few impatient reloads hold every connection of the page, and Postgres works for nobody."""
    await database.execute("BEGIN; LOCK TABLE user_activity IN ACCESS EXCLUSIVE MODE")
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'telemetry-viewer' AND wait_event_type = 'Lock'"
    )
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", viewer.port)
        writer.write(b"GET /people?days=7 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + 1.9  # the page's own limit for a lock is 2 s
        while not await database.fetchval(waiting):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        writer.close()
        left_at = time.monotonic()
        while await database.fetchval(waiting):
            assert time.monotonic() < left_at + 1
            await asyncio.sleep(0.02)
        del reader
    finally:
        await database.execute("ROLLBACK")
    await asked(viewer, "/people?days=7")


async def test_a_locked_table_is_told_in_the_place_of_the_chart(viewer: Viewer, database: asyncpg.Connection) -> None:
    """The neighbours that need no such table are shown, and the page recovers by itself."""
    await database.execute("BEGIN; LOCK TABLE feature_usage IN ACCESS EXCLUSIVE MODE")
    try:
        [html] = await asked(viewer, "/endpoints?days=8")
        assert 'class="failure"' not in html
        [html] = await asked(viewer, "/features?days=8")
        assert "No answer within" in html
    finally:
        await database.execute("ROLLBACK")
    [html] = await asked(viewer, "/features?days=8")
    assert "No answer within" not in html


async def test_a_database_that_goes_away_is_a_sentence_and_comes_back(
    database_url: str, postgres: PostgresServer, viewer: Viewer
) -> None:
    """The page outlives restarts of Postgres, and says in the meantime what is wrong."""
    name = database_url.rpartition("/")[2]
    postgres.query(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    postgres.query(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    try:
        down = await asyncio.to_thread(viewer.get, "/?days=9")
        assert down.status == 503, viewer.last_log_lines()
        assert "cannot be reached" in down.text
        assert (await asyncio.to_thread(viewer.get, "/healthz")).status == 503
    finally:
        postgres.query(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    await asked(viewer, "/?days=9", "/healthz")


async def test_connections_are_bounded_read_only_and_closed_at_the_end(
    viewer: Viewer, database: asyncpg.Connection
) -> None:
    """Sixteen people who open the page at once are four connections."""
    mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'telemetry-viewer'"
    paths = [f"/{page}?days={10 + number}" for number in range(2) for page in PAGES[:8]]
    answers = await asyncio.gather(*(asyncio.to_thread(viewer.get, path) for path in paths))
    assert {answer.status for answer in answers} == {200}
    assert 1 <= await database.fetchval(mine) <= 4
    started_at = time.monotonic()
    await asyncio.to_thread(viewer.stop)
    assert time.monotonic() - started_at < 5
    assert not viewer.is_running
    deadline = time.monotonic() + 5
    while await database.fetchval(mine):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_an_older_schema_is_told_with_its_remedy(
    database: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    """A page that was deployed before the migration."""
    await database.execute("DROP SCHEMA analytics CASCADE")
    page = Viewer(tmp_path / "viewer", database_url)
    await asyncio.to_thread(page.start)
    try:
        [html] = await asked(page, "/")
        assert "alembic upgrade head" in html
    finally:
        await asyncio.to_thread(page.stop)
