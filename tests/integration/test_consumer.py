"""Records -> rows, on a real Kafka and a real Postgres: every record one fate, every row exactly once."""

import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psutil
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from support.command import answered
from support.records import Made, made
from support.stack import TABLES, Stack, eventually


def in_order(records: list[Made]) -> list[tuple[int, bytes | None]]:
    return [(record.partition(), record.value) for record in records]


async def assert_rows_are(stack: Stack, expected: list[Made]) -> None:
    """Exactly these rows, column by column; of several records with one id the last."""
    rows = {table: await stack.rows(table) for table in TABLES}
    latest = {record.id: record for record in expected}
    assert sum(map(len, rows.values())) == len(latest)
    wrong = [record for record in latest.values() if not record.matches(rows[record.table][record.id])]
    assert wrong == []


def is_balanced(line: dict[str, Any]) -> bool:
    fates = ("stored", "duplicates", "dead_lettered", "suppressed", "expired", "skipped")
    return bool(line["next_offset"] - line["first_offset"] == sum(line[fate] for fate in fates))


async def test_each_record_becomes_the_row_it_describes(stack: Stack) -> None:
    """A wrong column in analytics is worse than a missing row: nobody notices it."""
    expected = [made(random.Random(1 + index)) for index in range(3_000)]
    await stack.create_topic()
    await stack.send(in_order(expected))
    stack.consumer()
    await stack.settled(3_000)
    await assert_rows_are(stack, expected)
    assert all(map(is_balanced, await stack.ledger()))


async def test_rows_that_are_written_leave_no_memory_behind(stack: Stack) -> None:
    """asyncpg ties what it copies into a cycle, and the collector seldom runs: five million rows took 2 GiB."""
    generator = random.Random(29)
    await stack.create_topic()
    consumer = stack.consumer()
    assert consumer.pid

    async def settle(rounds: range) -> int:
        for number in rounds:
            records = [made(generator, "feature_usage") for _ in range(2_000)]
            await stack.send(in_order([replace(record, metadata={"text": "x" * 8_000}) for record in records]))
            await stack.settled(2_000 * (number + 1))
        return int(psutil.Process(consumer.pid).memory_info().rss) // 2**20

    before_mib = await settle(range(1))
    after_mib = await settle(range(1, 8))  # 112 MB of rows
    assert after_mib < before_mib + 60


async def test_a_record_that_comes_five_times_shuffled_is_one_row(stack: Stack) -> None:
    """Collectors send again what they are not sure of; counts must not grow by it."""
    generator = random.Random(7)
    expected = [made(generator) for _ in range(500)]
    again = expected * 5
    generator.shuffle(again)
    await stack.create_topic()
    stack.consumer(CONSUMER_BATCH_ROWS="700")
    await stack.send(in_order(again))
    await stack.settled(2_500)
    await assert_rows_are(stack, expected)
    ledger = await stack.ledger()
    assert all(map(is_balanced, ledger))
    assert sum(line["stored"] for line in ledger) == 500
    assert sum(line["duplicates"] for line in ledger) == 2_000


async def test_of_two_versions_of_a_span_the_later_one_wins(stack: Stack) -> None:
    """A span that is sent again with more in it must not be overwritten by its own past, in a batch or across."""
    generator = random.Random(3)
    first = made(generator, "feature_usage", action="created")
    second = Made(first.table, first.id, first.timestamp_us, {**first.columns, "action": "deleted"})
    await stack.create_topic()
    await stack.send(in_order([first, second]))
    stack.consumer()
    await stack.settled(2)
    await assert_rows_are(stack, [second])
    await stack.send(in_order([first]))
    await stack.settled(3)
    await assert_rows_are(stack, [first])


async def test_a_row_that_is_there_already_among_fresh_ones_doubles_nothing_and_costs_none(stack: Stack) -> None:
    """Fresh rows go the fast way, all or none; one repetition among them must not take the others along."""
    generator = random.Random(13)
    old = made(generator, "feature_usage")
    fresh = [made(generator, "feature_usage") for _ in range(300)]
    repeated = Made(old.table, old.id, old.timestamp_us, {**old.columns, "action": "again"})
    more = [made(generator, "feature_usage") for _ in range(200)]
    await stack.create_topic()
    stack.consumer()
    await stack.send(in_order([old]))
    await stack.settled(1)
    await stack.send(in_order([*fresh[:150], repeated, *fresh[150:], fresh[0]]))
    await stack.settled(303)
    await stack.send(in_order(more))
    await stack.settled(503)
    await assert_rows_are(stack, [*fresh, repeated, *more])
    ledger = await stack.ledger()
    assert (sum(line["stored"] for line in ledger), sum(line["duplicates"] for line in ledger)) == (501, 2)


