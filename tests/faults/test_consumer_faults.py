"""Whatever dies: every acknowledged record is a row exactly once, or a dead letter. Real signals, real servers."""

import asyncio
import json
import os
import random
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from aiokafka.structs import TopicPartition

from consumer.store import rollups
from deploy.local.kafka import KafkaBroker
from deploy.local.postgres import PostgresServer
from deploy.local.stack import ModuleServer
from support.command import answered, started
from support.proxy import Proxy
from support.records import Made, made
from support.stack import TABLES, Stack, eventually

Migrate = Callable[[PostgresServer], Awaitable[str]]
CONSUMER = "telemetry-consumer"  # its writer's name at Postgres
FATES = ("stored", "duplicates", "dead_lettered", "suppressed", "expired", "skipped")


@pytest.fixture
def own_postgres(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[PostgresServer]:
    """A Postgres of the test's own, to be killed."""
    with PostgresServer(folder / f"postgres-{time.monotonic_ns()}") as server:
        yield server


@pytest.fixture
def own_kafka(folder: Path) -> Iterator[KafkaBroker]:
    """A broker of the test's own, to be killed."""
    with KafkaBroker(folder / f"kafka-{time.monotonic_ns()}") as broker:
        yield broker


@asynccontextmanager
async def light_load(stack: Stack, seed: int, pause_s: float = 0.05) -> AsyncIterator[list[Made]]:
    """Sends records all through the block; yields the list of those that the broker has acknowledged."""
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


async def assert_exactly_once(stack: Stack, expected: list[Made], seconds: float = 90) -> None:
    await stack.settled(len(expected), seconds)
    rows = {table: await stack.rows(table) for table in TABLES}
    missing = [
        record for record in expected if not (row := rows[record.table].get(record.id)) or not record.matches(row)
    ]
    assert missing == []
    assert sum(map(len, rows.values())) == len({record.id for record in expected})
    assert await stack.fetch("SELECT * FROM ingest.dead_letters") == []
    for line in await stack.ledger():
        assert line["next_offset"] - line["first_offset"] == sum(line[fate] for fate in FATES)
        assert line["duplicates"] == 0  # nothing was even applied a second time


def readiness(consumer: ModuleServer) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{consumer.port_of('CONSUMER_METRICS_PORT')}/readyz", timeout=3
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()


def metric(consumer: ModuleServer, name: str) -> float:
    """The sum over the labels, or the one series when `name` has them."""
    url = f"http://127.0.0.1:{consumer.port_of('CONSUMER_METRICS_PORT')}/metrics"
    with urllib.request.urlopen(url, timeout=3) as answer:
        lines = answer.read().decode().splitlines()
    pattern = re.escape(name) if "{" in name else rf"{name}(\{{| )"
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(pattern, line))


async def not_ready(consumer: ModuleServer, why: str) -> None:
    async def says_why() -> bool:
        status, text = await asyncio.to_thread(readiness, consumer)
        return status == 503 and why in text

    await eventually(says_why, 60, f"not ready: {why}")


async def test_a_consumer_killed_under_load_loses_and_doubles_nothing(stack: Stack) -> None:
    """kill -9 comes between any two instructions; the transaction must make each of them safe."""
    await stack.create_topic()
    async with light_load(stack, 1) as acknowledged:
        for _ in range(2):
            consumer = stack.consumer(CONSUMER_BATCH_ROWS="150")
            count = len(acknowledged)

            async def has_moved(count: int = count) -> bool:
                return len(acknowledged) > count + 300 and await stack.row_count() > count

            await eventually(has_moved, 60, "load under way")
            consumer.kill()
        stack.consumer()
    await assert_exactly_once(stack, acknowledged)


