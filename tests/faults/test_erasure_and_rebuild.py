"""The two operations that must hold whatever happens around them: an erasure, and a rebuild of the tables."""

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from support.command import answered, started
from support.records import EPOCH, Made, made
from support.stack import TABLES, Stack, eventually

MINE = "73475cb40a568e8d"  # the hash of 42


@asynccontextmanager
async def live_load(stack: Stack, seed: int, pause_s: float = 0.05) -> AsyncIterator[list[Made]]:
    """Records sent all through the block; the list of those that the broker has."""
    generator = random.Random(seed)
    acknowledged: list[Made] = []
    is_over = asyncio.Event()

    async def send() -> None:
        while not is_over.is_set():
            records = [made(generator) for _ in range(100)]
            await stack.send([(record.partition(), record.value) for record in records])
            acknowledged.extend(records)
            await asyncio.sleep(pause_s)

    task = asyncio.create_task(send())
    try:
        yield acknowledged
    finally:
        is_over.set()
        await task


async def assert_tables_are(stack: Stack, expected: list[Made]) -> None:
    await stack.settled(len(expected), 60)
    rows = {table: await stack.rows(table) for table in TABLES}
    assert [
        record
        for record in expected
        if not record.matches(rows[record.table].get(record.id, {"id": 0, "timestamp": 0, "event_metadata": "0"}))
    ] == []
    assert sum(map(len, rows.values())) == len(expected)


async def test_a_rebuild_under_live_load_gives_exactly_what_the_topic_says(stack: Stack) -> None:
    """Tables that were damaged are made good while everything goes on: no row lost, none doubled, nobody restarted."""
    await stack.create_topic()
    consumer = stack.consumer(CONSUMER_WRITERS="2")
    await stack.fetch("CREATE ROLE reader_of_rebuild")
    await stack.fetch("GRANT SELECT ON feature_usage TO reader_of_rebuild")
    await stack.fetch("CREATE VIEW features AS SELECT feature_name, count(*) AS uses FROM feature_usage GROUP BY 1")
    async with live_load(stack, 1) as acknowledged:

        async def are_enough() -> bool:
            return await stack.row_count() > 3_000

        await eventually(are_enough, 60, "rows to damage")
        await stack.fetch("DELETE FROM feature_usage WHERE id < '40000000-0000-0000-0000-000000000000'")
        await stack.fetch(
            "UPDATE endpoint_usage SET endpoint = 'corrupted' WHERE id > '80000000-0000-0000-0000-000000000000'"
        )
        done = await answered(stack, "rebuild", "--rate", "0")
    assert done["swapped"]
    assert done["differing"]
    assert sum(done["unexplained"].values()) == 0
    assert done["blocked_ms"] < 5_000
    [replaced] = await stack.fetch(
        "SELECT sum(next_offset - first_offset)::int AS records FROM ingest.ledger_history WHERE generation = 'live'"
    )
    assert done["records"] >= replaced["records"]
    await assert_tables_are(stack, acknowledged)
    assert consumer.is_running
    grants = await stack.fetch(
        "SELECT has_table_privilege('reader_of_rebuild', 'public.feature_usage', 'SELECT') AS may"
    )
    assert grants == [{"may": True}]
    [uses] = await stack.fetch("SELECT sum(uses)::int AS sum FROM features")
    assert uses["sum"] == len(await stack.rows("feature_usage"))
    assert (await answered(stack, "audit"))["ok"]  # names, comments, indexes, books
    indexes = await stack.fetch("SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")
    assert "ix_feature_usage_user_id" in {row["indexname"] for row in indexes}
    assert (await answered(stack, "rebuild", "--drop-old"))["done"]
    await answered(stack, "rebuild", "--dry-run", "--rate", "0")
    assert await stack.fetch("SELECT 1 FROM pg_namespace WHERE nspname IN ('rebuild', 'before_rebuild')") == []
    await assert_tables_are(stack, acknowledged)


@pytest.mark.parametrize("kills", [4, pytest.param(15, marks=pytest.mark.long)])
async def test_a_rebuild_killed_at_any_moment_leaves_the_live_tables_alone_and_is_resumed(
    stack: Stack, kills: int
) -> None:
    """It runs for hours on a large topic; machines are rebooted meanwhile."""
    await stack.create_topic()
    generator = random.Random(2)
    expected = [made(generator) for _ in range(3_000)]
    await stack.send([(record.partition(), record.value) for record in expected])
    stack.consumer()
    await stack.settled(3_000)
    await assert_tables_are(stack, expected)
    for _ in range(kills):
        await stack.fetch("DROP SCHEMA IF EXISTS rebuild, before_rebuild CASCADE")
        await stack.fetch("DELETE FROM ingest.partition_offsets WHERE generation <> 'live'")
        process = await started(stack, "rebuild", "--rate", "1000")
        await asyncio.sleep(generator.uniform(0.5, 6))
        with suppress(ProcessLookupError):  # it was quicker
            process.kill()
        await process.communicate()
        await assert_tables_are(stack, expected)

        async def is_released() -> bool:
            return not await stack.fetch("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'")

        await eventually(is_released, 60, "the killed rebuild's lock released")
    if await stack.fetch("SELECT 1 FROM pg_namespace WHERE nspname = 'before_rebuild'"):
        await answered(stack, "rebuild", "--drop-old")
    is_begun = await stack.fetch("SELECT 1 FROM pg_namespace WHERE nspname = 'rebuild'")
    done = await answered(stack, "rebuild", "--rate", "0", *(["--resume"] if is_begun else []))
    assert done["swapped"]
    await assert_tables_are(stack, expected)


