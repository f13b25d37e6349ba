"""OTLP/HTTP: every line of the reply table, with status, headers and body in the request's own type."""

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cramjam
import grpc
import pytest
from google.rpc.code_pb2 import Code
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from deploy.local.kafka import KafkaBroker
from support.http import JSON, PROTOBUF, HttpAnswer, exchange, otlp_json, post
from support.otlp import Feature, empty_spans, features, request, span
from support.receiver import AS_SHIPPED, Receiver, export, records_of, until

MEBIBYTE = 1024 * 1024
KEY = "k-first-9a61"
LIMITS = {"MAX_REQUEST_BYTES": 2 * MEBIBYTE, "MAX_SPANS_PER_REQUEST": 1000}


@asynccontextmanager
async def started(kafka: KafkaBroker, folder: Path, **settings: Any) -> AsyncIterator[Receiver]:
    receiver = Receiver(kafka.bootstrap_servers, folder, **settings).start()
    try:
        await receiver.ready()
        yield receiver
    finally:
        receiver.kill()


def in_type(kind: str, body: bytes) -> bytes:
    return otlp_json(body) if kind == JSON else body


async def values_of(kafka: KafkaBroker, receiver: Receiver) -> list[dict[str, Any]]:
    return [json.loads(record.value) for record in await records_of(kafka, receiver.topic)]


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
async def test_each_situation_has_its_status_and_its_body(kafka: KafkaBroker, tmp_path: Path, kind: str) -> None:
    """A client decides by the status whether a batch is sent again, and people read the body."""
    good = features(3)
    bad = [*features(2), *features(1, user=None), span(b"\1" * 15, b"\1" * 8, {"feature.name": "x"})]
    async with started(kafka, tmp_path, API_KEYS=KEY, **LIMITS) as receiver:

        async def sent(body: bytes, **options: Any) -> HttpAnswer:
            return await post(receiver.http_port, body, **{"kind": kind, "x_api_key": KEY, **options})

        def refused(answer: HttpAnswer, status: int, code: str) -> None:
            assert (answer.status, answer.refusal.code) == (status, Code.Value(code)), answer
            assert answer.refusal.message
            assert "retry-after" not in answer.headers

        taken = await sent(in_type(kind, request(good)))
        assert (taken.status, taken.headers["content-type"]) == (200, kind)
        assert not taken.response.HasField("partial_success")
        assert taken.body == (b"{}" if kind == JSON else b"")
        assert (await sent(in_type(kind, b""))).status == 200
        partial = await sent(in_type(kind, request(bad)))
        assert partial.status == 200
        assert partial.response.partial_success.rejected_spans == 1
        assert partial.response.partial_success.error_message == "rejected 1 span: invalid_trace_id=1"

        refused(await sent(b"\xff" * 20), 400, "INVALID_ARGUMENT")
        refused(await sent(in_type(kind, empty_spans(1001))), 400, "INVALID_ARGUMENT")
        refused(await sent(gzip.compress(b"x")[:-9], content_encoding="gzip"), 400, "INVALID_ARGUMENT")
        refused(await sent(b"plain", content_encoding="gzip"), 400, "INVALID_ARGUMENT")
        for key in ("", "wrong", KEY + "x"):
            refused(await sent(in_type(kind, request(good)), x_api_key=key), 401, "UNAUTHENTICATED")
        refused(await sent(b"x", path="/v1/spans"), 404, "NOT_FOUND")
        refused(await sent(b"x", path="/"), 404, "NOT_FOUND")
        for method in ("GET", "PUT", "DELETE"):
            answer = await sent(b"", method=method)
            refused(answer, 405, "UNIMPLEMENTED")
            assert answer.headers["allow"] == "POST, OPTIONS"
        large = in_type(kind, request(features(3, filler="x" * MEBIBYTE)))
        refused(await sent(large), 413, "RESOURCE_EXHAUSTED")
        refused(await sent(gzip.compress(large), content_encoding="gzip"), 413, "RESOURCE_EXHAUSTED")
        refused(
            await sent(gzip.compress(bytes(1000 * MEBIBYTE), 1), content_encoding="gzip"), 413, "RESOURCE_EXHAUSTED"
        )
        for encoding in ("br", "snappy", "gzip, gzip"):
            refused(await sent(in_type(kind, request(good)), content_encoding=encoding), 415, "UNIMPLEMENTED")
        bearer = await sent(in_type(kind, request(good)), x_api_key="", authorization=f"Bearer {KEY}")
        assert bearer.status == 200
        known = {(value["id"], value["table"]) for value in await values_of(kafka, receiver)}
        assert {(str(feature.id), "feature_usage") for feature in good} <= known
        codes = {
            code: await receiver.metric("receiver_requests_total", code=code, transport="http")
            for code in ("OK", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED")
        }
        assert codes == {"OK": 4, "UNAUTHENTICATED": 3, "RESOURCE_EXHAUSTED": 3, "UNIMPLEMENTED": 3}
        assert await receiver.metric("receiver_http_refused_total", status="405") == 3
        assert not receiver.log_lines("request_failed") + receiver.log_lines("call_failed")


async def test_other_content_types_are_refused(kafka: KafkaBroker, tmp_path: Path) -> None:
    """A form or a text is no request, and says so before a byte of it is looked at."""
    async with started(kafka, tmp_path) as receiver:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/grpc",
            "application/protobuf",
            None,
        ):
            answer = await post(receiver.http_port, b"x", kind=kind)
            assert (answer.status, answer.refusal.code) == (415, Code.Value("INVALID_ARGUMENT")), kind
        for kind in ("application/json; charset=utf-8", "Application/JSON"):
            answer = await post(receiver.http_port, otlp_json(request(features(1))), kind=kind)
            assert answer.status == 200, kind


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
async def test_a_broker_that_is_away_is_told_by_503_and_retry_after(
    kafka: KafkaBroker, tmp_path: Path, kind: str
) -> None:
    """The specification's word for "try again": any other status would lose the batch."""
    async with started(kafka, tmp_path, **{**AS_SHIPPED, "PUBLISH_TIMEOUT_MS": 1000}) as receiver:
        kafka.pause()
        try:

            async def refusal() -> HttpAnswer | None:
                answer = await post(receiver.http_port, in_type(kind, request(features(1))), kind=kind)
                return None if answer.status == 200 else answer

            answer = await until(refusal, 10, "refused")  # a stopped process takes a moment to stop
            assert answer.status == 503
            assert answer.refusal.code == Code.Value("UNAVAILABLE")
            assert 1 <= int(answer.headers["retry-after"]) <= 30
            if kind == PROTOBUF:
                assert answer.retry_s is not None
                assert 1 <= answer.retry_s <= 30
            ignored = request([span(b"\1" * 16, b"\2" * 8, {"db.system": "redis"})])
            assert (await post(receiver.http_port, in_type(kind, ignored), kind=kind)).status == 200
        finally:
            kafka.resume()

        async def is_taken() -> bool:
            return (await post(receiver.http_port, in_type(kind, request(features(1))), kind=kind)).status == 200

        await until(is_taken, 20, "taken again")


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": lambda body: bytes(cramjam.zstd.compress(body)),
    "identity": lambda body: body,
    "GZIP": gzip.compress,
}