async def test_a_zombie_that_wakes_after_losing_its_partitions_writes_nothing(stack: Stack) -> None:
    """A paused virtual machine believes that it still owns its partitions; only the fence knows better.

    Its transaction is on the way when it is paused, and arrives when the partitions are another's: it has tried.
    """
    await stack.create_topic()
    async with Proxy(stack.database_url).running() as proxy:
        reaching = {"CONSUMER_BATCH_ROWS": "50", "ANALYTICS_DATABASE_URL": proxy.url}
        zombie = await asyncio.to_thread(lambda: stack.consumer(**reaching))  # the proxy lives in this loop
        async with light_load(stack, 2, pause_s=0.3) as acknowledged:

            async def is_held_between_transactions() -> bool:
                if await stack.row_count() <= 200:
                    return False
                proxy.stall()
                await asyncio.sleep(0.2)  # for what was on its way
                states = await stack.fetch("SELECT state FROM pg_stat_activity WHERE application_name = $1", CONSUMER)
                if any(session["state"] != "idle" for session in states):
                    proxy.flow()
                return not proxy.is_flowing

            await eventually(is_held_between_transactions, 60, "the zombie at work, and held")
            sent = len(acknowledged)
            await eventually(lambda: more_than(sent + 200, acknowledged), 60, "records for its next transaction")
            zombie.pause()
            before = await positions(stack)
            await asyncio.to_thread(stack.consumer)

            async def is_taken_over() -> bool:
                now = await positions(stack)
                return all(now[partition] > offset for partition, offset in before.items())

            await eventually(is_taken_over, 60, "the other consumer at work on each partition")
            proxy.flow()
            zombie.resume()

            async def is_refused() -> bool:
                return await asyncio.to_thread(metric, zombie, "consumer_fenced_total") >= 1

            await eventually(is_refused, 30, "the zombie's transaction refused")
        await assert_exactly_once(stack, acknowledged)


async def more_than(count: int, acknowledged: list[Made]) -> bool:
    return len(acknowledged) > count


async def positions(stack: Stack) -> dict[int, int]:
    return {line["partition"]: line["next_offset"] for line in await stack.ledger()}


async def test_consumers_come_and_go_under_load(stack: Stack) -> None:
    """Scaling must not cost a row: one to three consumers and back, by SIGTERM."""
    await stack.create_topic(partitions=4)
    async with light_load(stack, 3) as acknowledged:
        consumers = [stack.consumer(CONSUMER_BATCH_ROWS="200") for _ in range(3)]
        consumers[0].stop()
        consumers.append(stack.consumer(CONSUMER_WRITERS="2"))
        for consumer in consumers[1:3]:
            consumer.stop()
        assert all("Traceback" not in consumer.log.read_text() for consumer in consumers)
    await assert_exactly_once(stack, acknowledged)


async def test_added_partitions_are_read_from_their_first_record(stack: Stack) -> None:
    """Records that land in a new partition before any consumer knows of it are as acknowledged as others."""
    await stack.create_topic(partitions=2)
    stack.consumer()
    expected = [made(random.Random(70 + index)) for index in range(200)]
    await stack.send([(record.partition(2), record.value) for record in expected[:100]])
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap_servers)
    await admin.start()
    await admin.create_partitions({stack.topic: NewPartitions(total_count=4)})
    await admin.close()
    await stack.send([(2 + record.partition(2), record.value) for record in expected[100:]])
    await assert_exactly_once(stack, expected)


async def test_postgres_killed_under_load_costs_no_record_and_makes_no_dead_letter(
    stack: Stack, own_postgres: PostgresServer, migrate: Migrate
) -> None:
    """Trouble of the database is never the record's fault."""
    stack.database_url = await migrate(own_postgres)
    await stack.create_topic()
    consumer = stack.consumer(CONSUMER_BATCH_ROWS="150")
    async with light_load(stack, 4, pause_s=0.2) as acknowledged:
        for stop in (own_postgres.kill, own_postgres.stop):

            async def has_begun(count: int = len(acknowledged)) -> bool:
                return await stack.row_count() > count

            await eventually(has_begun, 60, "rows arriving")
            await asyncio.to_thread(stop)
            await not_ready(consumer, "database")
            await asyncio.to_thread(own_postgres.start)
    await assert_exactly_once(stack, acknowledged)
    assert consumer.is_running


