"""The operator's commands where two of them meet, or where the stack is not as it mostly is."""

import asyncio
import json
import os
import random
import time
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import TopicPartition

from consumer.rebuild.shadow import GENERATION, reached
from consumer.store import database
from consumer.store.database import ClocksDiffer, connect
from consumer.store.retain import retain
from consumer.store.schema import LINE_COLUMNS
from support.command import answered, command, started
from support.records import made
from support.stack import Stack, eventually

MINE = "73475cb40a568e8d"  # the hash of 42
DAY_MS = 86_400_000
ANCIENT = """
    INSERT INTO feature_usage (id, feature_name, timestamp, deployment_type)
    SELECT gen_random_uuid(), 'ancient', now() - interval '1 year', 'cloud' FROM generate_series(1, 5)
"""


async def test_a_rewind_leaves_a_partition_that_is_behind_its_target_alone(stack: Stack) -> None:
    """It comes there by itself; a refusal for its sake would leave the others without their replay."""
    await stack.create_topic(partitions=2)
    generator = random.Random(1)
    old_ms = int(time.time() * 1000) - 3_600_000
    for partition in (0, 1):
        await stack.send([(partition, made(generator).value)] * 5, timestamp_ms=old_ms)
    consumer = stack.consumer()
    await stack.settled(10)
    consumer.stop()
    await stack.send([(0, made(generator).value)] * 5)
    await stack.fetch("UPDATE ingest.partition_offsets SET next_offset = 10, stored = stored + 5 WHERE partition = 0")
    await stack.send([(1, made(generator).value)] * 5)
    since = (datetime.now(UTC) - timedelta(minutes=30)).isoformat()
    await stack.fetch(
        "UPDATE ingest.partition_offsets SET next_offset = 3, stored = 3, duplicates = 0 WHERE partition = 1"
    )
    done = await answered(stack, "rewind", "--to-time", since)
    assert [(each["partition"], each["to_offset"]) for each in done["partitions"]] == [(0, 5)]
    assert [line["next_offset"] for line in await stack.ledger()] == [5, 3]


async def test_a_rewind_to_the_start_works_where_retention_has_passed_the_ledger(stack: Stack) -> None:
    """After a long stop the first thing that is tried; the gap is counted when the consumer gets there."""
    await stack.create_topic(partitions=1)
    generator = random.Random(2)
    await stack.send([(0, made(generator).value) for _ in range(10)])
    consumer = stack.consumer()
    await stack.settled(10)
    consumer.stop()
    await stack.send([(0, made(generator).value) for _ in range(20)])
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TopicPartition(stack.topic, 0): RecordsToDelete(before_offset=15)})
    await admin.close()
    assert (await answered(stack, "rewind", "--to-start"))["partitions"] == []
    stack.consumer()
    await stack.settled(30)
    [line] = await stack.ledger()
    assert (line["stored"], line["skipped"]) == (25, 5)


async def test_retention_begins_with_the_consumer_and_not_an_hour_after(stack: Stack) -> None:
    """Where a consumer is restarted more often than hourly, nothing would ever be deleted."""
    await stack.create_topic(partitions=1)
    await stack.fetch(ANCIENT)
    stack.consumer(RETENTION_DAYS="90")

    async def is_empty() -> bool:
        return await stack.row_count() == 0

    await eventually(is_empty, 30, "the ancient rows deleted")


async def test_a_rebuild_from_the_topic_alone_drops_what_is_older_and_stops_for_what_is_not(stack: Stack) -> None:
    """--only-topic says what to do with history, and nothing of rows that nobody can explain."""
    await stack.create_topic(partitions=2)
    now_us = time.time_ns() // 1000
    fields = [json.loads(made(random.Random(index)).value) for index in range(50)]
    values = [json.dumps({**each, "timestamp_us": now_us}).encode() for each in fields]
    await stack.send([(int(each["id"][-8:], 16) % 2, value) for each, value in zip(fields, values, strict=True)])
    stack.consumer()
    await stack.settled(50)
    await stack.fetch(ANCIENT)
    await stack.fetch(ANCIENT.replace("'ancient'", "'foreign'").replace("- interval '1 year'", "+ interval '1 hour'"))
    stopped = await answered(stack, "rebuild", "--rate", "0", "--only-topic", code=1)
    assert (stopped["swapped"], stopped["unexplained"]["feature_usage"], stopped["carried_over"]) == (False, 5, {})
    await stack.fetch("DELETE FROM feature_usage WHERE feature_name = 'foreign'")
    done = await answered(stack, "rebuild", "--rate", "0", "--resume", "--only-topic")
    assert (done["swapped"], done["unexplained"]["feature_usage"]) == (True, 0)
    assert await stack.row_count() == 50


