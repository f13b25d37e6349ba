"""What the gauges say is true of the process, and none of them freezes."""

import random
import time
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from deploy.local.kafka import KafkaBroker
from deploy.local.stack import ModuleServer
from support.receiver import Receiver
from support.records import made
from support.stack import Stack, eventually


def metrics(consumer: ModuleServer) -> dict[tuple[str, str], float]:
    """(name, table) -> value; the table is empty where there is none."""
    url = f"http://127.0.0.1:{consumer.port_of('CONSUMER_METRICS_PORT')}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {(s.name, s.labels.get("table", "")): s.value for family in families for s in family.samples}


async def test_the_age_of_the_newest_row_is_that_of_its_receipt_and_grows_by_itself(stack: Stack) -> None:
    """Analysts ask it of a table: a number that stands still looks as if all were well."""
    await stack.create_topic(partitions=1)
    generator, started_at = random.Random(1), time.monotonic()
    consumer = stack.consumer()

    async def send(age_s: float) -> None:
        record = made(generator, "feature_usage")
        await stack.send([(0, record.value)], timestamp_ms=int((time.time() - age_s) * 1000))

    def ages() -> dict[str, float]:
        return {
            table: age for (name, table), age in metrics(consumer).items() if name.endswith("newest_row_age_seconds")
        }

    assert set(ages()) == {"user_activity", "endpoint_usage", "feature_usage", "model_usage"}
    await send(-50)  # a receiver whose clock is ahead: rows are never younger than nothing
    await stack.settled(1)
    assert ages()["feature_usage"] == 0
    await send(-0.5)
    await send(3600)  # a replay of something old makes nothing newer, and nothing older
    await stack.settled(3)
    first = ages()
    assert first["feature_usage"] == 0
    assert 0 < first["endpoint_usage"] <= time.monotonic() - started_at + 5  # none came: since the start

    async def has_grown() -> bool:
        return ages()["endpoint_usage"] > first["endpoint_usage"] + 1

    await eventually(has_grown, 20, "older, with nothing to do")


async def test_connections_and_writers_are_counted_as_the_database_counts_them(stack: Stack) -> None:
    """max_connections is shared by all consumers; the arithmetic of docs/scaling.md rests on it."""
    await stack.create_topic()
    consumer = stack.consumer(CONSUMER_WRITERS="3")

    async def agree() -> bool:
        ours = "datname = current_database() AND application_name ~ '^telemetry-'"
        found = await stack.fetch(f"SELECT count(*) FROM pg_stat_activity WHERE {ours}")
        says = metrics(consumer)
        return found[0]["count"] == says["consumer_database_connections", ""] == 5  # three writers, the watch, erasures

    await eventually(agree, 30, "five connections")
    assert metrics(consumer)["consumer_writers", ""] == 3


async def test_bytes_in_flight_stand_beside_what_is_allowed(kafka: KafkaBroker, tmp_path: Path) -> None:
    """A number of bytes alone says nothing: near the limit callers are told to come again."""
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, MAX_INFLIGHT_BYTES=50_000_000).start()
    try:
        await receiver.ready()
        assert await receiver.metric("receiver_inflight_limit_bytes") == 50_000_000
    finally:
        receiver.kill()