async def test_kafka_killed_under_load_costs_no_record(stack: Stack, own_kafka: KafkaBroker) -> None:
    """The consumer waits for its broker and goes on where the ledger is."""
    stack.kafka = own_kafka
    await stack.create_topic()
    consumer = stack.consumer(CONSUMER_BATCH_ROWS="50")
    expected = [made(random.Random(500 + index)) for index in range(600)]
    await stack.send([(record.partition(), record.value) for record in expected[:300]])
    await asyncio.to_thread(own_kafka.kill)
    await not_ready(consumer, "broker")
    await asyncio.to_thread(own_kafka.start)
    await stack.send([(record.partition(), record.value) for record in expected[300:]])
    await assert_exactly_once(stack, expected)
    assert consumer.is_running


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_postgres_stopped_for_five_minutes_under_load_costs_nothing_but_time(
    stack: Stack, own_postgres: PostgresServer, migrate: Migrate
) -> None:
    """A failed failover on a Sunday: nobody is evicted, nothing is buffered without end, and all of it drains."""
    stack.database_url = await migrate(own_postgres)
    await stack.create_topic()
    consumer = stack.consumer()
    pid = consumer.pid
    assert pid
    async with light_load(stack, 11, pause_s=0.1) as acknowledged:

        async def has_begun() -> bool:
            return await stack.row_count() > 500

        await eventually(has_begun, 60, "rows arriving")
        rebalances = await asyncio.to_thread(metric, consumer, "consumer_rebalances_total")
        resident_mib = psutil.Process(pid).memory_info().rss // 2**20
        await asyncio.to_thread(own_postgres.stop)
        await asyncio.sleep(300)
        assert psutil.Process(pid).memory_info().rss // 2**20 < resident_mib + 60
        await asyncio.to_thread(own_postgres.start)
    await assert_exactly_once(stack, acknowledged, seconds=120)
    assert await asyncio.to_thread(metric, consumer, "consumer_rebalances_total") == rebalances
    assert consumer.pid == pid


async def test_a_replay_in_any_order_of_partitions_gives_the_same_tables_and_next_to_no_wal(stack: Stack) -> None:
    """Replaying must be safe to do on a hunch: what is right already is not even written."""
    await stack.create_topic(partitions=4)
    generator = random.Random(12)
    first = [made(generator) for _ in range(4_000)]
    again = [Made(each.table, each.id, each.timestamp_us + 1, each.columns) for each in generator.sample(first, 40)]
    turn = await asyncpg.connect(stack.database_url)
    await turn.execute("SELECT pg_advisory_lock($1)", rollups.ADVISORY_LOCK)  # so that nobody writes sums meanwhile
    stack.consumer()

    async def wal_bytes() -> int:
        [row] = await stack.fetch("SELECT pg_current_wal_insert_lsn() - '0/0' AS bytes")
        return int(row["bytes"])

    async def content() -> list[list[dict[str, object]]]:
        sql = "SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM public.{} AS t"
        return [await stack.fetch(sql.format(table)) for table in TABLES]

    started_at = await wal_bytes()
    await stack.send([(record.partition(), record.value) for record in first + again])
    await stack.settled(4_040)
    fresh_bytes = await wal_bytes() - started_at
    before = await content()
    for table in TABLES:  # or the first reading of fresh rows, after a checkpoint, writes whole pages for its hints
        await stack.fetch(f"VACUUM {table}")
    started_at = await wal_bytes()
    for partition in generator.sample(range(4), 4):
        await answered(stack, "rewind", "--to-offset", f"{partition}:0")

        async def is_replayed(partition: int = partition) -> bool:
            line = (await stack.ledger())[partition]
            return bool(line["epoch"] == 1 and line["next_offset"] > 900)

        await eventually(is_replayed, 60, "the partition replayed")
    replay_bytes = await wal_bytes() - started_at
    await turn.close()
    assert await content() == before
    assert replay_bytes < fresh_bytes / 10
    ledger = await stack.ledger()
    assert sum(line["duplicates"] for line in ledger) == 4_040


async def test_a_lost_answer_to_a_commit_doubles_nothing(stack: Stack) -> None:
    """Connections cut at any moment, that of the COMMIT too: the ledger tells whether it happened."""
    await stack.create_topic()
    stack.consumer(CONSUMER_BATCH_ROWS="40", CONSUMER_LINGER_MS="5")
    administrator = await asyncpg.connect(stack.database_url)
    async with light_load(stack, 5) as acknowledged:
        for _ in range(20):
            await administrator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'telemetry-consumer' AND datname = current_database()"
            )
            await asyncio.sleep(0.15)
    await administrator.close()
    await assert_exactly_once(stack, acknowledged)