async def test_a_later_version_without_an_id_keeps_the_one_that_an_earlier_version_told(stack: Stack) -> None:
    """A half of a trace that is sent again without its root names no user; the row must not forget them."""
    generator = random.Random(23)
    pairs = []
    for table in TABLES:
        for _ in range(4):
            full = made(generator, table, user_id="a" * 16, organization_id="b" * 16)
            full = Made(table, full.id, full.timestamp_us, {**full.columns, "deployment_type": "first"})
            bare = {**full.columns, "organization_id": None, "deployment_type": "second"}
            bare |= {} if table == "user_activity" else {"user_id": None}
            bare |= {"session_id": None} if table == "user_activity" else {}
            pairs.append((full, Made(table, full.id, full.timestamp_us, bare)))
    pairs = [
        (Made(full.table, full.id, full.timestamp_us, full.columns | session), bare)
        for full, bare in pairs
        for session in ({"session_id": "s-9"} if full.table == "user_activity" else {},)
    ]
    kept = ("user_id", "organization_id", "session_id")
    expected = [
        Made(
            bare.table,
            bare.id,
            bare.timestamp_us,
            bare.columns | {name: full.columns[name] for name in kept if name in full.columns},
        )
        for full, bare in pairs
    ]
    await stack.create_topic()
    stack.consumer()
    for full, _ in pairs[::2]:  # across batches
        await stack.send(in_order([full]))
    await stack.settled(6)
    await stack.send(in_order([bare for _, bare in pairs[::2]]))
    await stack.send(in_order([each for pair in pairs[1::2] for each in pair]))  # within one
    await stack.settled(24)
    await assert_rows_are(stack, expected)
    assert all(map(is_balanced, await stack.ledger()))
    await answered(stack, "rewind", "--to-start")
    await stack.settled(24)
    await assert_rows_are(stack, expected)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap_servers)
    places = {full.partition() for full, _ in pairs[::2]}
    await admin.start()  # the first versions of the first half are gone from the topic
    await admin.delete_records({TopicPartition(stack.topic, place): RecordsToDelete(1) for place in places})
    await admin.close()
    done = await answered(stack, "rebuild", "--rate", "0")
    assert (done["swapped"], done["differing"]) == (True, [])
    await assert_rows_are(stack, expected)


BAD_RECORDS: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"\xff\xfe", "not_json"),
    (b'{"schema_version":1,', "not_json"),
    (b"[]", "invalid_fields"),
    (b'{"schema_version":1,"table":"page_views"}', "unknown_type"),
    (b'{"schema_version":3,"table":"feature_usage"}', "newer_schema"),
    (b'{"schema_version":1,"table":"feature_usage"}', "invalid_fields"),
]


def changed(record: Made, **fields: Any) -> bytes:
    """The record with some columns set to what they must not be."""
    return Made(record.table, record.id, record.timestamp_us, {**record.columns, **fields}, record.metadata).value


async def test_bad_records_become_dead_letters_with_their_reason_and_cost_no_neighbour(stack: Stack) -> None:
    """One sender's bug must neither stop the partition nor vanish: the record is kept whole, with why."""
    generator = random.Random(11)
    good = [made(generator) for _ in range(200)]
    bad = [
        *BAD_RECORDS,
        (changed(made(generator, "endpoint_usage"), status_code=10**12), "invalid_fields"),
        (changed(made(generator, "feature_usage"), feature_name="x" * 101), "invalid_fields"),
        (changed(made(generator, "feature_usage"), feature_name=7), "invalid_fields"),
        (changed(made(generator, "feature_usage"), action="nul\0"), "database_refused"),
    ]
    records = in_order(good)
    for position, (value, _) in enumerate(bad):
        records.insert(position * 17, (position % 4, value))
    records.insert(100, (2, None))
    await stack.create_topic()
    await stack.send(records, headers=[("event_type", b"\x00\xff")])
    stack.consumer()
    await stack.settled(len(records))
    await assert_rows_are(stack, good)
    letters = await stack.fetch("SELECT value, reason, headers, key FROM ingest.dead_letters")
    assert sorted((row["value"], row["reason"]) for row in letters) == sorted(bad)
    assert {row["headers"] for row in letters} == {'[["event_type", "AP8="]]'}
    assert {row["key"] for row in letters} == {b"key"}
    ledger = await stack.ledger()
    assert all(map(is_balanced, ledger))
    assert sum(line["skipped"] for line in ledger) == 1  # the tombstone
    assert sum(line["dead_lettered"] for line in ledger) == len(bad)


