"""Every block of SQL that a page shows runs on the migrated schema and finds rows; its hashes are ours."""

import asyncio
import re
import subprocess
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy.local.postgres import PostgresServer
from shared.identity import hash_id

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SQL = re.compile(r"^ *```sql\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
BLOCKS = {
    f"{page.relative_to(ROOT)}-{number}": block
    for page in PAGES
    for number, block in enumerate(SQL.findall(page.read_text()), 1)
}
ROLE = "docs_reader"  # as analytics_reader, under a name of this test's own: roles belong to the whole server
KEY = b"0123456789abcdef0123456789abcdef"
USERS = 8
TRACE = uuid.UUID("0af7651916cd43dd8448eb211c80319c")  # of the span that README sends with curl


def statements(block: str) -> list[str]:
    """Apart at `;` at the end of a line, but for those within `$$`."""
    parts, inside = [""], False
    for line in block.splitlines():
        inside ^= line.count("$$") % 2 == 1
        parts[-1] += line + "\n"
        if line.rstrip().endswith(";") and not inside:
            parts.append("")
    return [part for part in parts if re.sub(r"--.*", "", part).strip()]


@pytest.fixture
async def database(database_url: str, postgres: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection to tables with two months of a few people's doings, and books that hold something."""
    connection = await asyncpg.connect(database_url, server_settings={"application_name": "telemetry-docs"})
    now = datetime.now(UTC)
    await fill(connection, [now - timedelta(days=days, minutes=5) for days in range(60)] + [now + timedelta(hours=1)])
    topic_id = uuid.UUID(int=7)
    await connection.execute(
        """
        INSERT INTO ingest.partition_offsets (generation, topic, partition, topic_id, epoch, first_offset, next_offset,
            stored) VALUES ('live', 'telemetry.events', 0, $1, 0, 0, 5, 5)
        """,
        topic_id,
    )
    await connection.execute(
        """
        INSERT INTO ingest.dead_letters (topic_id, topic, partition, "offset", value, headers, record_time, reason)
        VALUES ($1, 'telemetry.events', 0, 3, 'x', '[]', now(), 'not_json')
        """,
        topic_id,
    )
    await connection.execute(
        """
        INSERT INTO ingest.gaps (topic, partition, from_offset, to_offset, reason)
        VALUES ('telemetry.events', 0, 1, 2, 'retention')
        """
    )
    await connection.execute("INSERT INTO ingest.suppressions VALUES ('user', '0123456789abcdef', now())")
    await connection.execute(
        """
        INSERT INTO ingest.ledger_history (generation, topic, partition, topic_id, epoch, first_offset, next_offset,
            stored, reason) VALUES ('live', 'telemetry.events', 0, $1, 0, 0, 5, 5, 'rewind')
        """,
        topic_id,
    )
    script = (ROOT / "deploy/postgres/reader.sql").read_text().replace("analytics_reader", ROLE)
    await asyncio.to_thread(
        subprocess.run,
        [postgres.bin_dir / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-v", "password=p", database_url],
        input=script.replace("\\getenv password ANALYTICS_READER_PASS", ""),
        text=True,
        check=True,
    )
    yield connection
    await connection.execute(f"RESET ROLE; DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")
    await connection.close()


async def fill(connection: asyncpg.Connection, times: list[datetime]) -> None:
    """A login, a request, the use of a feature and a call of a model, by each person at each time."""
    own: dict[str, list[dict[str, Any]]] = {
        "user_activity": [{"event_type": "login", "session_id": "s-1"}] * USERS,
        "endpoint_usage": [
            {"endpoint": "/orders/{id}", "method": "GET", "duration_ms": 10.0 + number, "status_code": status}
            for number, status in enumerate([500] + [200] * (USERS - 1))
        ],
        "feature_usage": [{"feature_name": "export", "action": "created"}] * USERS,
        "model_usage": [{"operation": "chat", "provider": "openai", "model": "gpt-4o", "input_tokens": 17}] * USERS,
    }
    common = {"organization_id": hash_id("acme"), "deployment_type": "cloud"}
    common |= {"service_name": "shop", "service_version": "1.0", "trace_id": TRACE}
    metadata = '{"plan": "pro", "service.name": "shop"}'
    for table, columns in own.items():
        rows = [
            {"id": uuid.uuid4(), "user_id": hash_id(f"user-{number}"), "timestamp": at, "event_metadata": metadata}
            | common
            | columns[number]
            for at in times
            for number in range(USERS)
        ]
        names, places = ", ".join(rows[0]), ", ".join(f"${n + 1}" for n in range(len(rows[0])))
        sql = f"INSERT INTO {table} ({names}) VALUES ({places})"
        await connection.executemany(sql, [tuple(row.values()) for row in rows])


@pytest.mark.parametrize("name", BLOCKS)
async def test_a_block_of_sql_runs_and_every_question_in_it_has_an_answer(
    name: str, database: asyncpg.Connection
) -> None:
    """People copy it into psql; an error there, or an empty answer, is our mistake and their evening."""
    block = BLOCKS[name]
    transaction = database.transaction()
    await transaction.start()
    if name.startswith("docs/sql.md") and not block.startswith("-- as the owner"):
        await database.execute(f"SET LOCAL ROLE {ROLE}; SET LOCAL transaction_read_only = on")
    for statement in statements(block):
        rows = await database.fetch(statement)
        if re.match(r"(--.*\n|\s)*(SELECT|WITH)\b", statement):
            assert rows, statement
    await transaction.rollback()  # a role that a page makes belongs to the whole server


async def test_the_hashes_that_sql_makes_are_those_of_the_receiver(database: asyncpg.Connection) -> None:
    """Else a join finds nobody, and looks as if nobody had come."""
    [function] = [block for block in BLOCKS.values() if "keyed_hash" in block]
    page = (ROOT / "docs/sql.md").read_text()
    unkeyed = "left(encode(sha256(convert_to({}, 'UTF8')), 'hex'), 16)"
    assert unkeyed.format("customers.id") in page
    for statement in statements(function):
        shown = await database.fetch(statement)
    assert shown[0]["hash"] == hash_id("42", KEY)
    assert f"`{hash_id('42', KEY)}`" in page
    assert f"`{hash_id('42')}`" in page
    for raw in ("42", "user-1", "ä@b", ""):
        assert await database.fetchval(f"SELECT {unkeyed.format('$1::text')}", raw) == hash_id(raw)
        for key in (KEY, "schlüssel-".encode() * 4, b"k" * 64, b"k" * 65):
            keyed = await database.fetchval("SELECT pg_temp.keyed_hash($1, $2)", raw, key.decode())
            assert keyed == hash_id(raw, key)


async def test_the_numbers_are_right(database: asyncpg.Connection) -> None:
    """A query that runs and counts wrongly is worse than one that fails."""

    async def answer(fragment: str) -> asyncpg.Record:
        [block] = [block for name, block in BLOCKS.items() if name.startswith("docs/sql.md") and fragment in block]
        return (await database.fetch(block))[0]

    glance = await answer("analytics.stickiness")
    assert (glance["daily"], glance["weekly"], glance["monthly"], glance["stickiness"]) == (USERS, USERS, USERS, 1)
    feature = await answer("adoption_percent")
    assert (feature["people"], feature["adoption_percent"], feature["repeated_percent"]) == (USERS, 100, 100)
    assert (await answer("by_up_to"))["ahead"] == USERS
    assert dict(await answer("customers (id"))["users"] == 2  # user-1 and user-3 are German
    assert (await answer("HAVING"))["users"] == USERS


async def test_small_groups_are_hidden_by_the_query_that_says_so(database: asyncpg.Connection) -> None:
    """The one query that others are told to imitate."""
    [block] = [block for name, block in BLOCKS.items() if name.startswith("docs/sql.md") and "HAVING" in block]
    few = [hash_id(f"user-{number}") for number in range(4)]
    await database.execute("DELETE FROM feature_usage WHERE user_id <> ALL ($1::text[])", few)
    assert await database.fetch(block) == []