async def test_offsets_lost_to_retention_are_counted_and_told(stack: Stack) -> None:
    """Retention that overtakes a stopped consumer is the known hole: it must be seen, not guessed."""
    await stack.create_topic(partitions=1)
    generator = random.Random(6)
    expected = [made(generator) for _ in range(300)]
    await stack.send([(0, record.value) for record in expected[:100]])
    first = stack.consumer()
    await stack.settled(100)
    first.stop()
    await stack.send([(0, record.value) for record in expected[100:]])
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TopicPartition(stack.topic, 0): RecordsToDelete(before_offset=150)})
    await admin.close()
    second = stack.consumer()
    await stack.settled(300)
    [line] = await stack.ledger()
    assert (line["stored"], line["skipped"]) == (250, 50)
    [gap] = await stack.fetch("SELECT partition, from_offset, to_offset, reason FROM ingest.gaps")
    assert gap == {"partition": 0, "from_offset": 100, "to_offset": 150, "reason": "retention"}
    assert "offsets_lost" in second.log.read_text()


async def test_a_recreated_topic_stops_the_consumer_even_when_it_has_outgrown_the_ledger(stack: Stack) -> None:
    """Offsets alone cannot tell a new topic from the old; reading on would skip its first records silently."""
    await stack.create_topic(partitions=1)
    generator = random.Random(8)
    await stack.send([(0, made(generator).value) for _ in range(50)])
    consumer = stack.consumer()
    await stack.settled(50)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap_servers)
    await admin.start()
    await admin.delete_topics([stack.topic])

    async def is_created() -> bool:
        try:
            await stack.create_topic(partitions=1)
        except AssertionError:  # the deletion is under way
            return False
        return True

    await eventually(is_created, 60, "the topic made anew")
    await admin.close()
    await stack.send([(0, made(generator).value) for _ in range(200)])
    await not_ready(consumer, "recreated")
    assert await stack.row_count() == 50
    assert (await stack.ledger())[0]["next_offset"] == 50
    assert "--accept-new-topic" in readiness(consumer)[1]


async def test_a_ledger_past_the_end_of_the_topic_begins_anew_where_the_topic_ends(stack: Stack) -> None:
    """A log that lost its tail: waiting until new records have outgrown the ledger would skip them."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(14)).value)] * 3)
    first = stack.consumer()
    await stack.settled(3)
    first.stop()
    await stack.fetch("UPDATE ingest.partition_offsets SET next_offset = 900, skipped = skipped + 897")
    stack.consumer()
    await stack.send([(0, made(random.Random(15)).value)] * 2)

    async def is_read() -> bool:
        return await stack.row_count() == 2

    await eventually(is_read, 30, "the records sent afterwards")
    [line] = await stack.ledger()
    assert (line["next_offset"], line["epoch"]) == (5, 1)
    [gap] = await stack.fetch("SELECT to_offset, reason FROM ingest.gaps")
    assert gap == {"to_offset": 900, "reason": "truncated"}


async def test_the_breaker_stops_before_a_bad_deploy_empties_the_topic_into_dead_letters(stack: Stack) -> None:
    """10,000 records that no longer decode are one mistake, not 10,000."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, b"{}")] * 3_000)
    settings = {"DEAD_LETTER_WINDOW": "100", "DEAD_LETTER_MAX_RATIO": "0.5"}
    consumer = stack.consumer(is_awaited=False, **settings)
    await not_ready(consumer, "dead letters")
    assert (await stack.ledger())[0]["next_offset"] == 50
    assert len(await stack.fetch("SELECT 1 FROM ingest.dead_letters")) == 50
    assert consumer.is_running
    consumer.stop()
    again = stack.consumer(is_awaited=False, **settings)
    await not_ready(again, "dead letters")
    assert (await stack.ledger())[0]["next_offset"] == 100


async def test_writers_of_one_process_share_one_breaker(stack: Stack) -> None:
    """Or each of them would pass as many dead letters as all of them may."""
    await stack.create_topic(partitions=4)
    await stack.send([(index % 4, b"{}") for index in range(2_000)])
    await stack.fetch(
        "CREATE FUNCTION slow() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(0.01); RETURN NULL; END' LANGUAGE plpgsql"
    )  # long enough between judgement and commit for all four to be judged by then
    await stack.fetch("CREATE TRIGGER slow BEFORE INSERT ON ingest.dead_letters EXECUTE FUNCTION slow()")
    settings = {"DEAD_LETTER_WINDOW": "600", "DEAD_LETTER_MAX_RATIO": "0.5", "CONSUMER_WRITERS": "4"}
    consumer = stack.consumer(is_awaited=False, CONSUMER_BATCH_ROWS="250", **settings)
    await not_ready(consumer, "dead letters")

    async def are_all_settled() -> bool:
        lines = await stack.ledger()
        return sum(line["next_offset"] for line in lines) == 300

    await eventually(are_all_settled, 60, "exactly what the breaker lets pass")
    assert len(await stack.fetch("SELECT 1 FROM ingest.dead_letters")) == 300


