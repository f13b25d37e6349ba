"""The operator's commands, as processes, against a running consumer: what they say is true, what they do stays done."""

import asyncio
import json
import random
import re
import signal
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient

from support.command import answered, command, started
from support.records import Made, made
from support.stack import TABLES, Stack, eventually


async def stored(stack: Stack, count: int, seed: int, **columns: Any) -> list[Made]:
    """So many records sent and settled."""
    generator = random.Random(seed)
    records = [made(generator, **columns) for _ in range(count)]
    await stack.send([(record.partition(), record.value) for record in records])
    return records


async def content(stack: Stack) -> dict[str, Any]:
    """A checksum of each table over all its columns."""
    return {
        table: (
            await stack.fetch(
                f"SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) AS checksum FROM public.{table} AS t"
            )
        )[0]
        for table in TABLES
    }


async def test_status_audit_and_doctor_tell_the_truth_of_a_running_stack(stack: Stack) -> None:
    """Looked at first at night: they must be right, and say nothing that is not."""
    await stack.create_topic()
    await stored(stack, 400, seed=1)
    await stack.send([(0, b"{}")])
    stack.consumer()
    await stack.settled(401)
    status = await answered(stack, "status")
    assert [line["partition"] for line in status["partitions"]] == [0, 1, 2, 3]
    assert sum(line["next_offset"] for line in status["partitions"]) == 401
    assert {line["lag_records"] for line in status["partitions"]} == {0}
    assert status["dead_letters"] == {"unknown_type": 1}
    assert status["rebuilds"] == []
    assert await answered(stack, "audit") == {"ok": True, "findings": []}
    doctor = await answered(stack, "doctor")
    assert doctor["ok"] is True
    assert {"replication", "transport", "hash_key"} <= {finding["check"] for finding in doctor["findings"]}
    assert {finding["severity"] for finding in doctor["findings"]} == {"warning"}


