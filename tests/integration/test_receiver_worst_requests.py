"""The slowest requests that the limits allow are answered, and published once."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from deploy.local.kafka import KafkaBroker
from shared.engine import is_native_built
from support.encoding import batch
from support.http import post
from support.receiver import AS_SHIPPED, Receiver, export, records_of

COLLECTOR_BATCH_SPANS = 8_192  # what the shipped Collector sends at once
MEBIBYTE = 1024 * 1024
ATTEMPTS_MAX = 100  # a machine under load translates little in an attempt
LONG_ATTEMPTS_MAX = 20  # a quiet core needs some 50 s of work, which is four of them


@pytest.mark.parametrize("path", ["/orders/{}/items", "/caf%C3%A9/{}/%7Euser"])
async def test_a_collectors_batch_of_new_values_is_answered_as_shipped(
    kafka: KafkaBroker, tmp_path: Path, path: str
) -> None:
    """Refused each time, a batch is sent again until the sender drops it."""
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, **AS_SHIPPED).start()
    try:
        await receiver.ready()
        await check_published_once(kafka, receiver, batch(COLLECTOR_BATCH_SPANS, path=path), COLLECTOR_BATCH_SPANS)
    finally:
        receiver.kill()


async def test_a_request_that_needs_several_attempts_goes_on_where_the_last_one_came(
    kafka: KafkaBroker, tmp_path: Path
) -> None:
    """Each attempt has a fraction of the time that the whole request takes. Begun anew, none would ever succeed."""
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, ENGINE="python", PUBLISH_TIMEOUT_MS=1500).start()
    try:
        await receiver.ready()
        attempts = await check_published_once(kafka, receiver, batch(30_000, path="/caf%C3%A9/{}"), 30_000)
        assert attempts > 1
        assert await receiver.metric("receiver_requests_unfinished_total") == attempts - 1
        assert await receiver.metric("receiver_held_bytes", holder="unfinished") == 0
    finally:
        receiver.kill()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["python", *(["native"] if is_native_built() else [])])
async def test_the_largest_request_of_the_slowest_spans_is_answered_within_a_few_attempts(
    kafka: KafkaBroker, tmp_path: Path, engine: str
) -> None:
    """Both limits reached, every value new, and every span left to the reference: the worst that is admitted."""
    spans = 100_000
    body = batch(spans, path="/caf%C3%A9/{}", filler=" and so on" * 35)
    assert 61 * MEBIBYTE < len(body) <= 64 * MEBIBYTE
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, **AS_SHIPPED, ENGINE=engine).start()
    try:
        await receiver.ready()
        attempts = await check_published_once(kafka, receiver, body, spans, waits=True)
        assert attempts <= LONG_ATTEMPTS_MAX
    finally:
        receiver.kill()


async def test_a_request_whose_records_are_too_much_is_refused_for_good(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Told to try again, its sender would, for ever. A control character takes six bytes of a record."""
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, MAX_REQUEST_BYTES=MEBIBYTE).start()
    body = batch(800, path="/orders/{}", filler="\1" * 900)
    assert len(body) < MEBIBYTE
    try:
        await receiver.ready()
        async with receiver.channel() as channel:
            assert (await export(channel, body)).code == "RESOURCE_EXHAUSTED"
        answer = await post(receiver.http_port, body)
        assert answer.status == 413
        assert await receiver.metric("receiver_requests_refused_total", cause="records") == 2
        await receiver.idle()
        assert await records_of(kafka, receiver.topic) == []
    finally:
        receiver.kill()


async def check_published_once(
    kafka: KafkaBroker, receiver: Receiver, body: bytes, spans: int, *, waits: bool = False
) -> int:
    """Sends the request as an exporter does, until it is answered OK. How many attempts that took.

    `waits`: as long as a Collector does.
    """
    codes: Counter[str] = Counter()
    async with receiver.channel() as channel:
        while not codes["OK"]:
            assert codes.total() < ATTEMPTS_MAX, codes
            answer = await export(channel, body)
            codes[answer.code] += 1
            assert set(codes) <= {"OK", "UNAVAILABLE"}, answer  # another answer would come again each time
            if answer.retry_s is not None and waits:
                await asyncio.sleep(max(answer.retry_s, min(30.0, 5.0 * 1.5 ** (codes.total() - 1))))
    records = [record.key for record in await records_of(kafka, receiver.topic)]
    assert len(records) == spans, codes  # every event once, although there were several attempts
    assert len(set(records)) == spans
    return codes.total()
