"""The slowest requests that the limits allow are answered, and published once."""

import asyncio
import uuid
from collections import Counter
from pathlib import Path

import pytest

from deploy.local.kafka import KafkaBroker
from support.encoding import SERVER, request_bytes, resource_bytes, span_bytes
from support.receiver import AS_SHIPPED, Receiver, export, records_of

COLLECTOR_BATCH_SPANS = 8_192  # what the shipped Collector sends at once
ATTEMPTS_MAX = 30


def batch(spans: int, *, path: str) -> bytes:
    """Server spans whose every value is new, as one sender's batch."""
    made = []
    for number in range(spans):
        attributes = {
            "http.request.method": "GET",
            "url.path": path.format(number),
            "http.response.status_code": 200,
            "user.id": uuid.uuid4().hex,
            "session.id": uuid.uuid4().hex,
            "metadata.note": f"note {uuid.uuid4().hex}",
        }
        made.append(span_bytes(attributes, kind=SERVER, span_id=(number + 1).to_bytes(8, "big")))
    return request_bytes((resource_bytes({"service.name": "shop"}), made))


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
        assert attempts > 2
        assert await receiver.metric("receiver_requests_unfinished_total") == attempts - 1
    finally:
        receiver.kill()


async def check_published_once(kafka: KafkaBroker, receiver: Receiver, body: bytes, spans: int) -> int:
    """Sends the request as an exporter does, until it is answered OK. How many attempts that took."""
    codes: Counter[str] = Counter()
    async with receiver.channel() as channel:
        while not codes["OK"]:
            assert codes.total() < ATTEMPTS_MAX, codes
            codes[(await export(channel, body)).code] += 1
            await asyncio.sleep(0)
    assert set(codes) <= {"OK", "UNAVAILABLE"}
    records = [record.key for record in await records_of(kafka, receiver.topic)]
    assert len(records) == spans, codes  # every event once, although there were several attempts
    assert len(set(records)) == spans
    return codes.total()
