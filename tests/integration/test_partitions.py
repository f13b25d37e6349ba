"""Tables partitioned by time: made ahead and on demand, migrated to and from, dropped whole when they are past."""

import asyncio
import itertools
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from test_consumer_faults import not_ready

from consumer.store.database import connect
from consumer.store.partitions import Known, ahead, interval_of, partitions_of
from consumer.store.retain import retain
from deploy.local.postgres import PostgresServer
from support.command import answered
from support.records import EPOCH, Made, made
from support.stack import Stack, eventually

ROOT = Path(__file__).resolve().parents[2]
DAY_US = 86_400_000_000
TABLES = ("user_activity", "endpoint_usage", "feature_usage", "model_usage")
LEAVES = "SELECT tableoid::regclass::text AS leaf, count(*) FROM feature_usage GROUP BY 1 ORDER BY 1"


def at(record: Made, time_: datetime) -> Made:
    return replace(record, timestamp_us=(time_ - EPOCH) // timedelta(microseconds=1))


def alembic(url: str, *arguments: str, **settings: str) -> None:
    environment = {**os.environ, "ANALYTICS_DATABASE_URL": url, **settings}
    command = [sys.executable, "-m", "alembic", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["month", "week", "day"])
def test_intervals_follow_one_another_without_a_gap(name: str) -> None:
    """A row between two partitions would go to the default one, and stop the next from being made."""
    interval = interval_of(name)
    generator = random.Random(1)
    for _ in range(500):
        when = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=generator.randrange(4 * 365 * 86_400))
        lower, upper = interval.around(when)
        assert lower <= when < upper
        assert interval.around(upper)[0] == upper
        assert interval.around(upper - timedelta(microseconds=1)) == (lower, upper)
    spans = ahead(datetime(2026, 12, 31, 23, tzinfo=UTC), interval)
    assert [span[0] for span in spans[1:]] == [span[1] for span in spans[:-1]]


async def test_a_new_database_has_the_present_and_coming_partitions_and_one_for_outliers(stack: Stack) -> None:
    connection = await connect(stack.database_url, application_name="test")
    now_us = time.time_ns() // 1000
    for table in TABLES:
        partitions = await partitions_of(connection, "public", table)
        assert len(partitions) == 4
        assert partitions[1].lower <= now_us < partitions[1].upper
        assert await connection.fetchval(
            "SELECT partdefid <> 0 FROM pg_partitioned_table WHERE partrelid = $1::text::regclass", table
        )
    await connection.close()


async def test_rows_of_any_time_find_a_partition_and_outliers_the_default_one(stack: Stack) -> None:
    """Late spans make the partitions they need; clocks of 1970 and of next century must not make thousands."""
    await stack.create_topic(partitions=1)
    generator = random.Random(2)
    now = datetime.now(UTC)
    days = [now - timedelta(days=day) for day in range(70, 80)]  # before those that the migration made
    rows = [at(made(generator, "feature_usage"), day) for day in days for _ in range(3)]
    outliers = [at(made(generator, "feature_usage"), when) for when in (EPOCH, now + timedelta(days=4000))]
    await stack.send([(0, row.value) for row in (*rows, *outliers)])
    stack.consumer(PARTITION_INTERVAL="day")
    await stack.settled(32)
    assert len(await stack.rows("feature_usage")) == 32
    leaves = {row["leaf"]: row["count"] for row in await stack.fetch(LEAVES)}
    assert leaves["partitions.feature_usage_default"] == 2
    connection = await connect(stack.database_url, application_name="test")
    bounds = [(each.lower, each.upper) for each in await partitions_of(connection, "public", "feature_usage")]
    await connection.close()
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(bounds))
    assert any(upper - lower == DAY_US for lower, upper in bounds)
    assert all(any(lower <= row.timestamp_us < upper for lower, upper in bounds) for row in rows)


async def test_rows_of_the_default_partition_move_out_when_their_time_has_come(stack: Stack) -> None:
    """Next year's rows are ordinary rows next year, and nobody may miss or double one meanwhile."""
    connection = await connect(stack.database_url, application_name="test")
    later = datetime.now(UTC) + timedelta(days=400)
    insert = "INSERT INTO feature_usage (id, feature_name, timestamp, deployment_type) VALUES ($1, 'x', $2, 'cloud')"
    rows = [(made(random.Random(index)).id, later + timedelta(minutes=index)) for index in range(50)]
    await connection.executemany(insert, rows)
    assert [row["leaf"] for row in await stack.fetch(LEAVES)] == ["partitions.feature_usage_default"]
    span = interval_of("month").around(later)
    assert await connection.fetchval("SELECT ingest.attach_partition('feature_usage', $1, $2)", *span)
    assert not await connection.fetchval("SELECT ingest.attach_partition('feature_usage', $1, $2)", *span)
    leaves = [row["leaf"] for row in await stack.fetch(LEAVES)]
    assert "partitions.feature_usage_default" not in leaves
    assert len(await stack.rows("feature_usage")) == 50
    known = Known("public", interval_of("month"))
    await known.load(connection)
    await connection.executemany(insert, [(made(random.Random(99)).id, datetime.now(UTC) - timedelta(days=200))])
    await known.keep_ahead(connection)
    assert "partitions.feature_usage_default" not in [row["leaf"] for row in await stack.fetch(LEAVES)]
    await connection.close()