async def test_status_counts_what_waits_and_for_how_long(stack: Stack) -> None:
    """With no consumer running the lag must grow, not freeze."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(2)).value)] * 100)
    first = stack.consumer()
    await stack.settled(100)
    first.stop()
    await stack.send([(0, b"{}")] * 50, timestamp_ms=int(time.time() * 1000) - 60_000)
    [line] = (await answered(stack, "status"))["partitions"]
    assert line["lag_records"] == 50
    assert 60 <= line["lag_seconds"] < 120
    assert 168 * 3600 - 120 < line["retention_left_seconds"] <= 168 * 3600 - 60


async def test_the_lag_metric_knows_how_old_the_oldest_waiting_record_is(stack: Stack) -> None:
    """The alert on retention rests on it: after a weekend of standing still it must say days, and not minutes."""
    await stack.create_topic(1, **{"retention.ms": "-1"})
    day_ms = 86_400_000
    await stack.send([(0, b"{}")] * 50, timestamp_ms=int(time.time() * 1000) - 3 * day_ms)
    consumer = stack.consumer(is_awaited=False, DEAD_LETTER_WINDOW="10", DEAD_LETTER_MAX_RATIO="0")

    def metrics() -> str:
        url = f"http://127.0.0.1:{consumer.port_of('CONSUMER_METRICS_PORT')}/metrics"
        with urllib.request.urlopen(url, timeout=3) as answer:
            text: str = answer.read().decode()
        return text

    async def says_days() -> bool:
        found = re.search(r'consumer_lag_seconds{partition="0"} (\S+)', await asyncio.to_thread(metrics))
        return found is not None and 3 * 86_400 <= float(found.group(1)) < 3 * 86_400 + 600

    await eventually(says_days, 60, "three days of lag")


async def test_the_lag_of_a_quiet_partition_is_the_age_of_what_waits_and_not_of_what_went_before(stack: Stack) -> None:
    """518,446 s was said instead of 43.7, and paged for a retention that was days away."""
    await stack.create_topic(1, **{"retention.ms": "-1"})
    day_ms = 86_400_000
    consumer = stack.consumer()
    await stack.send([(0, made(random.Random(9)).value)], timestamp_ms=int(time.time() * 1000) - 6 * day_ms)
    await stack.settled(1)
    blocking = await asyncpg.connect(stack.database_url)
    await blocking.execute("BEGIN; LOCK TABLE user_activity, endpoint_usage, feature_usage IN ACCESS EXCLUSIVE MODE")
    await stack.send([(0, made(random.Random(10)).value)], timestamp_ms=int(time.time() * 1000) - 40_000)
    url = f"http://127.0.0.1:{consumer.port_of('CONSUMER_METRICS_PORT')}/metrics"

    def told(name: str) -> float:
        with urllib.request.urlopen(url, timeout=3) as answer:
            found = re.search(rf"^{re.escape(name)} (\S+)", answer.read().decode(), re.MULTILINE)
        return float(found.group(1)) if found else -1

    async def says_seconds() -> bool:
        return 40 <= await asyncio.to_thread(told, 'consumer_lag_seconds{partition="0"}') < 100

    await eventually(says_seconds, 30, "some forty seconds of lag")
    await asyncio.sleep(5)  # two more measurements
    assert await says_seconds()
    await blocking.close()
    await stack.settled(2)

    async def is_drained() -> bool:
        return await asyncio.to_thread(told, "consumer_drain_seconds") == 0

    await eventually(is_drained, 20, "nothing left to drain")


async def test_a_server_out_of_reach_is_a_finding_of_doctor_and_audit_and_code_3_elsewhere(stack: Stack) -> None:
    """They are run because something is down."""
    settings = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}
    doctor = await answered(stack, "doctor", code=1, **settings)
    assert [finding["check"] for finding in doctor["findings"] if finding["severity"] == "error"] == ["broker"]
    assert (await answered(stack, "audit", code=1, **settings))["findings"][0]["kind"] == "unreachable"
    assert (await command(stack, "status", **settings))[0] == 3
    assert (await command(stack, "erase", "--user-id", "x", **settings))[0] == 3
    gone = {"ANALYTICS_DATABASE_URL": "postgresql://nobody:secret@127.0.0.1:9/none"}
    doctor = await answered(stack, "doctor", code=1, **gone)
    assert "database" in [finding["check"] for finding in doctor["findings"] if finding["severity"] == "error"]
    assert "secret" not in json.dumps(doctor)
    assert (await command(stack, "status", **gone))[0] == 3


async def test_doctor_says_when_one_more_consumer_would_find_no_connection(stack: Stack) -> None:
    """It is found out by the consumer that scaling up has just started, and by whoever else connects."""
    await stack.create_topic()

    async def connections() -> list[str]:
        found = json.loads((await command(stack, "doctor", "--json", CONSUMER_WRITERS="64"))[1])["findings"]
        return [finding["detail"] for finding in found if finding["check"] == "connections"]

    assert await connections() == []
    others = [await asyncpg.connect(stack.database_url) for _ in range(50)]
    try:
        [detail] = await connections()
        assert "one more consumer needs 66" in detail
    finally:
        for other in others:
            await other.close()


async def test_a_wrong_setting_is_code_2_and_named(stack: Stack) -> None:
    """A typo must not start a process that does something else."""
    code, _, err = await command(stack, "status", CONSUMER_BATCH_ROWS="many")
    assert code == 2
    assert "CONSUMER_BATCH_ROWS" in err
    code, _, err = await command(stack, "health", CONSUMER_METRICS_PORT="0")
    assert (code, "CONSUMER_METRICS_PORT" in err) == (2, True)
    assert (await command(stack, "rewind"))[0] == 2
    assert (await command(stack, "rewind", "--to-offset", "x"))[0] == 2
    assert (await command(stack, "erase"))[0] == 2


async def test_audit_finds_unbalanced_books_a_foreign_column_and_a_line_past_the_end(stack: Stack) -> None:
    """An audit that finds nothing wrong in a broken ledger is worse than none."""
    await stack.create_topic()
    await stored(stack, 100, seed=3)
    consumer = stack.consumer()
    await stack.settled(100)
    consumer.stop()
    await stack.fetch("ALTER TABLE ingest.partition_offsets DROP CONSTRAINT every_offset_has_one_fate")
    await stack.fetch("UPDATE ingest.partition_offsets SET stored = stored + 1 WHERE partition = 0")
    await stack.fetch(
        "UPDATE ingest.partition_offsets SET next_offset = 10^9, first_offset = 10^9 - stored WHERE partition = 1"
    )
    await stack.fetch("ALTER TABLE user_activity ADD COLUMN extra int")
    audit = await answered(stack, "audit", code=1)
    found = {(finding["kind"], finding["partition"]) for finding in audit["findings"]}
    assert found == {("balance", 0), ("bounds", 1), ("schema", None)}


async def test_a_rewind_replays_under_running_consumers_and_nothing_doubles(stack: Stack) -> None:
    """Rows that were deleted or corrupted come back; rows that are right stay as they are."""
    await stack.create_topic()
    await stored(stack, 500, seed=4)
    stack.consumer()
    await stack.settled(500)
    before = await content(stack)
    await stack.fetch("DELETE FROM feature_usage WHERE id < '80000000-0000-0000-0000-000000000000'")
    await stack.fetch("UPDATE endpoint_usage SET endpoint = 'corrupted'")
    done = await answered(stack, "rewind", "--to-start")
    assert sum(each["records"] for each in done["partitions"]) == 500

    async def is_restored() -> bool:
        return await content(stack) == before

    await eventually(is_restored, 60, "the tables as they were")
    await stack.settled(500)
    ledger = await stack.ledger()
    assert {line["epoch"] for line in ledger} == {1}
    assert sum(line["stored"] + line["duplicates"] for line in ledger) == 500
    history = await stack.fetch("SELECT reason, stored FROM ingest.ledger_history")
    assert sum(line["stored"] for line in history) == 500
    assert {line["reason"] for line in history} == {"rewind"}
    assert (await answered(stack, "audit"))["ok"]


async def test_a_rewind_by_time_and_by_offset_reads_from_there(stack: Stack) -> None:
    """Replaying a day must not mean replaying a week."""
    await stack.create_topic(partitions=1)
    old_ms = int(time.time() * 1000) - 3_600_000
    generator = random.Random(5)
    await stack.send([(0, made(generator).value) for _ in range(100)], timestamp_ms=old_ms)
    await stack.send([(0, made(generator).value) for _ in range(50)])
    consumer = stack.consumer()
    await stack.settled(150)
    consumer.stop()
    since = (datetime.now(UTC) - timedelta(minutes=30)).isoformat()
    assert (await answered(stack, "rewind", "--to-time", since, "--dry-run"))["partitions"][0]["to_offset"] == 100
    assert (await stack.ledger())[0]["next_offset"] == 150
    await answered(stack, "rewind", "--to-time", since)
    assert (await stack.ledger())[0]["next_offset"] == 100
    await answered(stack, "rewind", "--to-offset", "0:7")
    assert (await stack.ledger())[0]["next_offset"] == 7
    assert (await command(stack, "rewind", "--to-offset", "0:8"))[0] == 1  # never ahead
    assert (await command(stack, "rewind", "--to-offset", "0:999"))[0] == 1
    assert (await command(stack, "rewind", "--to-offset", "9:1"))[0] == 2


async def test_a_recreated_topic_is_adopted_only_when_told(stack: Stack) -> None:
    """Adoption is a person's decision, and one command."""
    await stack.create_topic(partitions=2)
    await stack.send([(partition, made(random.Random(partition)).value) for partition in (0, 1)])
    consumer = stack.consumer()
    await stack.settled(2)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap_servers)
    await admin.start()
    await admin.delete_topics([stack.topic])
    await admin.close()

    async def is_created() -> bool:
        try:
            await stack.create_topic(partitions=1)
        except AssertionError:  # the deletion is under way
            return False
        return True

    await eventually(is_created, 60, "the topic made anew")
    expected = [made(random.Random(90 + index)) for index in range(20)]
    await stack.send([(0, record.value) for record in expected])
    assert (await command(stack, "rewind", "--to-start"))[0] == 1
    doctor = await answered(stack, "doctor", code=1)
    assert any("--accept-new-topic" in finding["remedy"] for finding in doctor["findings"])
    await answered(stack, "rewind", "--to-start", "--accept-new-topic")

    async def are_stored() -> bool:
        return await stack.row_count() == 22

    await eventually(are_stored, 60, "the new topic's records")
    assert consumer.is_running
    assert [line["partition"] for line in await stack.ledger()] == [0]


