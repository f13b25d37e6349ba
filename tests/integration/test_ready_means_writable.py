"""Ready means that a batch can be written: every reason that Postgres has against it is told, and survived."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from test_consumer_faults import not_ready, readiness

from support.command import answered
from support.records import made
from support.stack import Stack, eventually

MINE = "73475cb40a568e8d"  # the hash of 42


@asynccontextmanager
async def read_only(stack: Stack) -> AsyncIterator[None]:
    name = stack.database_url.rpartition("/")[2]
    await stack.fetch(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    await disconnect_others(stack)
    yield
    connection = await asyncpg.connect(stack.database_url)
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    await connection.close()
    await disconnect_others(stack)


@asynccontextmanager
async def locked(stack: Stack) -> AsyncIterator[None]:
    connection = await asyncpg.connect(stack.database_url, server_settings={"application_name": "the-blocker"})
    async with connection.transaction():
        await connection.execute("LOCK TABLE user_activity, endpoint_usage, feature_usage IN SHARE MODE")
        yield
    await connection.close()


@asynccontextmanager
async def without_right(stack: Stack) -> AsyncIterator[None]:
    """As a trigger of a foreign hand would: the role of these tests owns the tables, and owners have every right."""
    await stack.fetch(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE insufficient_privilege USING MESSAGE = 'no'; END $$
        """
    )
    for table in ("user_activity", "endpoint_usage", "feature_usage"):
        await stack.fetch(f"CREATE TRIGGER refuse BEFORE INSERT ON {table} EXECUTE FUNCTION refuse()")
    yield
    await stack.fetch("DROP FUNCTION refuse CASCADE")


@asynccontextmanager
async def full_disk(stack: Stack) -> AsyncIterator[None]:
    """Empty partitions lie on a device that takes no byte, as on a volume that is full."""
    await stack.fetch("CHECKPOINT")  # nothing of those files waits to be written
    found = await stack.fetch(
        """
        SELECT pg_relation_filepath(inhrelid) AS path FROM pg_inherits
        WHERE inhparent = ANY ('{user_activity,endpoint_usage,feature_usage}'::regclass[])
        """
    )
    files = [stack.postgres.folder / "data" / row["path"] for row in found]
    for file in files:
        file.rename(file.with_name(f"{file.name}.kept"))
        file.symlink_to("/dev/full")
    await disconnect_others(stack)  # and their open files with them
    yield
    for file in files:
        file.unlink()
        file.with_name(f"{file.name}.kept").rename(file)
    await disconnect_others(stack)


async def disconnect_others(stack: Stack) -> None:
    await stack.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


REASONS = {
    "read-only": (read_only, "25006", ["read_only"]),
    "locked": (locked, "55P03", ["lock"]),
    "no right": (without_right, "42501", []),
    "disk full": (full_disk, "53100", []),  # of empty tables: it is their first page that finds no room
}


@pytest.mark.parametrize("reason", REASONS)
async def test_a_database_that_takes_no_rows_is_told_and_survived(stack: Stack, reason: str) -> None:
    """A /readyz of 200 on a standby hid an outage until somebody looked at the rows."""
    make, state, checks = REASONS[reason]
    await stack.create_topic(partitions=1)
    generator = random.Random(5)
    consumer = stack.consumer()
    before = 0 if reason == "disk full" else 10

    async def send(count: int) -> None:
        now_us = time.time_ns() // 1_000  # of a partition that is there already, in every month
        records = [replace(made(generator), timestamp_us=now_us) for _ in range(count)]
        await stack.send([(0, record.value) for record in records])

    await send(before)
    await stack.settled(before)
    async with make(stack):
        await send(10)
        await not_ready(consumer, state)
        why_not = json.loads(readiness(consumer)[1])["why_not"]
        assert reason.replace("locked", "lock timeout") in " ".join(why_not.values())
        found = await answered(stack, "doctor", code=1) if checks else {"findings": []}
        assert set(checks) <= {each["check"] for each in found["findings"]}
        if reason == "locked":
            assert "the-blocker" in next(each["detail"] for each in found["findings"] if each["check"] == "lock")

        async def was_tried_again() -> bool:
            return consumer.log.read_text().count("loop_restarted") >= 2

        await eventually(was_tried_again, 30, "a second attempt")
        assert (await asyncio.to_thread(readiness, consumer))[0] == 503
    await stack.settled(before + 10)

    async def is_ready() -> bool:
        return (await asyncio.to_thread(readiness, consumer))[0] == 200

    await eventually(is_ready, 20, "ready again")
    assert await stack.row_count() == before + 10
    assert consumer.is_running
    assert "loop_stalled" not in consumer.log.read_text()


async def erasures_in(stack: Stack) -> set[str]:
    return {json.loads(record.value)["hash"] for record in await stack.read_topic(stack.suppressions_topic)}


async def test_a_lost_topic_of_erasures_is_told_and_filled_again_from_the_table(stack: Stack) -> None:
    """Both are the truth; with the topic alone gone, a restored backup would bring erased people back."""
    await stack.create_topic(partitions=1)
    consumer = stack.consumer()
    await answered(stack, "erase", "--user-hash", MINE)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap_servers)
    await admin.start()
    await admin.delete_topics([stack.suppressions_topic])
    await admin.close()
    await not_ready(consumer, "suppressions")
    assert stack.suppressions_topic in readiness(consumer)[1]
    for program in ("audit", "doctor"):
        found = await answered(stack, program, code=1)
        assert "suppressions" in {each.get("kind", each.get("check")) for each in found["findings"]}
    stack.consumer(is_awaited=False)

    async def is_filled() -> bool:
        return await erasures_in(stack) == {MINE}

    await eventually(is_filled, 40, "the erasure in the new topic")

    async def is_ready() -> bool:
        return (await asyncio.to_thread(readiness, consumer))[0] == 200

    await eventually(is_ready, 20, "ready again")
    assert "suppressions" not in {each["kind"] for each in (await answered(stack, "audit"))["findings"]}


async def test_a_foreign_record_among_the_erasures_is_told_and_stays_told(stack: Stack) -> None:
    """It must not be passed over at the second reading either."""
    await stack.create_topic(partitions=1)
    consumer = stack.consumer()
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka.bootstrap_servers)
    await producer.start()
    await producer.send_and_wait(stack.suppressions_topic, b"hello", key=b"x")
    await producer.stop()
    await not_ready(consumer, "suppressions")
    await asyncio.sleep(6)  # three more readings
    assert (await asyncio.to_thread(readiness, consumer))[0] == 503
    found = await answered(stack, "audit", code=1)
    assert [each["kind"] for each in found["findings"]] == ["suppressions"]
    assert consumer.is_running