async def test_a_span_with_another_start_is_another_row_and_the_same_start_is_the_same_row(stack: Stack) -> None:
    """The key is (id, timestamp): the promise of one row a span rests on the sender's keeping its start."""
    await stack.create_topic(partitions=1)
    record = at(made(random.Random(4), "feature_usage", action="created"), datetime.now(UTC))
    again = replace(record, columns={**record.columns, "action": "deleted"})
    moved = replace(record, timestamp_us=record.timestamp_us + 40 * DAY_US)
    await stack.send([(0, each.value) for each in (record, moved, again)])
    stack.consumer()
    await stack.settled(3)
    await answered(stack, "rewind", "--to-start")
    await stack.settled(3)
    found = await stack.fetch("SELECT action, timestamp FROM feature_usage ORDER BY timestamp")
    assert [row["action"] for row in found] == ["deleted", "created"]
    assert (await stack.ledger())[0]["duplicates"] == 3


async def test_a_table_full_of_rows_becomes_a_partition_and_a_downgrade_brings_it_back(
    stack: Stack, postgres: PostgresServer
) -> None:
    """The one migration in which existing rows are touched: none may be lost, and views and grants stay."""
    url = stack.database_url
    await asyncio.to_thread(alembic, url, "downgrade", "004_service_trace_weight_models")
    await stack.fetch(
        """
        INSERT INTO feature_usage (id, feature_name, user_id, timestamp, deployment_type)
        SELECT md5(number::text)::uuid, 'old', '73475cb40a568e8d', now() - number * interval '1 hour', 'cloud'
        FROM generate_series(1, 5000) AS number
        """
    )
    await stack.fetch(
        "INSERT INTO feature_usage (id, feature_name, timestamp, deployment_type) "
        "VALUES (gen_random_uuid(), 'old', now() + interval '9 years', 'cloud')"
    )
    await stack.fetch("CREATE VIEW by_feature AS SELECT feature_name, count(*) AS n FROM feature_usage GROUP BY 1")
    await stack.fetch("GRANT SELECT ON feature_usage TO PUBLIC")
    before = await stack.fetch("SELECT * FROM feature_usage ORDER BY id")
    await asyncio.to_thread(alembic, url, "upgrade", "head")
    await asyncio.to_thread(alembic, url, "check")
    assert await stack.fetch("SELECT * FROM feature_usage ORDER BY id") == before
    leaves = {row["leaf"]: row["count"] for row in await stack.fetch(LEAVES)}
    assert leaves == {"partitions.feature_usage_before_partitions": 5000, "partitions.feature_usage_default": 1}
    assert (await stack.fetch("SELECT n FROM by_feature")) == [{"n": 5001}]
    # A replayed old row is a duplicate still, and a new one comes after it.
    old = Made(
        "feature_usage",
        before[0]["id"],
        (before[0]["timestamp"] - EPOCH) // timedelta(microseconds=1),
        {"deployment_type": "cloud", "feature_name": "old", "user_id": "73475cb40a568e8d"},
    )
    new = at(made(random.Random(6), "feature_usage"), datetime.now(UTC) + timedelta(days=45))
    await stack.create_topic(partitions=1)
    await stack.send([(0, old.value), (0, new.value)])
    consumer = stack.consumer()
    await stack.settled(2)
    assert [(line["stored"], line["duplicates"]) for line in await stack.ledger()] == [(1, 1)]
    consumer.stop()
    receipt = await answered(stack, "erase", "--user-hash", "73475cb40a568e8d", "--dry-run")
    assert receipt["rows"]["feature_usage"] == 5000
    await asyncio.to_thread(alembic, url, "downgrade", "004_service_trace_weight_models")
    after = await stack.fetch("SELECT * FROM feature_usage ORDER BY id")
    assert [row for row in after if row["id"] != new.id] == before
    assert (await stack.fetch("SELECT n FROM by_feature WHERE feature_name = 'old'")) == [{"n": 5001}]
    assert (
        postgres.query(
            "SELECT count(*) FROM pg_class, aclexplode(relacl) WHERE oid = 'feature_usage'::regclass AND grantee = 0",
            url.rpartition("/")[2],
        )
        == "1"
    )