async def test_find_says_where_a_span_is(stack: Stack) -> None:
    """The commonest question of a user of this product."""
    await stack.create_topic(partitions=1)
    record = made(random.Random(6), "feature_usage")
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    known = {"schema_version": 1, "table": "feature_usage", "id": "e2681862-d99e-887f-8991-ca7edf58cbce"}
    value = json.dumps({**json.loads(record.value), **known}).encode()
    assert (await answered(stack, "find", trace, span, code=1))["state"] == "not_seen"
    await stack.send([(0, value)], key=known["id"].encode())
    assert (await answered(stack, "find", trace, span))["state"] == "waiting"
    stack.consumer()
    await stack.settled(1)
    found = await answered(stack, "find", trace, span)
    assert (found["id"], found["state"], found["detail"]["table"]) == (known["id"], "row", "feature_usage")
    assert found["detail"]["event_metadata"] == record.metadata
    assert f"event_metadata: {json.dumps(record.metadata)}" in (await command(stack, "find", trace, span))[1]
    user = record.columns["user_id"]
    await answered(stack, "erase", "--user-hash", user)
    assert (await answered(stack, "find", trace, span))["state"] == "suppressed"
    await stack.send([(0, value[:-1])], key=known["id"].encode())
    await stack.settled(2)
    assert (await answered(stack, "find", trace, span))["state"] == "dead_letter"
    assert (await command(stack, "find", "xyz", span))[0] == 2