async def test_an_aborted_rebuild_leaves_nothing_behind(stack: Stack) -> None:
    """A writer that outlives its rebuild must not begin it anew."""
    await stack.create_topic()
    await stack.send(
        [(record.partition(), record.value) for record in (made(random.Random(index)) for index in range(500))]
    )
    stack.consumer()
    await stack.settled(500)
    process = await started(stack, "rebuild", "--rate", "50")

    async def is_under_way() -> bool:
        return any(line["generation"] != "live" for line in await stack.ledger())

    await eventually(is_under_way, 60, "the rebuild under way")
    assert (await answered(stack, "status"))["rebuilds"]
    process.kill()
    await process.communicate()
    await eventually(lambda: no_locks(stack), 60, "its lock released")
    assert (await answered(stack, "rebuild", "--abort"))["done"]
    assert {line["generation"] for line in await stack.ledger()} == {"live"}
    assert await stack.fetch("SELECT 1 FROM pg_namespace WHERE nspname = 'rebuild'") == []


async def no_locks(stack: Stack) -> bool:
    return not await stack.fetch("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'")


async def test_rows_older_than_the_topic_are_carried_over_and_unexplained_ones_stop_the_swap(stack: Stack) -> None:
    """Retention has taken their records; a rebuild that forgot them would delete history."""
    await stack.create_topic()
    now_us = time.time_ns() // 1000
    generator = random.Random(4)
    topic = [made(generator) for _ in range(200)]
    topic = [Made(each.table, each.id, now_us, each.columns) for each in topic]
    await stack.send([(record.partition(), record.value) for record in topic])
    stack.consumer()
    await stack.settled(200)
    insert = (
        "INSERT INTO feature_usage (id, feature_name, timestamp, deployment_type) "
        "VALUES (gen_random_uuid(), '{}', now() + interval '{}', 'cloud')"
    )
    for _ in range(5):
        await stack.fetch(insert.format("ancient", "-1 year"))
    await stack.fetch(insert.format("foreign", "1 hour"))
    stopped = await answered(stack, "rebuild", "--rate", "0", code=1)
    assert (stopped["swapped"], stopped["carried_over"]["feature_usage"]) == (False, 5)
    assert stopped["unexplained"]["feature_usage"] == 1
    assert len(await stack.fetch("SELECT 1 FROM feature_usage WHERE feature_name = 'foreign'")) == 1
    done = await answered(stack, "rebuild", "--resume", "--accept-unexplained", "--rate", "0")
    assert done["swapped"]
    names = await stack.fetch("SELECT feature_name, count(*) FROM feature_usage GROUP BY 1")
    assert {row["feature_name"]: row["count"] for row in names}["ancient"] == 5
    assert "foreign" not in {row["feature_name"] for row in names}
    assert await stack.row_count() == 205


async def restore(stack: Stack, rows: list[dict[str, Any]]) -> None:
    """The rows are there, and no suppression is: at one stroke, as a backup is restored."""
    columns = list(rows[0])
    places = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    connection = await asyncpg.connect(stack.database_url)
    async with connection.transaction():
        await connection.execute("TRUNCATE ingest.suppressions")
        insert = f"INSERT INTO feature_usage ({', '.join(columns)}) VALUES ({places})"
        await connection.executemany(insert, [tuple(row.values()) for row in rows])
    await connection.close()