async def test_a_record_time_that_no_timestamp_can_hold_stops_nobody(stack: Stack) -> None:
    """Brokers let it pass unless told otherwise: a producer's microseconds taken for milliseconds."""
    far = {"message.timestamp.after.max.ms": str(2**63 - 1)}
    good = made(random.Random(17), "feature_usage")
    await stack.create_topic(partitions=1, **far)
    await stack.send([(0, b"{}"), (0, good.value)], timestamp_ms=10**15)
    await stack.fetch("INSERT INTO ingest.suppressions VALUES ('user', 'x', now())")
    stack.consumer()
    await stack.settled(2)
    await assert_rows_are(stack, [good])
    assert await stack.fetch("SELECT reason, record_time FROM ingest.dead_letters") == [
        {"reason": "unknown_type", "record_time": None}
    ]


async def test_a_row_that_the_database_refuses_does_not_take_its_older_version_along(stack: Stack) -> None:
    """Of two versions in one batch the later is written; when that one is refused, the first must stand."""
    good = made(random.Random(5), "feature_usage")
    await stack.create_topic()
    await stack.send([(good.partition(), good.value), (good.partition(), changed(good, action="\0"))])
    stack.consumer()
    await stack.settled(2)
    await assert_rows_are(stack, [good])


async def test_positions_come_from_the_ledger_and_never_from_the_group(stack: Stack) -> None:
    """The group's offsets are for lag tools: whoever resets them must neither lose nor double a row."""
    expected = [made(random.Random(100 + index)) for index in range(400)]
    await stack.create_topic()
    await stack.send(in_order(expected[:200]))
    first = stack.consumer()
    await stack.settled(200)

    async def is_told() -> bool:
        return sum((await stack.group_offsets()).values()) == 200

    await eventually(is_told, 60, "the group told")
    first.stop()
    await stack.set_group_offsets(dict.fromkeys(range(4), 0))
    await stack.send(in_order(expected[200:]))
    stack.consumer()
    await stack.settled(400)
    await assert_rows_are(stack, expected)
    assert sum(line["duplicates"] for line in await stack.ledger()) == 0


async def test_a_database_that_was_emptied_refills_itself_from_the_topic(stack: Stack) -> None:
    """A restored backup or a fresh database is behind the topic; the ledger in it says by how much."""
    expected = [made(random.Random(900 + index)) for index in range(300)]
    await stack.create_topic()
    await stack.send(in_order(expected))
    stack.consumer()
    await stack.settled(300)
    await stack.fetch("TRUNCATE user_activity, endpoint_usage, feature_usage, ingest.partition_offsets")
    await stack.settled(300)
    await assert_rows_are(stack, expected)


async def test_whoever_sees_the_tables_alone_is_told_how_many_records_wait(stack: Stack) -> None:
    """A quiet topic is complete until now, and a consumer that cannot write leaves its records waiting."""
    await stack.create_topic(partitions=2)
    stack.consumer()
    await stack.send([(index % 2, made(random.Random(index)).value) for index in range(20)])
    await stack.settled(20)
    settled_at = datetime.now(UTC)

    async def freshness() -> dict[str, Any]:
        return (await stack.fetch("SELECT waiting, complete_until FROM analytics.freshness()"))[0]

    async def is_complete() -> bool:
        found = await freshness()
        return bool(found["waiting"] == 0 and found["complete_until"] > settled_at)

    await eventually(is_complete, 40, "complete until later than the last record")
    await stack.fetch("ALTER TABLE user_activity RENAME TO away")
    await stack.send([(index % 2, made(random.Random(index)).value) for index in range(40)])

    async def waits() -> bool:
        return bool((await freshness())["waiting"])

    await eventually(waits, 40, "records that wait")
