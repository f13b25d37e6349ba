"""Every row of the table of replies, asked over a real connection."""

import asyncio
import gzip
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from deploy.local.kafka import KafkaBroker
from support.otlp import Feature, empty_spans, event_id, features, request, span
from support.receiver import EXPORT, PARTITIONS, ROOT, Receiver, export, records_of, until

NOBODY = "127.0.0.1:1"  # no broker listens there
MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def receiver(kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """One with small limits, for all tests here."""
    made = Receiver(
        kafka.bootstrap_servers,
        tmp_path_factory.mktemp("replies"),
        MAX_REQUEST_BYTES=MEBIBYTE,
        MAX_SPANS_PER_REQUEST=1000,
    ).start()
    asyncio.run(made.ready())
    yield made
    made.kill()


@pytest.fixture
async def channel(receiver: Receiver) -> AsyncIterator[grpc.aio.Channel]:
    async with receiver.channel() as made:
        yield made


@pytest.fixture
def unconnected(tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that has never reached a broker."""
    made = Receiver(NOBODY, tmp_path).start()
    yield made
    made.kill()


async def published(kafka: KafkaBroker, receiver: Receiver, sent: list[Feature]) -> list[Any]:
    """The records of these spans, in the topic's order."""
    keys = {str(feature.id).encode() for feature in sent}
    return [record for record in await records_of(kafka, receiver.topic) if record.key in keys]


async def test_ok_means_that_the_records_are_in_the_topic(
    kafka: KafkaBroker, receiver: Receiver, channel: grpc.aio.Channel
) -> None:
    """The promise. Key, partition, headers and time are what the consumer and every replay lean on."""
    sent = [*features(20), *features(20, user=None, action=None), *features(20, filler="ä\u2028€" * 20)]
    before_ms = time.time_ns() // 1_000_000
    answer = await export(channel, request(sent))
    after_ms = time.time_ns() // 1_000_000
    assert (answer.code, answer.has_partial) == ("OK", False)
    records = {record.key.decode(): record for record in await published(kafka, receiver, sent)}
    assert len(records) == len(sent)
    for feature in sent:
        record = records[str(feature.id)]
        assert json.loads(record.value) == feature.value()
        assert record.partition == int.from_bytes(feature.id.bytes[-4:], "big") % PARTITIONS
        assert dict(record.headers) == {"event_type": b"feature_usage", "schema_version": b"2"}
        assert record.timestamp_type == 0
        assert before_ms <= record.timestamp <= after_ms, "the record's time is ours and never the span's"


async def test_a_request_of_nothing_is_ok(channel: grpc.aio.Channel) -> None:
    """OTLP: an empty request is a success."""
    for body in (b"", request([])):
        answer = await export(channel, body)
        assert (answer.code, answer.has_partial) == ("OK", False)


async def test_ignored_spans_are_ok_and_counted(
    kafka: KafkaBroker, receiver: Receiver, channel: grpc.aio.Channel
) -> None:
    """A Collector forwards whole traces; a reply that calls most of them rejected would be noise."""
    before = await receiver.metric("receiver_spans_ignored_total", reason="not_product_event")
    (event,) = features(1)
    database_calls = [span(bytes([n]) * 16, bytes([n]) * 8, {"db.system": "postgresql"}) for n in range(1, 8)]
    answer = await export(channel, request([*database_calls, event]))
    assert (answer.code, answer.has_partial) == ("OK", False)
    assert len(await published(kafka, receiver, [event])) == 1
    assert await receiver.metric("receiver_spans_ignored_total", reason="not_product_event") == before + 7


async def test_rejected_spans_are_counted_by_reason_and_their_neighbours_published(
    kafka: KafkaBroker, receiver: Receiver, channel: grpc.aio.Channel
) -> None:
    """partial_success is how a sender learns of its own mistakes."""
    good = features(2)
    nobody = [span(bytes([n]) * 16, bytes([n]) * 8, {"event.category": "user_activity"}) for n in (1, 2)]
    unidentified = span(b"short", b"\1" * 8, {"feature.name": "export"})
    answer = await export(channel, request([good[0], *nobody, unidentified, good[1]]))
    assert answer.code == "OK"
    assert answer.rejected == 3
    assert answer.text == "rejected 3 spans: missing_user_id=2, invalid_trace_id=1"
    assert len(await published(kafka, receiver, good)) == 2


@pytest.mark.parametrize(
    "body",
    [b"\xff\xff\xff", b'{"resourceSpans":[]}', request(features(3))[:-5], gzip.compress(b"spans")],
    ids=["noise", "json", "truncated", "gzip_in_gzip"],
)
async def test_bytes_that_are_no_request_are_invalid(channel: grpc.aio.Channel, body: bytes) -> None:
    """Sending them again is of no use, and this code says so to every exporter."""
    answer = await export(channel, body)
    assert (answer.code, answer.retry_s) == ("INVALID_ARGUMENT", None)


async def test_more_spans_than_the_limit_are_invalid(channel: grpc.aio.Channel) -> None:
    """At the limit all is well; one more, and the request can never be taken."""
    spans = request(span(n.to_bytes(16, "big"), n.to_bytes(8, "big"), {}) for n in range(1, 1001))
    assert (await export(channel, spans)).code == "OK"
    assert (await export(channel, spans + request([span(b"\1" * 16, b"\1" * 8, {})]))).code == "INVALID_ARGUMENT"
    assert (await export(channel, empty_spans(1001))).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_body_over_the_limit_is_refused_for_good(
    receiver: Receiver, channel: grpc.aio.Channel, compression: grpc.Compression
) -> None:
    """Counted after decompression, so that a bomb is what it inflates to."""
    before = await receiver.metric("receiver_requests_total", code="RESOURCE_EXHAUSTED", transport="grpc")
    answer = await export(channel, b"\0" * (MEBIBYTE + 1), compression=compression)
    assert (answer.code, answer.retry_s) == ("RESOURCE_EXHAUSTED", None)
    assert await receiver.metric("receiver_requests_total", code="RESOURCE_EXHAUSTED", transport="grpc") == before + 1


async def test_a_call_without_a_request_is_invalid(receiver: Receiver, channel: grpc.aio.Channel) -> None:
    """Export is unary for its callers; the server reads it as a stream of one."""

    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await channel.stream_unary(EXPORT)(nothing(), timeout=5)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_gzip_is_understood(kafka: KafkaBroker, receiver: Receiver, channel: grpc.aio.Channel) -> None:
    """Collectors compress by default."""
    sent = features(5)
    assert (await export(channel, request(sent), compression=grpc.Compression.Gzip)).code == "OK"
    assert len(await published(kafka, receiver, sent)) == 5


async def test_an_unreadable_resource_rejects_its_spans_only(
    kafka: KafkaBroker, receiver: Receiver, channel: grpc.aio.Channel
) -> None:
    """One broken sender behind a Collector must not cost the others' spans."""
    good, bad = features(2)
    broken_resource = request([bad])
    assert broken_resource[0] == 0x0A
    # resource_spans is field 1, its resource field 1: an empty one is 0A 00, and two bytes of nonsense replace it.
    at = broken_resource.index(b"\x0a\x00")
    grown = b"\x0a\x02\xff\xff" + broken_resource[at + 2 :]
    body = b"\x0a" + _varint(len(grown)) + grown
    answer = await export(channel, request([good]) + body)
    assert (answer.code, answer.rejected) == ("OK", 1)
    assert answer.text == "rejected 1 span: malformed_resource=1"
    assert len(await published(kafka, receiver, [good])) == 1


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + _varint(number >> 7)


async def test_without_a_broker_the_client_is_asked_to_come_again(unconnected: Receiver) -> None:
    """UNAVAILABLE with a delay: the one answer upon which no exporter drops the batch."""
    async with unconnected.channel() as channel:
        await until(lambda: _answers(channel), 20, "the port is open")
        delays = []
        for _ in range(20):
            answer = await export(channel, request(features(3)))
            assert answer.code == "UNAVAILABLE"
            assert answer.seconds < 1
            assert answer.retry_s is not None
            delays.append(answer.retry_s)
    assert all(1 <= delay <= 30 for delay in delays)
    assert len(set(delays)) > 10, "clients that come back together come down together"


async def test_with_nothing_to_publish_the_broker_does_not_matter(unconnected: Receiver) -> None:
    """A trace without product events is answered while Kafka is down."""
    async with unconnected.channel() as channel:
        await until(lambda: _answers(channel), 20, "the port is open")
        answer = await export(channel, request([span(b"\1" * 16, b"\2" * 8, {"db.system": "redis"})]))
        assert (answer.code, answer.has_partial) == ("OK", False)
        rejected = await export(channel, request([span(b"\1" * 16, b"\2" * 8, {"event.category": "user_activity"})]))
        assert (rejected.code, rejected.rejected) == ("OK", 1)


async def _answers(channel: grpc.aio.Channel) -> bool:
    return (await export(channel, b"", timeout_s=1)).code == "OK"


async def _takes(channel: grpc.aio.Channel) -> bool:
    return (await export(channel, request(features(1)))).code == "OK"


async def test_telemetry_off_accepts_and_drops(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Senders stay as they are while an operator has switched the product off."""
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, TELEMETRY_ENABLED="false").start()
    try:
        await receiver.ready()
        async with receiver.channel() as channel:
            answer = await export(channel, request(features(7)))
        assert (answer.code, answer.has_partial) == ("OK", False)
        assert await receiver.metric("receiver_spans_ignored_total", reason="telemetry_disabled") == 7
        assert await records_of(kafka, receiver.topic) == []
    finally:
        receiver.kill()


async def test_the_reply_keeps_within_the_clients_deadline(
    kafka: KafkaBroker, receiver: Receiver, channel: grpc.aio.Channel
) -> None:
    """A client that runs into its own deadline learns nothing; 300 ms are kept for the way back."""
    assert (await export(channel, request(features(1)))).code == "OK"
    kafka.pause()
    try:

        async def is_told() -> bool:  # a machine may be later than 300 ms, though not each time
            answer = await export(channel, request(features(1)), timeout_s=2)
            assert answer.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            return answer.code == "UNAVAILABLE" and answer.retry_s is not None

        await until(is_told, 20, "told to come again, before the client gave up")
    finally:
        kafka.resume()
    await until(lambda: _takes(channel), 20, "a broker as before, for the other tests")


async def test_an_unexpected_error_is_told_by_an_id_and_no_text(kafka: KafkaBroker, tmp_path: Path) -> None:
    """grpc would send the exception's text, which repeats the data, with a code upon which exporters drop."""
    (tmp_path / "sitecustomize.py").write_text(
        "import receiver.publish.publisher\n"
        "def broken(self, translation, *, received_at_ms):\n"
        "    raise RuntimeError(f'cannot publish {translation!r} confidential')\n"
        "receiver.publish.publisher.Publisher.append = broken\n"
    )
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}").start()
    try:
        await receiver.ready()
        async with receiver.channel() as channel:
            answer = await export(channel, request(features(1, name="confidential")))
        assert answer.code == "UNAVAILABLE"
        assert answer.retry_s is not None
        found = re.fullmatch("unexpected error ([0-9a-f]{16})", answer.text)
        assert found is not None
        (line,) = receiver.log_lines("request_failed")
        assert line["error_id"] == found[1]
        assert line["error"] == "RuntimeError"
        assert "confidential" not in receiver.log_text()
        assert "cannot publish" not in receiver.log_text()
    finally:
        receiver.kill()


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_the_sdks_own_exporter_is_understood(
    kafka: KafkaBroker, receiver: Receiver, compression: grpc.Compression
) -> None:
    """What our tests build by hand, a stock OpenTelemetry SDK sends."""

    def send() -> list[bytes]:
        exporter = OTLPSpanExporter(f"http://127.0.0.1:{receiver.port}", insecure=True, compression=compression)
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        keys = []
        for number in range(10):
            with provider.get_tracer("test").start_as_current_span("work") as made:
                made.set_attributes({"feature.name": "export", "user.id": number})
                ids = made.get_span_context()
            keys.append(event_id(ids.trace_id.to_bytes(16, "big"), ids.span_id.to_bytes(8, "big")))
        provider.shutdown()
        return [str(key).encode() for key in keys]

    sent = await asyncio.to_thread(send)
    assert set(sent) <= {record.key for record in await records_of(kafka, receiver.topic)}


async def test_an_id_is_a_function_of_trace_and_span(
    kafka: KafkaBroker, receiver: Receiver, channel: grpc.aio.Channel
) -> None:
    """The example of the documentation, so that other tools can find a span's row."""
    example = Feature(bytes.fromhex("0af7651916cd43dd8448eb211c80319c"), bytes.fromhex("b7ad6b7169203331"))
    assert str(event_id(example.trace_id, example.span_id)) == "e2681862-d99e-887f-8991-ca7edf58cbce"
    for _ in range(2):
        assert (await export(channel, request([example]))).code == "OK"
    assert len(await published(kafka, receiver, [example])) == 2


async def test_requests_are_counted_by_code(receiver: Receiver, channel: grpc.aio.Channel) -> None:
    """What the alerts look at."""
    ok, invalid = [await receiver.metric("receiver_requests_total", code=code) for code in ("OK", "INVALID_ARGUMENT")]
    received = await receiver.metric("receiver_spans_received_total")
    events = await receiver.metric("receiver_events_published_total", table="feature_usage")
    await export(channel, request(features(3)))
    await export(channel, b"\xff")
    assert await receiver.metric("receiver_requests_total", code="OK") == ok + 1
    assert await receiver.metric("receiver_requests_total", code="INVALID_ARGUMENT") == invalid + 1
    assert await receiver.metric("receiver_spans_received_total") == received + 3
    assert await receiver.metric("receiver_events_published_total", table="feature_usage") == events + 3
    assert await receiver.metric("receiver_request_seconds_count") > 0
    assert await receiver.metric("receiver_publish_seconds_count") > 0
    await receiver.idle()
    assert await receiver.metric("receiver_requests_total", code="UNAUTHENTICATED") == 0