async def test_a_rebuild_keeps_what_was_added_to_the_tables_or_refuses(stack: Stack) -> None:
    """An index that a dashboard needs, a view's barrier, a grant on one column: nobody looks for them after a swap."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(3)).value)])
    stack.consumer()
    await stack.settled(1)
    await stack.fetch("CREATE INDEX by_action ON feature_usage (action, timestamp) WHERE action IS NOT NULL")
    await stack.fetch("CREATE VIEW own WITH (security_barrier = true) AS SELECT action FROM feature_usage")
    await stack.fetch('GRANT SELECT (action, "timestamp") ON feature_usage TO PUBLIC')
    await stack.fetch("ALTER TABLE user_activity ADD COLUMN colour text")
    code, _, err = await command(stack, "rebuild", "--rate", "0")
    assert (code, "column user_activity.colour" in err) == (1, True)
    await stack.fetch("ALTER TABLE user_activity DROP COLUMN colour")
    await stack.fetch(
        "CREATE TABLE notes (id uuid, at timestamptz, CONSTRAINT of_use FOREIGN KEY (id, at) REFERENCES feature_usage)"
    )
    code, _, err = await command(stack, "rebuild", "--rate", "0")
    assert (code, "constraint of_use" in err) == (1, True)
    await stack.fetch("DROP TABLE notes")
    assert (await answered(stack, "rebuild", "--rate", "0"))["swapped"]
    [index] = await stack.fetch("SELECT indexdef FROM pg_indexes WHERE schemaname || indexname = 'publicby_action'")
    definition = 'ON ONLY public.feature_usage USING btree (action, "timestamp") WHERE (action IS NOT NULL)'
    assert index["indexdef"].endswith(definition)
    [view] = await stack.fetch("SELECT reloptions FROM pg_class WHERE relname = 'own'")
    assert view["reloptions"] == ["security_barrier=true"]
    granted = await stack.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'public.feature_usage'::regclass AND attacl IS NOT NULL"
    )
    assert {row["attname"] for row in granted} == {"action", "timestamp"}


async def test_a_swap_keeps_settings_that_were_made_meanwhile_and_refuses_what_it_cannot_keep(stack: Stack) -> None:
    """A policy that was made while the rebuild ran was gone afterwards, and a tenant saw every row."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(index)).value) for index in range(300)])
    stack.consumer()
    await stack.settled(300)
    rebuild = await started(stack, "rebuild", "--rate", "15")

    async def is_filling() -> bool:
        return bool(await stack.fetch("SELECT 1 FROM ingest.partition_offsets WHERE generation = 'rebuild'"))

    await eventually(is_filling, 30, "the rebuild under way")
    code, _, err = await command(stack, "rewind", "--to-start")
    assert (code, "rebuild is running" in err) == (1, True)
    await stack.fetch("ALTER TABLE feature_usage ENABLE ROW LEVEL SECURITY")
    await stack.fetch("CREATE POLICY tenants ON feature_usage USING (organization_id = current_user)")
    _, err = await rebuild.communicate()
    assert (rebuild.returncode, b"policy tenants" in err) == (1, True), err
    assert b"swapping" in err
    policies = "SELECT 1 FROM pg_policies WHERE schemaname = 'public'"
    assert await stack.fetch(policies)
    assert await stack.row_count() == 300
    await stack.fetch("DROP POLICY tenants ON feature_usage")
    await stack.fetch("ALTER TABLE feature_usage FORCE ROW LEVEL SECURITY")
    await stack.fetch("ALTER TABLE partitions.feature_usage_default SET (fillfactor = 90)")
    await stack.fetch("ALTER TABLE feature_usage ALTER COLUMN action SET STATISTICS 500")
    await stack.fetch("ALTER TABLE feature_usage REPLICA IDENTITY FULL")
    await stack.fetch("CREATE STATISTICS by_both (dependencies) ON action, feature_name FROM feature_usage")
    await stack.fetch(
        "CREATE FUNCTION one() RETURNS feature_usage LANGUAGE sql AS 'SELECT * FROM feature_usage LIMIT 1'"
    )
    code, _, err = await command(stack, "rebuild", "--resume", "--rate", "0")
    assert (code, "function one" in err) == (1, True)
    await stack.fetch("DROP FUNCTION one")
    assert (await answered(stack, "rebuild", "--resume", "--rate", "0"))["swapped"]
    [kept] = await stack.fetch(
        """
        SELECT relrowsecurity, relforcerowsecurity, relreplident, (
            SELECT reloptions FROM pg_class AS leaf
            WHERE leaf.oid = (SELECT partdefid FROM pg_partitioned_table WHERE partrelid = pg_class.oid)
        ) AS reloptions, (
            SELECT attstattarget FROM pg_attribute WHERE attrelid = pg_class.oid AND attname = 'action') AS target
        FROM pg_class WHERE oid = 'public.feature_usage'::regclass
        """
    )
    assert (kept["relrowsecurity"], kept["relforcerowsecurity"], kept["relreplident"]) == (True, True, b"f")
    assert (kept["reloptions"], kept["target"]) == (["fillfactor=90"], 500)
    statistics = (
        "SELECT stxrelid::regclass::text AS of FROM pg_statistic_ext WHERE stxnamespace = 'public'::regnamespace"
    )
    assert await stack.fetch(statistics) == [{"of": "feature_usage"}]
    await stack.fetch("CREATE VIEW still_old AS SELECT count(*) FROM before_rebuild.feature_usage")
    code, _, err = await command(stack, "rebuild", "--drop-old")
    assert (code, "still_old" in err) == (1, True)
    await stack.fetch("DROP VIEW still_old")
    assert (await command(stack, "rebuild", "--drop-old"))[0] == 0