async def test_an_erasure_outlives_replay_rebuild_redrive_and_a_restored_backup(stack: Stack) -> None:
    """Whoever was erased stays so; what they do afterwards counts again."""
    await stack.create_topic()
    generator = random.Random(5)
    others = [made(generator) for _ in range(300)]
    mine = [made(generator, user_id=MINE) for _ in range(60)]
    letter = re.sub(rb'"schema_version":.', b'"schema_version":3', mine[0].value)
    await stack.send([(record.partition(), record.value) for record in others + mine])
    await stack.send([(0, letter)])
    stack.consumer()
    await stack.settled(361)
    backup = await stack.fetch("SELECT * FROM feature_usage WHERE user_id = $1", MINE)
    receipt = await answered(stack, "erase", "--user-id", "42", "--dry-run")
    assert (sum(receipt["rows"].values()), receipt["dead_letters"], receipt["dry_run"]) == (60, 1, True)
    assert await stack.row_count() == 360
    receipt = await answered(stack, "erase", "--user-id", "42")
    assert receipt["subject_hash"] == MINE
    assert receipt["subject_hashes"] == [MINE]
    assert (sum(receipt["rows"].values()), receipt["dead_letters"]) == (60, 1)
    assert receipt["topic_expires_at"] is not None
    assert await stack.row_count() == 300
    again = await answered(stack, "erase", "--user-id", "42")
    assert (sum(again["rows"].values()), again["dead_letters"]) == (0, 0)

    async def assert_gone(when: str) -> None:
        for table in TABLES:
            assert await stack.fetch(f"SELECT 1 FROM {table} WHERE user_id = $1", MINE) == [], when
        assert await stack.fetch("SELECT 1 FROM ingest.dead_letters") == [], when

    await answered(stack, "rewind", "--to-start")
    await stack.settled(361)
    await assert_gone("after a replay")
    assert sum(line["suppressed"] for line in await stack.ledger()) == 61
    assert (await answered(stack, "rebuild", "--rate", "0"))["swapped"]
    await assert_gone("after a rebuild")
    assert (await answered(stack, "dead-letters", "redrive"))["stored"] == 0
    # A backup from before the erasure: the subject's rows are there again, and the table knows of no erasure.
    assert backup
    await restore(stack, backup)
    await answered(stack, "rewind", "--to-start")
    await stack.settled(361)

    async def is_erased_again() -> bool:
        return not await stack.fetch("SELECT 1 FROM feature_usage WHERE user_id = $1", MINE)

    await eventually(is_erased_again, 60, "the restored rows erased again")
    await assert_gone("after a restored backup")
    after = made(generator, user_id=MINE)
    after = Made(after.table, after.id, time.time_ns() // 1000 + 1_000_000, after.columns)
    await asyncio.sleep(0.01)
    await stack.send([(after.partition(), after.value)])
    await stack.settled(362)
    assert len(await stack.fetch(f"SELECT 1 FROM {after.table} WHERE user_id = $1", MINE)) == 1
    assert await stack.row_count() == 301


async def test_an_erasure_waits_for_the_batches_in_flight_and_takes_nothing_that_comes_after(stack: Stack) -> None:
    """A batch decoded before and committed after must bring nothing back; what is received after is a new event."""
    await stack.create_topic()
    stack.consumer(CONSUMER_BATCH_ROWS="100", CONSUMER_LINGER_MS="5")
    generator = random.Random(6)
    is_over = asyncio.Event()
    sent: list[Made] = []

    async def send() -> None:
        while not is_over.is_set():
            ahead_us = time.time_ns() // 1000 + 60_000_000  # a sender's clock: only the record time decides
            records = [replace(made(generator, user_id=MINE), timestamp_us=ahead_us) for _ in range(20)]
            await stack.send([(record.partition(), record.value) for record in records])
            sent.extend(records)

    task = asyncio.create_task(send())

    async def has_more_than(count: int) -> bool:
        return await stack.row_count() > count

    await eventually(lambda: has_more_than(100), 60, "rows of the subject")
    await answered(stack, "erase", "--user-hash", MINE)
    await eventually(lambda: has_more_than(100), 60, "rows from after the erasure")
    is_over.set()
    await task
    await stack.settled(len(sent), 60)
    [erased] = await stack.fetch("SELECT erased_at FROM ingest.suppressions")
    erased_at_us = (erased["erased_at"] - EPOCH) // timedelta(microseconds=1)
    after = {
        json.loads(record.value)["id"]
        for record in await stack.read_topic()
        if record.value and record.timestamp * 1000 > erased_at_us
    }
    assert {str(id_) for table in TABLES for id_ in await stack.rows(table)} == after


async def test_an_erasure_covers_previous_keys_and_prehashed_ids(stack: Stack) -> None:
    """After a change of the key, the old rows still carry the old hash."""
    await stack.create_topic()
    key = "0123456789abcdef0123456789abcdef"
    by_old_key, unkeyed = "3b12d0412db185c9", MINE
    generator = random.Random(7)
    records = [made(generator, user_id=hashed) for hashed in (by_old_key, unkeyed) for _ in range(10)]
    organization = [made(generator, organization_id=MINE) for _ in range(5)]
    await stack.send([(record.partition(), record.value) for record in records + organization])
    stack.consumer()
    await stack.settled(25)
    settings = {"ID_HASH_KEY": "another-key-of-32-bytes-or-more!", "ID_HASH_KEYS_PREVIOUS": key}
    receipt = await answered(stack, "erase", "--user-id", "42", **settings)
    assert receipt["subject_hashes"][1:] == [by_old_key, unkeyed]
    assert sum(receipt["rows"].values()) == 20
    assert await stack.row_count() == 5
    receipt = await answered(stack, "erase", "--organization-hash", MINE)
    assert sum(receipt["rows"].values()) == 5


@pytest.fixture(autouse=True)
async def roles_are_dropped(stack: Stack) -> AsyncIterator[None]:
    """Roles belong to the server and not to the test's database."""
    yield
    if await stack.fetch("SELECT 1 FROM pg_roles WHERE rolname = 'reader_of_rebuild'"):
        await stack.fetch("DROP OWNED BY reader_of_rebuild")
        await stack.fetch("DROP ROLE reader_of_rebuild")