async def test_a_single_bad_record_on_a_quiet_system_does_not_open_the_breaker(stack: Stack) -> None:
    """A ratio of one in one is no trend."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, b"{}")])
    consumer = stack.consumer(DEAD_LETTER_MAX_RATIO="0.1")
    await stack.settled(1)
    assert readiness(consumer)[0] == 200


@pytest.mark.parametrize("poison", [1, 50])
async def test_poison_among_5000_records_costs_only_itself(stack: Stack, poison: int) -> None:
    """The database refuses what the decoder let pass: halving finds it, and the rest is stored."""
    generator = random.Random(poison)
    records = [made(generator, "feature_usage") for _ in range(5_000)]
    bad = set(generator.sample(range(5_000), poison))
    await stack.create_topic()
    await stack.send(
        [
            (
                record.partition(),
                record.value.replace(b'"export"', b'"ex\\u0000port"') if index in bad else record.value,
            )
            for index, record in enumerate(records)
        ]
    )
    stack.consumer()
    await stack.settled(5_000)
    rows = await stack.rows("feature_usage")
    assert set(rows) == {record.id for index, record in enumerate(records) if index not in bad}
    letters = await stack.fetch("SELECT reason, value FROM ingest.dead_letters")
    assert [letter["reason"] for letter in letters] == ["database_refused"] * poison
    assert {json.loads(letter["value"])["id"] for letter in letters} == {str(records[index].id) for index in bad}


@pytest.mark.parametrize(
    "is_writing", [pytest.param(False, id="idle", marks=pytest.mark.long), pytest.param(True, id="within_a_batch")]
)
async def test_sigterm_ends_the_consumer_in_time_with_both_servers_frozen(
    is_writing: bool, stack: Stack, own_postgres: PostgresServer, own_kafka: KafkaBroker, migrate: Migrate
) -> None:
    """An orchestrator kills after its grace period; a clean end must not depend on anybody's answer."""
    stack.kafka = own_kafka
    stack.database_url = await migrate(own_postgres)
    await stack.create_topic()
    consumer = stack.consumer()
    record = made(random.Random(9))
    await stack.send([(record.partition(), record.value)])
    await stack.settled(1)
    own_postgres.pause()
    if is_writing:
        decoded = await asyncio.to_thread(metric, consumer, 'consumer_stage_seconds_count{stage="decode"}')
        await stack.send([(record.partition(), record.value)] * 50)

        async def is_at_it() -> bool:
            now = await asyncio.to_thread(metric, consumer, 'consumer_stage_seconds_count{stage="decode"}')
            return now > decoded

        await eventually(is_at_it, 60, "a batch on its way into the frozen database")
        await asyncio.sleep(1)  # bounded: from the decoding to the write
    own_kafka.pause()
    pid = consumer.pid
    assert pid
    os.kill(pid, signal.SIGTERM)

    async def has_ended() -> bool:
        return not consumer.is_running

    await eventually(has_ended, 15, "the consumer ended")


async def test_a_watched_status_goes_on_when_postgres_comes_back(
    stack: Stack, own_postgres: PostgresServer, migrate: Migrate
) -> None:
    """It ended at the first silence, just when somebody was watching for the end of it."""
    stack.database_url = await migrate(own_postgres)
    await stack.create_topic()
    stack.consumer()
    watching = await started(stack, "status", "--watch")
    assert watching.stdout is not None
    assert watching.stderr is not None
    try:
        async with asyncio.timeout(90):
            await watching.stdout.readuntil(b"no dead letters")
            await asyncio.to_thread(own_postgres.stop)
            await watching.stderr.readuntil(b"not reached: ")
            await asyncio.to_thread(own_postgres.start)
            for _ in range(3):  # what was printed before is read, too
                await watching.stdout.readuntil(b"no dead letters")
        assert watching.returncode is None
    finally:
        watching.send_signal(signal.SIGINT)
        await watching.communicate()