async def test_dead_letters_are_listed_shown_and_redriven(stack: Stack) -> None:
    """A newer schema that an old consumer refused must not need a replay once the consumer is new."""
    await stack.create_topic(partitions=1)
    generator = random.Random(7)
    good = [made(generator, "feature_usage") for _ in range(3)]
    newer = [re.sub(rb'"schema_version":.', b'"schema_version":3', record.value) for record in good]
    await stack.send([(0, value) for value in [*newer, b"\xff", good[0].value]])
    stack.consumer()
    await stack.settled(5)
    listed = (await answered(stack, "dead-letters", "list", "--reason", "newer_schema"))["dead_letters"]
    assert [each["offset"] for each in listed] == [0, 1, 2]
    [shown] = (await answered(stack, "dead-letters", "show", "0:3"))["dead_letters"]
    assert (shown["reason"], shown["value"]) == ("not_json", "base64:/w==")
    assert (await command(stack, "dead-letters", "show", "0:4"))[0] == 1
    [shown] = (await answered(stack, "dead-letters", "show", "0:0"))["dead_letters"]
    assert (shown["value"], shown["headers"]) == (newer[0].decode(), [])
    _, text, _ = await command(stack, "dead-letters", "show", "0:0")
    assert f"value: {shown['value']}\n" in text
    # What an upgrade of the consumer does to the old letters is done to the letters here.
    await stack.fetch(
        "UPDATE ingest.dead_letters SET value = convert_to(replace(convert_from(value, 'UTF8'), "
        "'\"schema_version\":3', '\"schema_version\":2'), 'UTF8') WHERE reason = 'newer_schema'"
    )
    dry = await answered(stack, "dead-letters", "redrive", "--dry-run", code=1)
    assert (dry["stored"], dry["already_there"], dry["still"]) == (2, 1, {"not_json": 1})
    assert await stack.row_count() == 1
    done = await answered(stack, "dead-letters", "redrive", "--rate", "100", code=1)
    assert (done["stored"], done["already_there"], done["still"]) == (2, 1, {"not_json": 1})
    rows = await stack.rows("feature_usage")
    assert all(record.matches(rows[record.id]) for record in good)
    marked = await stack.fetch('SELECT "offset" FROM ingest.dead_letters WHERE redriven_at IS NOT NULL ORDER BY 1')
    assert [row["offset"] for row in marked] == [0, 1, 2]
    assert (await answered(stack, "dead-letters", "redrive", code=1))["stored"] == 0