async def test_nothing_expires_and_nobody_is_erased_while_two_clocks_differ(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose clock says next year would delete everything that is younger than RETENTION_DAYS."""
    await stack.create_topic(partitions=1)
    await stack.fetch(ANCIENT)
    connection = await connect(stack.database_url, application_name="test")

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Ahead":
            real = datetime.now(tz) + timedelta(minutes=2)
            return cls.fromtimestamp(real.timestamp(), tz)

    with monkeypatch.context() as patch:
        patch.setattr(database, "datetime", Ahead)
        with pytest.raises(ClocksDiffer):
            await retain(connection, days=1)
    assert await stack.row_count() == 5
    assert (await retain(connection, days=1))["feature_usage"] == 5
    await connection.close()


async def test_a_redrive_waits_for_a_rebuild_and_a_rebuild_for_a_redrive(stack: Stack) -> None:
    """A row that is written past the ledger after the rebuild has looked would go with the old tables."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(index)).value) for index in range(500)])
    await stack.send([(0, b"{}")] * 200)
    stack.consumer()
    await stack.settled(700)
    rebuild = await started(stack, "rebuild", "--rate", "50")

    async def are_locked() -> bool:
        return bool(await stack.fetch("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"))

    await eventually(are_locked, 30, "the rebuild under way")
    code, _, err = await command(stack, "dead-letters", "redrive")
    assert (code, "rebuild" in err) == (1, True)
    rebuild.kill()
    await rebuild.communicate()

    async def are_released() -> bool:
        return not await are_locked()

    await eventually(are_released, 20, "the lock released")
    redrive = await started(stack, "dead-letters", "redrive", "--rate", "5")
    await eventually(are_locked, 30, "the redrive under way")
    assert (await command(stack, "rebuild", "--resume"))[0] == 1
    redrive.kill()
    await redrive.communicate()


async def test_an_erasure_before_anything_has_run_makes_the_topic_of_erasures_as_it_must_be(stack: Stack) -> None:
    """A broker that creates topics by itself gives one whose records expire, and with them the erasure."""
    dry = await answered(stack, "erase", "--user-hash", MINE, "--dry-run", KAFKA_TOPIC_CREATE="false")
    assert dry["dry_run"] is True
    code, _, err = await command(stack, "erase", "--user-hash", MINE, KAFKA_TOPIC_CREATE="false")
    assert (code, "nothing was deleted" in err) == (3, True)
    assert await stack.fetch("SELECT 1 FROM ingest.suppressions") == []
    await answered(stack, "erase", "--user-hash", MINE)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap_servers)
    await admin.start()
    topic = ConfigResource(ConfigResourceType.TOPIC, stack.suppressions_topic)
    config = {entry[0]: entry[1] for entry in (await admin.describe_configs([topic]))[0].resources[0][4]}
    await admin.close()
    assert (config["cleanup.policy"], config["retention.ms"]) == ("compact", "-1")
    [record] = await stack.read_topic(stack.suppressions_topic)
    assert (record.key, record.partition) == (f"user:{MINE}".encode(), 0)
    assert set(json.loads(record.value)) == {"kind", "hash", "erased_at_us"}