async def test_retention_drops_whole_partitions_and_deletes_in_the_one_that_straddles_the_line(stack: Stack) -> None:
    """Row by row, ten million rows of a month took an hour of the disk."""
    connection = await connect(stack.database_url, application_name="test")
    known = Known("public", interval_of("month"))
    await known.load(connection)
    now = datetime.now(UTC)
    times = [now - timedelta(days=day, hours=1) for day in range(0, 200, 2)]
    await known.make_for(connection, "feature_usage", [(each - EPOCH) // timedelta(microseconds=1) for each in times])
    await connection.executemany(
        "INSERT INTO feature_usage (id, feature_name, timestamp, deployment_type) VALUES ($1, 'x', $2, 'cloud')",
        [(made(random.Random(index)).id, each) for index, each in enumerate(times)],
    )
    before = await partitions_of(connection, "public", "feature_usage")
    expected = sum(each < now - timedelta(days=90) for each in times)
    assert (await retain(connection, days=90, dry_run=True))["feature_usage"] == expected
    reader = await asyncpg.connect(stack.database_url)
    await reader.execute("BEGIN; SELECT 1 FROM feature_usage LIMIT 1")

    async def read_on() -> None:  # an analyst's query that ends while retention waits for it
        await asyncio.sleep(1.5)
        await reader.execute("COMMIT")

    reading = asyncio.create_task(read_on())
    assert (await retain(connection, days=90))["feature_usage"] == expected
    await reading
    await reader.close()
    after = await partitions_of(connection, "public", "feature_usage")
    assert len(after) < len(before)
    assert all(each.upper > ((now - timedelta(days=90)) - EPOCH) // timedelta(microseconds=1) for each in after)
    oldest = await connection.fetchval("SELECT min(timestamp) FROM feature_usage")
    assert oldest >= now - timedelta(days=90)
    assert await connection.fetchval("SELECT count(*) FROM feature_usage") == len(times) - expected
    await connection.close()


async def test_the_functions_do_for_the_services_roles_only_what_is_ours(stack: Stack) -> None:
    """They run with the owner's rights."""
    await stack.fetch("CREATE TABLE other (id uuid, timestamp timestamptz) PARTITION BY RANGE (timestamp)")
    await stack.fetch("CREATE SCHEMA foreign_ones")
    await stack.fetch("ALTER TABLE other SET SCHEMA foreign_ones")
    leaf = (await stack.fetch("SELECT 'partitions.feature_usage_default'::regclass::oid AS oid"))[0]["oid"]
    for sql, *arguments in (
        ("SELECT ingest.attach_partition('foreign_ones.other', NULL, NULL)",),
        ("SELECT ingest.drop_partition($1::oid::regclass, now())", leaf),
        ("SELECT ingest.drop_partition(inhrelid, now()) FROM pg_inherits WHERE inhparent = 'feature_usage'::regclass",),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await stack.fetch(sql, *arguments)


async def test_partitions_are_made_ahead_beside_a_running_consumer(stack: Stack) -> None:
    await stack.create_topic(partitions=1)
    stack.consumer(PARTITION_INTERVAL="week")
    # A month of the migration covers the next weeks; those after it are made.
    connection = await connect(stack.database_url, application_name="test")
    last = (await partitions_of(connection, "public", "model_usage"))[-1].upper
    until = ahead(datetime.now(UTC), interval_of("week"))[-1][1]

    async def reaches() -> bool:
        partitions = await partitions_of(connection, "public", "model_usage")
        return partitions[-1].upper >= min(last, (until - EPOCH) // timedelta(microseconds=1))

    await eventually(reaches, 20, "partitions ahead")
    await connection.close()


@pytest.mark.parametrize(
    "revision", ["002_ingest_schema", pytest.param("004_service_trace_weight_models", marks=pytest.mark.long)]
)
async def test_a_consumer_that_is_newer_than_the_schema_waits_for_the_migration(stack: Stack, revision: str) -> None:
    """A deploy may start it before the migrations have run; that is no reason to crash."""
    await asyncio.to_thread(alembic, stack.database_url, "downgrade", revision)
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(index)).value) for index in range(20)])
    consumer = stack.consumer(is_awaited=False)
    await not_ready(consumer, "schema")
    await asyncio.sleep(3)
    assert consumer.is_running
    await asyncio.to_thread(alembic, stack.database_url, "upgrade", "head")
    await stack.settled(20)
    assert await stack.row_count() == 20
    assert consumer.is_running


async def test_a_long_query_delays_a_partition_and_no_row(stack: Stack) -> None:
    """An analyst's hour on the whole table must not hold up late spans."""
    await stack.create_topic(partitions=1)
    stack.consumer()
    late = [
        at(made(random.Random(index), "feature_usage"), datetime.now(UTC) - timedelta(days=100)) for index in (1, 2)
    ]
    reader = await asyncpg.connect(stack.database_url)
    await reader.execute("BEGIN; SELECT count(*) FROM feature_usage")
    started_at = time.monotonic()
    for record in late:
        await stack.send([(0, record.value)])
    await stack.settled(2, 20)
    assert time.monotonic() - started_at < 20
    assert [row["leaf"] for row in await stack.fetch(LEAVES)] == ["partitions.feature_usage_default"]
    await reader.execute("COMMIT")
    await reader.close()
    connection = await connect(stack.database_url, application_name="test")
    known = Known("public", interval_of("month"))
    await known.load(connection)
    await known.keep_ahead(connection)
    await connection.close()
    assert [row["count"] for row in await stack.fetch(LEAVES)] == [2]
    assert "partitions.feature_usage_default" not in [row["leaf"] for row in await stack.fetch(LEAVES)]
    await stack.send([(0, late[0].value)])
    await stack.settled(3)
    assert (await stack.ledger())[0]["duplicates"] == 1