async def test_each_compression_gives_the_same_rows(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Exporters differ in what they choose by default."""
    sent: list[Feature] = []
    async with started(kafka, tmp_path) as receiver:
        for encoding, compress in COMPRESSED.items():
            for kind in (PROTOBUF, JSON):
                some = features(20)
                sent += some
                body = compress(in_type(kind, request(some)))
                answer = await post(receiver.http_port, body, kind=kind, content_encoding=encoding)
                assert answer.status == 200, (encoding, kind, answer)
        found = {value["id"]: value for value in await values_of(kafka, receiver)}
    assert len(found) == len(sent)
    assert all(found[str(feature.id)] == {**found[str(feature.id)], **without_version(feature)} for feature in sent)


def without_version(feature: Feature) -> dict[str, Any]:
    return {name: value for name, value in feature.value().items() if name != "schema_version"}


async def test_a_page_of_an_allowed_origin_may_send(kafka: KafkaBroker, tmp_path: Path) -> None:
    """A browser asks first, and reads the answer only when it is allowed to; another page gets no permission."""
    origin = "https://shop.example"
    async with started(kafka, tmp_path, HTTP_CORS_ORIGINS=f"{origin},https://other.example", API_KEYS=KEY) as receiver:
        asked = {"origin": origin, "access_control_request_method": "POST"}
        allowed = await post(receiver.http_port, b"", method="OPTIONS", kind=None, **asked)
        assert allowed.status == 204
        assert allowed.headers["access-control-allow-origin"] == origin
        assert "POST" in allowed.headers["access-control-allow-methods"]
        assert {"content-type", "x-api-key"} <= set(allowed.headers["access-control-allow-headers"].split(", "))
        body = otlp_json(request(features(1)))
        for key, status in ((KEY, 200), ("wrong", 401)):
            answer = await post(receiver.http_port, body, kind=JSON, origin=origin, x_api_key=key)
            assert (answer.status, answer.headers.get("access-control-allow-origin")) == (status, origin)
        for stranger in ("https://shop.example.evil", "http://shop.example", "null"):
            refused = await post(receiver.http_port, b"", method="OPTIONS", kind=None, **{**asked, "origin": stranger})
            assert "access-control-allow-origin" not in refused.headers


async def test_the_wrong_door_names_the_right_one(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Half of all first tries knock at the other port, and see `malformed HTTP response` or nothing at all."""
    async with started(kafka, tmp_path) as receiver:
        at_grpc = await exchange(receiver.port, b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        assert at_grpc.startswith(b"HTTP/1.1 421 ")
        assert f"OTLP/HTTP is on port {receiver.http_port}".encode() in at_grpc
        async with grpc.aio.insecure_channel(f"127.0.0.1:{receiver.http_port}") as channel:
            at_http = await export(channel, request(features(1)))
        assert (at_http.code, at_http.text) == (
            "UNIMPLEMENTED",
            f"this port speaks OTLP/HTTP; OTLP/gRPC is on port {receiver.port}",
        )
        assert await exchange(receiver.http_port, bytes.fromhex("16030100a5010000a10303") + bytes(200)) == b""
        assert await receiver.metric("receiver_wrong_door_total", transport="grpc") == 1
        assert await receiver.metric("receiver_wrong_door_total", transport="http") == 2


METRICS = ExportMetricsServiceRequest().SerializeToString()
METRICS_METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
LOGS_METHOD = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"


async def test_metrics_and_logs_are_taken_and_dropped(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Default SDKs send them along, and would log an error a minute for ever."""
    async with started(kafka, tmp_path, API_KEYS=KEY) as receiver, receiver.channel() as channel:
        for path, signal in (("/v1/metrics", "metrics"), ("/v1/logs", "logs")):
            for kind, body in ((PROTOBUF, b""), (JSON, b"{}")):
                answer = await post(receiver.http_port, b"x" * 100_000, path=path, kind=kind, x_api_key=KEY)
                assert (answer.status, answer.headers["content-type"], answer.body) == (200, kind, body)
            assert (await post(receiver.http_port, b"x", path=path)).status == 401
            method = METRICS_METHOD if signal == "metrics" else LOGS_METHOD
            sent = ExportLogsServiceRequest().SerializeToString() if signal == "logs" else METRICS
            assert await channel.unary_unary(method)(sent, metadata=[("x-api-key", KEY)], timeout=5) == b""
            assert await receiver.metric("receiver_unsupported_items_total", signal=signal) == 3
        told = receiver.log_lines("signal_dropped")
        assert [(line["signal"], line["remedy"]) for line in told] == [
            ("metrics", "set OTEL_METRICS_EXPORTER=none at the sender"),
            ("logs", "set OTEL_LOGS_EXPORTER=none at the sender"),
        ]
    async with started(kafka, tmp_path, ACCEPT_OTHER_SIGNALS="false") as receiver, receiver.channel() as channel:
        assert (await post(receiver.http_port, b"x", path="/v1/metrics")).status == 404
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary(METRICS_METHOD)(METRICS, timeout=5)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def head(*lines: str, method: str = "POST", path: str = "/v1/traces") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1")


def posted(body: bytes, *lines: str) -> bytes:
    return head("Content-Type: application/x-protobuf", f"Content-Length: {len(body)}", *lines) + body


def statuses(heard: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", heard)]


async def test_a_connection_is_kept_and_its_requests_are_answered_in_order(kafka: KafkaBroker, tmp_path: Path) -> None:
    """A handshake a request is what a busy sender cannot afford; pipelining is allowed, if rare."""
    bodies = [request(features(2)) for _ in range(5)]
    async with started(kafka, tmp_path) as receiver:
        pipelined = b"".join(posted(body) for body in bodies[:4]) + posted(bodies[4], "Connection: close")
        heard = await exchange(receiver.http_port, pipelined)
        assert statuses(heard) == [200] * 5
        mixed = posted(b"\xff" * 9) + posted(bodies[0]) + posted(b"x", "Connection: close").replace(b"traces", b"other")
        assert statuses(await exchange(receiver.http_port, mixed)) == [400, 200, 404]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (bodies[0][:10], bodies[0][10:]))
        chunked = head("Content-Type: application/x-protobuf", "Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n"
        assert statuses(await exchange(receiver.http_port, chunked, 1)) == [200]
        reader, writer = await asyncio.open_connection("127.0.0.1", receiver.http_port)
        writer.write(posted(bodies[0], "Expect: 100-continue", "Connection: close")[: -len(bodies[0])])
        assert statuses(await reader.readuntil(b"\r\n\r\n")) == [100]
        writer.write(bodies[0])
        assert statuses(await reader.read()) == [200]
        writer.close()
        assert await receiver.metric("receiver_connections_ended_total", transport="http") == 0


BODY = request(features(2))
# What follows a wrong head, as a second request that nobody must see.
HIDDEN = posted(request(features(2)))
NO_HTTP = [
    ("both lengths", head("Content-Type: application/x-protobuf", "Content-Length: 5", "Transfer-Encoding: chunked")),
    ("two lengths", head("Content-Type: application/x-protobuf", "Content-Length: 5", "Content-Length: 6")),
    ("a length that is none", head("Content-Type: application/x-protobuf", "Content-Length: -1")),
    ("a length with a plus", head("Content-Type: application/x-protobuf", "Content-Length: +5")),
    ("an unknown coding", head("Content-Type: application/x-protobuf", "Transfer-Encoding: x, identity")),
    ("a chunk of no number", head("Transfer-Encoding: chunked") + b"zz\r\n"),
    ("a chunk of 2^64", head("Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n"),
    ("a blank before the colon", head("Content-Length : 5")),
    ("a folded header", head("X: a", " b", "Content-Length: 0")),
    ("a NUL in a header", head("X: a\0b")),
    ("a lone CR", b"POST /v1/traces HTTP/1.1\rHost: x\r\n\r\n"),
    ("no version", b"POST /v1/traces\r\n\r\n"),
    ("version 3", b"POST /v1/traces HTTP/3.0\r\n\r\n"),
    ("a method of noise", b"\x01\x02\x03 / HTTP/1.1\r\n\r\n"),
    ("noise", b"\xff" * 1000),
    ("an upgrade", head("Connection: Upgrade", "Upgrade: h2c")),
    ("200 headers", head(*(f"X-{number}: a" for number in range(200)))),
    ("a header of 1 MiB", head("X: " + "y" * MEBIBYTE)),
    ("a path of 1 MiB", head(path="/" + "y" * MEBIBYTE)),
]


async def test_what_is_no_http_ends_its_connection_and_hides_no_request(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Smuggling: a proxy in front reads one request where we read two, and somebody's key goes to somebody else."""
    async with started(kafka, tmp_path) as receiver:
        assert (await post(receiver.http_port, BODY)).status == 200
        before = len(await values_of(kafka, receiver))
        failures = []
        for name, raw in NO_HTTP:
            heard = await exchange(receiver.http_port, raw + HIDDEN, 4)
            if not set(statuses(heard)) <= {400, 431} or len(statuses(heard)) > 1:
                failures.append((name, heard[:200]))
            if (await post(receiver.http_port, BODY)).status != 200:
                failures.append((name, b"the neighbour"))
        assert not failures
        assert len(await values_of(kafka, receiver)) == before * (1 + len(NO_HTTP)), "a hidden request was read"
        assert not receiver.log_lines("connection_failed") + receiver.log_lines("call_failed")


async def test_a_head_that_never_ends_is_left(kafka: KafkaBroker, tmp_path: Path) -> None:
    """A byte a second holds a connection for ever otherwise; on one that was used before as well."""
    async with started(kafka, tmp_path) as receiver:

        async def left(first: bytes) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", receiver.http_port)
            writer.write(first + b"POST /v1/traces HTTP/1.1\r\n")
            async with asyncio.timeout(15):
                while await reader.read(65_536):
                    pass
            writer.close()

        await asyncio.gather(left(b""), left(posted(BODY)))
        assert await receiver.metric("receiver_connections_ended_total", transport="http", reason="silent") == 2


async def test_sigterm_answers_what_runs_and_ends(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Every deploy does this; keep-alive connections must not hold it up."""
    async with started(kafka, tmp_path) as receiver:
        reader, writer = await asyncio.open_connection("127.0.0.1", receiver.http_port)
        writer.write(posted(BODY))
        assert b"200 OK" in await reader.read(65_536)
        stopping = asyncio.create_task(receiver.stop())
        writer.write(posted(BODY))
        heard = b""
        while piece := await reader.read(65_536):
            heard += piece
        assert set(statuses(heard)) <= {200, 503}
        assert await asyncio.wait_for(stopping, 8) == 0
        writer.close()