async def test_a_second_erasure_keeps_the_later_date_in_the_topic_too(stack: Stack) -> None:
    """Compaction keeps the last record: one from a machine whose clock is behind must not bring rows back."""
    await answered(stack, "erase", "--user-hash", MINE)
    later = datetime.now(UTC).replace(microsecond=123456) + timedelta(hours=1)
    await stack.fetch("UPDATE ingest.suppressions SET erased_at = $1", later)
    await answered(stack, "erase", "--user-hash", MINE)
    records = [json.loads(record.value) for record in await stack.read_topic(stack.suppressions_topic)]
    assert records[-1]["erased_at_us"] == (later - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert [row["erased_at"] for row in await stack.fetch("SELECT erased_at FROM ingest.suppressions")] == [later]


@pytest.mark.parametrize("days", ["0", "90"])
async def test_a_letter_that_a_replay_only_counts_is_not_said_to_be_redriven(days: str, stack: Stack) -> None:
    """`redriven_at` means that there is a row."""
    await stack.create_topic(partitions=1, **{"retention.ms": "-1"})
    await stack.send([(0, b"{}")] * 3, timestamp_ms=int(time.time() * 1000) - 100 * DAY_MS)
    consumer = stack.consumer()
    await stack.settled(3)
    consumer.stop()
    await answered(stack, "rewind", "--to-start")
    # Or retention itself would delete them, as it should.
    await stack.fetch("UPDATE ingest.dead_letters SET record_time = now()")
    stack.consumer(RETENTION_DAYS=days)
    await stack.settled(3)
    [line] = await stack.ledger()
    assert (line["expired"], line["dead_lettered"]) == ((3, 0) if days == "90" else (0, 3))
    letters = await stack.fetch("SELECT redriven_at FROM ingest.dead_letters")
    assert [letter["redriven_at"] for letter in letters] == [None] * 3


@pytest.mark.parametrize(
    ("arguments", "read_bytes"), [(("export", "--user-hash", MINE), 100), (("dead-letters", "list", "--json"), 0)]
)
async def test_a_command_whose_reader_leaves_ends_without_a_word(
    arguments: tuple[str, ...], read_bytes: int, stack: Stack
) -> None:
    """`export | head` is no server out of reach, which is what 3 says."""
    await stack.fetch(
        """
        INSERT INTO user_activity (id, user_id, event_type, timestamp, deployment_type)
        SELECT gen_random_uuid(), $1, 'login', now(), 'cloud' FROM generate_series(1, 5000)
        """,
        MINE,
    )
    reader, writer = os.pipe()
    process = await started(stack, *arguments, stdout=writer)
    os.close(writer)
    assert len(await asyncio.to_thread(os.read, reader, read_bytes)) == read_bytes
    os.close(reader)
    _, err = await process.communicate()
    assert (process.returncode, err) == (141, b"")


async def test_a_swap_holds_up_nobody_while_its_shadow_is_behind(stack: Stack) -> None:
    """On a busy machine each attempt held the writers for three seconds, and then gave up."""
    await stack.create_topic(1)
    await stack.send([(0, made(random.Random(5 + index)).value) for index in range(10)])
    consumer = stack.consumer()
    await stack.settled(10)
    consumer.stop()
    copied = ", ".join(set(LINE_COLUMNS) - {"generation", "next_offset", "stored"})
    await stack.fetch(
        f"""
        INSERT INTO ingest.partition_offsets ({copied}, generation, next_offset, stored)
        SELECT {copied}, '{GENERATION}', next_offset - 1, stored - 1 FROM ingest.partition_offsets
        """
    )
    connection = await asyncpg.connect(stack.database_url)
    try:
        operation: Any = SimpleNamespace(database=connection, topic=stack.topic)
        async with connection.transaction():
            waiting = asyncio.create_task(reached(operation, None, 30))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            assert await stack.fetch("SELECT 1 FROM ingest.partition_offsets FOR UPDATE NOWAIT")
            await stack.fetch(
                f"UPDATE ingest.partition_offsets SET next_offset = 10, stored = stored + 1 "
                f"WHERE generation = '{GENERATION}'"
            )
            assert await asyncio.wait_for(waiting, 10)
    finally:
        await connection.close()