async def test_retention_deletes_old_rows_and_a_replay_does_not_bring_them_back(stack: Stack) -> None:
    """A promise to delete after 90 days is broken by a replay that forgets it."""
    await stack.create_topic(partitions=1)
    generator = random.Random(8)
    now_us = time.time_ns() // 1000
    old = [made(generator) for _ in range(30)]
    old = [Made(each.table, each.id, now_us - 100 * 86_400_000_000, each.columns) for each in old]
    young = [
        Made(each.table, each.id, now_us - 3_600_000_000, each.columns) for each in (made(generator) for _ in range(20))
    ]
    await stack.send([(0, record.value) for record in old + young])
    consumer = stack.consumer()
    await stack.settled(50)
    consumer.stop()
    kept = {"RETENTION_DAYS": "90"}
    assert sum((await answered(stack, "retain", "--dry-run", **kept))["deleted"].values()) == 30
    assert await stack.row_count() == 50
    assert sum((await answered(stack, "retain", **kept))["deleted"].values()) == 30
    await answered(stack, "rewind", "--to-start")
    stack.consumer(RETENTION_DAYS="90")
    await stack.settled(50)
    [line] = await stack.ledger()
    assert (await stack.row_count(), line["expired"], line["duplicates"]) == (20, 30, 20)
    assert (await command(stack, "retain"))[0] == 2


async def test_an_export_is_all_that_is_stored_of_a_subject_and_nothing_of_others(stack: Stack) -> None:
    """An access request is answered by it."""
    await stack.create_topic()
    mine = "73475cb40a568e8d"  # the hash of 42
    theirs = await stored(stack, 50, seed=9)
    own = await stored(stack, 20, seed=10, user_id=mine)
    stack.consumer()
    await stack.settled(70)
    code, out, _ = await command(stack, "export", "--user-id", "-", stdin="42\n")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["id"] for line in lines} == {str(record.id) for record in own}
    assert not {str(record.id) for record in theirs} & {line["id"] for line in lines}
    assert all(line["event_metadata"] is not None and line["table"] in TABLES for line in lines)


async def test_a_watched_status_tells_owner_rate_time_left_and_what_stops_it(stack: Stack) -> None:
    """While a backlog drains, or does not, the question is how long still, who does it, and what is in its way."""
    await stack.create_topic(partitions=2)
    consumer = stack.consumer()
    records = [(index % 2, made(random.Random(index)).value) for index in range(100)]
    await stack.send(records)
    await stack.settled(100)
    port = str(consumer.port_of("CONSUMER_METRICS_PORT"))
    watching = await started(stack, "status", "--watch", CONSUMER_METRICS_PORT=port)
    seen = b""

    async def more() -> bytes:
        assert watching.stdout is not None
        assert watching.stderr is not None
        text = await asyncio.wait_for(watching.stdout.read(4096), 30)
        assert text, await watching.stderr.read()  # it has ended
        return text

    while seen.count(b"owner") < 2:
        seen += await more()
    assert seen.count(b"127.0.0.1") >= 2
    assert b"consumer on" not in seen
    await stack.fetch("ALTER TABLE user_activity RENAME TO away")
    await stack.send(records)
    deadline = time.monotonic() + 60
    while b"consumer on 127.0.0.1: {" not in seen or b"42P01" not in seen:
        assert time.monotonic() < deadline, seen[-2000:].decode()
        seen += await more()
    watching.send_signal(signal.SIGINT)
    _, err = await watching.communicate()
    assert (watching.returncode, err) == (0, b"")
