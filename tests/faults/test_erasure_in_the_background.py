"""An erasure is complete, holds nobody up, and is finished by whoever is there."""

import asyncio
import random
import time

import asyncpg

from support.command import answered, started
from support.records import Made, made
from support.stack import Stack, eventually

MINE = "73475cb40a568e8d"  # the hash of 42
ROWS = """
    INSERT INTO {table} (id, feature_name, user_id, timestamp, deployment_type)
    SELECT gen_random_uuid(), 'many', $1, now() + {ahead} - number * interval '1 ms', 'cloud'
    FROM generate_series(1, {count}) AS number
"""


def rows(table: str, count: int, ahead: str = "interval '0'") -> str:
    return ROWS.format(table=table, count=count, ahead=ahead)


async def test_a_restored_backup_is_cleaned_in_every_schema_and_of_rows_from_clocks_ahead(stack: Stack) -> None:
    """Five rows stayed in before_rebuild, and one in public that its sender had dated into the future."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(1)).value)])
    consumer = stack.consumer()
    await stack.settled(1)
    assert (await answered(stack, "rebuild", "--rate", "0"))["swapped"]
    await answered(stack, "erase", "--user-hash", MINE)
    consumer.stop()
    await stack.fetch("DELETE FROM ingest.suppressions")  # as in a backup from before
    await stack.fetch("DELETE FROM ingest.erasures")
    await stack.fetch(rows("before_rebuild.feature_usage", 5), MINE)
    await stack.fetch(rows("public.feature_usage", 5), MINE)
    await stack.fetch(rows("public.feature_usage", 1, "interval '3 days'"), MINE)
    await stack.fetch(
        """
        INSERT INTO ingest.dead_letters (topic_id, topic, partition, "offset", value, headers, reason, first_seen_at)
        VALUES (gen_random_uuid(), 'x', 0, 0, convert_to($1, 'UTF8'), '[]', 'not_json', now() - interval '1 hour')
        """,
        MINE,
    )
    found = await answered(stack, "audit", code=1)
    assert "suppressions" in {each["kind"] for each in found["findings"]}
    stack.consumer()

    async def is_clean() -> bool:
        for schema in ("public", "before_rebuild"):
            if await stack.fetch(f"SELECT 1 FROM {schema}.feature_usage WHERE user_id = $1", MINE):
                return False
        return not await stack.fetch("SELECT 1 FROM ingest.dead_letters")

    await eventually(is_clean, 30, "every copy cleaned")

    async def is_done() -> bool:
        [erasure] = (await answered(stack, "erase", "--status"))["erasures"]
        return bool(erasure["done_at"]) and erasure["deleted"] > 0

    await eventually(is_done, 20, "the erasure told as done")
    assert (await answered(stack, "audit"))["ok"]


async def test_audit_finds_rows_of_erased_people_in_any_schema(stack: Stack) -> None:
    await stack.create_topic(partitions=1)
    await answered(stack, "erase", "--user-hash", MINE)
    await stack.fetch("CREATE SCHEMA elsewhere")
    for table in ("user_activity", "endpoint_usage", "feature_usage"):
        await stack.fetch(f"CREATE TABLE elsewhere.{table} (LIKE public.{table} INCLUDING ALL)")
    await stack.fetch(rows("elsewhere.feature_usage", 3, "interval '-1 day'"), MINE)
    found = await answered(stack, "audit", code=1)
    assert [(each["kind"], each["detail"]) for each in found["findings"]] == [
        ("erasure", "elsewhere.feature_usage holds 3 rows of erased people or organizations")
    ]


async def test_an_erasure_that_was_killed_is_finished_by_a_consumer(stack: Stack) -> None:
    """Its suppression stands, and its rows must not stay because somebody closed a laptop."""
    await stack.create_topic(partitions=1)
    await stack.fetch(rows("feature_usage", 200_000, "interval '-1 minute'"), MINE)
    erase = await started(stack, "erase", "--user-hash", MINE)

    async def is_under_way() -> bool:
        return bool(await stack.fetch("SELECT 1 FROM ingest.erasures WHERE deleted > 0 AND done_at IS NULL"))

    await eventually(is_under_way, 30, "the deletion under way", every_s=0.01)
    erase.kill()
    await erase.communicate()
    assert await stack.row_count() > 0
    stack.consumer()

    async def is_done() -> bool:
        return not await stack.row_count() and bool(
            await stack.fetch("SELECT 1 FROM ingest.erasures WHERE done_at IS NOT NULL AND deleted = 200000")
        )

    await eventually(is_done, 60, "the rest deleted")


async def test_an_erasure_of_many_rows_beside_a_dump_holds_no_writer_up(stack: Stack) -> None:
    """Two million rows in one transaction held every writer for six seconds, and pg_dump held the erasure."""
    await stack.create_topic(partitions=1)
    await stack.fetch(rows("feature_usage", 300_000, "interval '-1 minute'"), MINE)
    consumer = stack.consumer()
    dump = await asyncpg.connect(stack.database_url)
    await dump.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    for table in ("public.feature_usage", "ingest.suppressions", "ingest.partition_offsets"):
        await dump.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
    erase = asyncio.create_task(answered(stack, "erase", "--user-hash", MINE))
    generator = random.Random(3)
    sent: list[Made] = []
    longest_s = 0.0
    while not erase.done():
        record = made(generator, "user_activity")
        sent_at = time.monotonic()
        await stack.send([(0, record.value)])
        sent.append(record)
        await stack.settled(len(sent), 30)
        longest_s = max(longest_s, time.monotonic() - sent_at)
    receipt = await erase
    await dump.close()
    assert receipt["rows"]["feature_usage"] == 300_000
    assert len(sent) >= 3
    assert longest_s < 3, "from sent to settled, with two clients' starts"
    assert consumer.is_running
    assert "loop_restarted" not in consumer.log.read_text()
