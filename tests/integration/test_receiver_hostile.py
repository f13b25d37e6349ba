"""Bytes that mean harm, level by level: each has its answer, its neighbours are stored, and memory stays bounded.

What a span must become is written here by hand; the bytes are built by hand as well.
"""

import asyncio
import gzip
import hashlib
import json
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cramjam
import grpc
import pytest
from google.protobuf.message import DecodeError

from deploy.local.kafka import KafkaBroker
from receiver.decode import json_request
from support import http2
from support.encoding import (
    LOGIN,
    SERVER,
    Encoded,
    Text,
    field,
    key_value,
    request_bytes,
    resource_bytes,
    span_bytes,
    varint,
)
from support.http import JSON, PROTOBUF, otlp_json, post
from support.http2 import body_frames, frame, grpc_frame, hello, open_call
from support.otlp import Feature, empty_spans, features, request
from support.receiver import Receiver, export, records_of

MEBIBYTE = 1024 * 1024
REQUEST_BYTES_MAX = 8 * MEBIBYTE
SPANS_MAX = 10_000
# Of a receiver that has served a while, over all cases of a level: a request of 8 MiB is there three times.
GROWTH_BYTES_MAX = 96 * MEBIBYTE
GROUP, GROUP_END = varint(90 << 3 | 3), varint(90 << 3 | 4)


@pytest.fixture(scope="module")
def receiver(kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """One for all cases: whatever a case leaves behind, the next ones would meet."""
    limits = {
        "MAX_REQUEST_BYTES": REQUEST_BYTES_MAX,
        "MAX_SPANS_PER_REQUEST": SPANS_MAX,
        "PUBLISH_TIMEOUT_MS": 8000,  # half a body is waited for as long
    }
    made = Receiver(kafka.bootstrap_servers, tmp_path_factory.mktemp("hostile"), **limits).start()
    asyncio.run(warmed(made))
    yield made
    made.kill()


async def warmed(receiver: Receiver) -> None:
    """Served as much before as a receiver has after a minute, so that growth is growth."""
    await receiver.ready()
    async with receiver.channel() as channel:
        for compression in (None, grpc.Compression.Gzip):
            answer = await export(channel, request(features(5000, filler="x" * 900)), compression=compression)
            assert answer.code in ("OK", "UNAVAILABLE")
    await receiver.idle(30)


class Table:
    """Runs cases one after another, and looks at everything at once at the end."""

    def __init__(self, kafka: KafkaBroker, receiver: Receiver) -> None:
        self.failures: list[str] = []
        self.stored: list[dict[str, Any]] = []  # record values that must be in the topic, each once
        self._kafka = kafka
        self._receiver = receiver
        self._before = peak_bytes(receiver)

    def expect(self, name: str, found: object, expected: object) -> None:
        if found != expected:
            self.failures.append(f"{name}: {found!r:.300} instead of {expected!r:.300}")

    async def close(self) -> None:
        assert self._receiver.exit_code is None
        growth = peak_bytes(self._receiver) - self._before
        values: dict[str, list[dict[str, Any]]] = {}
        for record in await records_of(self._kafka, self._receiver.topic):
            values.setdefault(record.key.decode(), []).append(json.loads(record.value))
        for value in self.stored:
            self.expect("in the topic", values.get(value["id"]), [value])
        assert not self.failures, "\n".join(self.failures)
        assert growth < GROWTH_BYTES_MAX
        assert not self._receiver.log_lines("request_failed"), "no case may be a surprise to us"
        assert not self._receiver.log_lines("spans_untranslatable")


def peak_bytes(receiver: Receiver) -> int:
    """The most memory that was ever resident."""
    (line,) = [
        line for line in Path(f"/proc/{receiver.pid}/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


# ---- spans, between two good ones in one request

TRACE = bytes(range(1, 17))


@dataclass(frozen=True)
class Span:
    """A span, its resource, and what must come of it: a record's own fields, or a reason."""

    name: str
    becomes: Mapping[str, Any] | str
    raw: Callable[[bytes], bytes]  # of the span id, which is the case's own
    resource: bytes = b""


def login(**fields: Any) -> dict[str, Any]:
    """A login's own fields, with those that the case adds or changes."""
    own = {"table": "user_activity", "user_id": hashed("42"), "event_type": "login", "event_metadata": {}}
    return {**own, **fields}


def hashed(raw: str) -> str:
    return hashlib.sha256(raw.encode()).hexdigest()[:16]


def spelt(attributes: Any = (), **fields: Any) -> Callable[[bytes], bytes]:
    """A span of these attributes, as a function of its id."""

    def raw(span_id: bytes) -> bytes:
        return span_bytes(attributes, **{"trace_id": TRACE, "span_id": span_id, **fields})

    return raw


def with_login(*more: tuple[str | bytes, Any], **fields: Any) -> Callable[[bytes], bytes]:
    return spelt([*LOGIN.items(), *more], **fields)


def nested(depth: int, *, is_map: bool = False) -> Encoded:
    raw = b"\x18\x01"
    for _ in range(depth):
        raw = field(6, field(1, field(1, b"k") + field(2, raw))) if is_map else field(5, field(1, raw))
    return Encoded(raw)


def without(number: int, raw: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The same with a field of the wrong wire type in its place."""
    return lambda span_id: raw(span_id).replace(field(number, TRACE), varint(number << 3) + b"\x05")


def kept(name: str, metadata: Mapping[str, Any], *attributes: tuple[str | bytes, Any]) -> Span:
    """A login of these attributes besides its own, and what they become."""
    return Span(name, login(event_metadata=metadata), with_login(*attributes))


SPANS = [
    # protobuf
    Span("truncated", "malformed_span", lambda span_id: with_login()(span_id)[:-3]),
    Span("ends in a length", "malformed_span", lambda span_id: with_login()(span_id) + b"\x4a\xff"),
    Span("length of 11 bytes", "malformed_span", lambda span_id: with_login()(span_id) + b"\x4a" + b"\xff" * 11),
    Span("length of 4 GiB", "malformed_span", lambda span_id: with_login()(span_id) + b"\x4a\xff\xff\xff\xff\x0f"),
    Span("length padded to 5 bytes", login(), with_login(more=b"\xfa\x01\x83\x80\x80\x80\x00abc")),
    Span("open group", "malformed_span", with_login(more=GROUP)),
    Span("closed group", login(), with_login(more=GROUP + field(9, b"\xff") + GROUP_END)),
    Span("group that was not open", "malformed_span", with_login(more=GROUP_END)),
    Span("200 groups in groups", "malformed_span", with_login(more=GROUP * 200 + GROUP_END * 200)),
    Span("field number 0", "malformed_span", with_login(more=b"\x02\x00")),
    Span("wire type 6", "malformed_span", with_login(more=b"\x4e")),
    Span("unknown fields", login(), with_login(more=field(999, b"x") + varint(998 << 3) + b"\x01")),
    Span("trace id as a number", "invalid_trace_id", without(1, with_login())),
    Span("attributes as numbers", "not_product_event", spelt({}, more=(b"\x48\x01" * 50) + field(5, b"feature.name"))),
    Span("kind beyond its enum", login(), with_login(kind=77)),
    Span("kind of 64 bits", login(), with_login(kind=2**63)),
    Span("events that are no messages", login(), with_login(more=field(11, b"\xff") + field(13, b"\xff"))),
    # ids
    Span("no trace id", "invalid_trace_id", with_login(trace_id=b"")),
    Span("trace id of 15", "invalid_trace_id", with_login(trace_id=TRACE[1:])),
    Span("trace id of 17", "invalid_trace_id", with_login(trace_id=TRACE + b"\1")),
    Span("trace id in hex", "invalid_trace_id", with_login(trace_id=TRACE.hex().encode())),
    Span("trace id of zeros", "invalid_trace_id", with_login(trace_id=bytes(16))),
    Span("no span id", "invalid_span_id", with_login(span_id=b"")),
    Span("span id of 7", "invalid_span_id", with_login(span_id=b"1234567")),
    Span("span id of zeros", "invalid_span_id", with_login(span_id=bytes(8))),
    Span("user id of bytes", "invalid_user_id", spelt({**LOGIN, "user.id": b"42"})),
    Span("user id of double", "invalid_user_id", spelt({**LOGIN, "user.id": 42.0})),
    Span("user id of bool", "invalid_user_id", spelt({**LOGIN, "user.id": True})),
    Span("user id of list", "invalid_user_id", spelt({**LOGIN, "user.id": ["42"]})),
    Span("user id cut in a character", "invalid_user_id", spelt({**LOGIN, "user.id": Text(b"caf\xc3")})),
    Span("user id blank", "missing_user_id", spelt({**LOGIN, "user.id": " \t"})),
    Span("user id unset", "missing_user_id", spelt({**LOGIN, "user.id": None})),
    Span("user id as int", login(), spelt({**LOGIN, "user.id": 42})),
    Span("user id of 1 MiB", login(user_id=hashed("x" * MEBIBYTE)), spelt({**LOGIN, "user.id": "x" * MEBIBYTE})),
    Span("tenant of bytes", "invalid_organization_id", with_login(("tenant.id", b"a"))),
    Span("user id twice", login(), with_login(("user.id", b"bytes"))),
    # text
    Span("bad UTF-8 in a name", login(), with_login(more=field(5, b"\xff\xfe"))),
    Span("bad UTF-8 in a status", login(), with_login(more=field(15, field(2, b"\xff")))),
    Span("bad UTF-8 in a trace state", login(), with_login(more=field(3, b"\xc0\x80"))),
    kept("bad UTF-8 in a value", {"a": "x\ufffd"}, ("metadata.a", Text(b"x\xff"))),
    kept("bad UTF-8 in a key", {"\ufffd": 1}, (b"metadata.\xff", 1)),
    Span("NUL in a column", login(event_type="lo\ufffdgin"), spelt({**LOGIN, "event.type": "lo\0gin"})),
    kept("NUL in metadata", {"a\ufffd": "\ufffd"}, ("metadata.a\0", "\0")),
    kept(
        "surrogates and the last plane",
        {"a": "\ufffd\ufffd\ufffd\U0010ffff"},
        ("metadata.a", Text(b"\xed\xa0\x80\xf4\x8f\xbf\xbf")),
    ),
    Span(
        "column of 1 MiB",
        login(event_type="é" * 50, event_metadata={"_truncated": ["event_type"]}),
        spelt({**LOGIN, "event.type": "é" * (MEBIBYTE // 2)}),
    ),
    # values
    kept(
        "every type",
        {"i": -(2**63), "d": 1e300, "n": None, "b": False, "y": "/w==", "l": [1, None, []]},
        ("metadata.i", -(2**63)),
        ("metadata.d", 1e300),
        ("metadata.n", float("nan")),
        ("metadata.u", None),
        ("metadata.b", False),
        ("metadata.y", b"\xff"),
        ("metadata.l", [1, float("inf"), []]),
    ),
    kept(
        "secrets",
        {
            "a": "[redacted]",
            "b": [{"c": "[redacted]"}],
            "u": "https://h/p",
            "_truncated": ["event_metadata.u"],
        },
        ("metadata.a", "bob@example.org"),
        ("metadata.b", [{"c": "Bearer abcdef123456", "token": "x"}]),
        ("metadata.password", "x"),
        ("metadata.u", "https://h/p?key=AKIAIOSFODNN7EXAMPLE"),
    ),
    kept("list nested 6 deep", {"a": [[[["[cut]"]]]], "_truncated": ["event_metadata.a"]}, ("metadata.a", nested(6))),
    kept(
        "map nested 40 deep",
        {"a": {"k": {"k": {"k": {"k": "[cut]"}}}}, "_truncated": ["event_metadata.a"]},
        ("metadata.a", nested(30, is_map=True)),
    ),
    Span("nested 100 deep", "malformed_span", with_login(("other", nested(100)))),
    Span("nested 5000 deep", "malformed_span", with_login(("other", nested(5000, is_map=True)))),
    kept("65 elements", {"a": [1] * 64, "_truncated": ["event_metadata.a"]}, ("metadata.a", [1] * 65)),
    Span("a million attributes", "span_too_large", with_login(more=b"\x4a\x00" * MEBIBYTE)),
    Span("1025 attributes", "span_too_large", with_login(*[(f"a{n}", 1) for n in range(1022)])),
    Span("1024 attributes", login(), with_login(*[(f"a{n}", 1) for n in range(1021)])),
    Span("1025 events", "span_too_large", with_login(more=b"\x5a\x00" * 1025)),
    Span("1025 links", "span_too_large", with_login(more=b"\x6a\x00" * 1025)),
    Span("a million elements", "span_too_large", with_login(("other", Encoded(field(5, b"\x0a\x00" * MEBIBYTE))))),
    Span("a million pairs", "span_too_large", with_login(("other", Encoded(field(6, b"\x0a\x00" * MEBIBYTE))))),
    Span("a value of 5 MiB", "span_too_large", with_login(("other", "x" * 5 * MEBIBYTE))),
    Span("a key of 4 MiB", login(), with_login(("metadata." + "k" * (4 * MEBIBYTE - 512), "x"))),
    Span("5 MiB of no event", "not_product_event", spelt({"other": "x" * 5 * MEBIBYTE})),
    kept(
        "near misses of every secret",
        {"a": ("1:a@." * 205)[:1024], "_truncated": ["event_metadata.a"]},
        ("metadata.a", "1:a@." * 100_000),
    ),
    # times
    Span("time 0", login(timestamp_us=0), with_login(start_ns=0, end_ns=0)),
    Span("the last time", login(timestamp_us=(2**64 - 1) // 1000), with_login(start_ns=2**64 - 1, end_ns=0)),
    Span(
        "end before start",
        {"table": "endpoint_usage", "endpoint": "/{id}", "method": "GET", "event_metadata": {}},
        spelt({"http.method": "GET", "http.target": "/17?x", "http.status_code": 1000}, kind=SERVER, end_ns=1),
    ),
    # resources
    Span("resource of noise", "malformed_resource", with_login(), resource=b"\xff\xff"),
    Span("resource of open groups", "malformed_resource", with_login(), resource=GROUP * 101),
    Span("resource of a million attributes", "span_too_large", with_login(), resource=b"\x0a\x00" * MEBIBYTE),
    Span(
        "resource of 1025 attributes",
        "span_too_large",
        with_login(),
        resource=resource_bytes({f"a{n}": 1 for n in range(1025)}),
    ),
    Span("resource of 5 MiB", "span_too_large", with_login(), resource=resource_bytes({"a": "x" * 5 * MEBIBYTE})),
    Span(
        "tenant of the resource", "invalid_organization_id", with_login(), resource=resource_bytes({"tenant.id": 1.5})
    ),
]


async def test_each_hostile_span_has_its_fate_and_costs_its_neighbours_nothing(
    kafka: KafkaBroker, receiver: Receiver
) -> None:
    """One span of a batch is wrong, and the batch is the work of hundreds of honest ones."""
    table = Table(kafka, receiver)
    async with receiver.channel() as channel:
        for number, case in enumerate(SPANS, 1):
            span_id = number.to_bytes(8, "big")
            before, after = features(2)
            good = [feature.span().SerializeToString() for feature in (before, after)]
            body = request_bytes((b"", good[:1]), (case.resource, [case.raw(span_id)]), (b"", good[1:]))
            answer = await export(channel, body)
            is_rejected = isinstance(case.becomes, str) and case.becomes != "not_product_event"
            expected = f"rejected 1 span: {case.becomes}=1" if is_rejected else ""
            table.expect(case.name, (answer.code, answer.text), ("OK", expected))
            table.stored += [before.value(), after.value()]
            if not isinstance(case.becomes, str):
                table.stored.append(value_of(span_id, case.becomes))
    await table.close()


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
async def test_each_hostile_span_has_the_same_fate_over_http(kafka: KafkaBroker, receiver: Receiver, kind: str) -> None:
    """What becomes of a span must not depend on how it came. JSON can say only what is UTF-8 and whole."""
    table = Table(kafka, receiver)
    cases = 0
    for number, case in enumerate(SPANS, 1 + (1000 if kind == PROTOBUF else 2000)):
        span_id = number.to_bytes(8, "big")
        good = features(1)
        raw = request_bytes((b"", [good[0].span().SerializeToString()]), (case.resource, [case.raw(span_id)]))
        if kind == JSON:
            try:
                body = otlp_json(raw)
            except (DecodeError, UnicodeDecodeError, ValueError, RecursionError):
                continue
            if len(body) > json_request.BYTES_MAX or body.count(b"{") > json_request.CONTAINERS_MAX:
                continue
        else:
            body = raw
        cases += 1
        answer = await post(receiver.http_port, body, kind=kind)
        is_rejected = isinstance(case.becomes, str) and case.becomes != "not_product_event"
        expected = f"rejected 1 span: {case.becomes}=1" if is_rejected else ""
        said = answer.response.partial_success.error_message if answer.status == 200 else answer.refusal.message
        table.expect(case.name, (answer.status, said), (200, expected))
        table.stored += [good[0].value()]
        if not isinstance(case.becomes, str):
            table.stored.append(value_of(span_id, case.becomes))
    assert cases >= (len(SPANS) if kind == PROTOBUF else 30), cases
    await receiver.idle()
    await table.close()


def value_of(span_id: bytes, becomes: Mapping[str, Any]) -> dict[str, Any]:
    """The whole record of a case, with what `span_bytes` gives a span where the case says nothing."""
    known = {
        "schema_version": 2,
        "id": str(Feature(TRACE, span_id).id),
        "trace_id": str(uuid.UUID(bytes=TRACE)),
        "weight": 1.0,
        "timestamp_us": 1_795_460_000_123_456,
        "deployment_type": "self-hosted",
    }
    return {**known, **becomes}


# ---- requests

RESOURCE_SPANS, SCOPE_SPANS = 1, 2


@dataclass(frozen=True)
class Body:
    """A request, given two good spans that it may hold, and its answer."""

    name: str
    code: str
    raw: Callable[[list[bytes]], bytes]
    is_stored: bool = False  # the two good spans
    compression: grpc.Compression = grpc.Compression.NoCompression


def plain(spans: Iterable[bytes]) -> bytes:
    return request_bytes((b"", list(spans)))


def logs_request(_: list[bytes]) -> bytes:
    """ExportLogsServiceRequest: the same numbers with other meanings."""
    log = b"\x09" + bytes(8) + b"\x10\x09" + field(5, field(1, b"body")) + field(6, key_value("feature.name", "x"))
    return field(1, field(1, resource_bytes({"service.name": "x"})) + field(2, field(2, log)))


BODIES = [
    Body("nothing", "OK", lambda _: b""),
    Body("noise", "INVALID_ARGUMENT", lambda _: b"\xff" * 500),
    Body("JSON", "INVALID_ARGUMENT", lambda _: b'{"resourceSpans":[]}'),
    Body("text", "INVALID_ARGUMENT", lambda _: b"hello, world"),
    Body("logs", "OK", logs_request),
    Body("truncated", "INVALID_ARGUMENT", lambda good: plain(good)[:-5]),
    Body("one byte more", "INVALID_ARGUMENT", lambda good: plain(good) + b"\x0a"),
    Body(
        "gzip in gzip", "INVALID_ARGUMENT", lambda good: gzip.compress(plain(good)), compression=grpc.Compression.Gzip
    ),
    Body("length of 11 bytes", "INVALID_ARGUMENT", lambda _: b"\x0a" + b"\xff" * 11),
    Body("length past the end", "INVALID_ARGUMENT", lambda good: b"\x0a\xff\x7f" + plain(good)[3:]),
    Body("open group", "INVALID_ARGUMENT", lambda good: plain(good) + GROUP),
    Body("200 groups in groups", "INVALID_ARGUMENT", lambda good: plain(good) + GROUP * 200 + GROUP_END * 200),
    Body("field number 0", "INVALID_ARGUMENT", lambda good: plain(good) + b"\x02\x00"),
    Body("resource spans as numbers", "OK", lambda good: b"\x08\x01" * 100 + plain(good), is_stored=True),
    Body("unknown fields", "OK", lambda good: plain(good) + field(77, b"x" * 1000), is_stored=True),
    Body("a group that closes", "OK", lambda good: plain(good) + GROUP + b"\x08\x01" + GROUP_END, is_stored=True),
    Body(
        "resource in two pieces",
        "OK",
        lambda good: field(
            1, field(1, b"") + field(2, b"".join(field(2, s) for s in good)) + field(1, resource_bytes({"a": 1}))
        ),
        is_stored=True,
    ),
    Body(
        "scope of noise",
        "OK",
        lambda good: field(1, field(2, field(1, b"\xff\xff") + b"".join(field(2, s) for s in good))),
        is_stored=True,
    ),
    Body(
        "padded lengths",
        "OK",
        lambda good: b"\x0a" + padded(field(2, b"".join(field(2, s) for s in good))),
        is_stored=True,
    ),
    Body("8 MiB of empty spans", "INVALID_ARGUMENT", lambda _: empty_spans(4 * MEBIBYTE - 8)),
    Body(
        "8 MiB of empty spans, zipped",
        "INVALID_ARGUMENT",
        lambda _: empty_spans(4 * MEBIBYTE - 8),
        compression=grpc.Compression.Gzip,
    ),
    Body("8 MiB of empty groups", "INVALID_ARGUMENT", lambda _: b"\x0a\x00" * (4 * MEBIBYTE - 8)),
    Body("8 MiB of empty scopes", "INVALID_ARGUMENT", lambda _: field(1, b"\x12\x00" * (4 * MEBIBYTE - 8))),
    Body("8 MiB of empty unknown fields", "INVALID_ARGUMENT", lambda _: b"\x1a\x00" * (4 * MEBIBYTE - 8)),
    Body("one span too many", "INVALID_ARGUMENT", lambda good: plain([*good, *[b""] * (SPANS_MAX - 1)])),
    Body("as many spans as may be", "OK", lambda good: plain([*good, *[b""] * (SPANS_MAX - 2)]), is_stored=True),
    Body("one byte over the limit", "RESOURCE_EXHAUSTED", lambda good: exactly(REQUEST_BYTES_MAX + 1, good)),
    Body(
        "one byte over the limit, zipped",
        "RESOURCE_EXHAUSTED",
        lambda good: exactly(REQUEST_BYTES_MAX + 1, good),
        compression=grpc.Compression.Gzip,
    ),
    Body("as many bytes as may be", "OK", lambda good: exactly(REQUEST_BYTES_MAX, good), is_stored=True),
    Body(
        "64 MiB of zeros, zipped",
        "RESOURCE_EXHAUSTED",
        lambda _: bytes(64 * MEBIBYTE),
        compression=grpc.Compression.Gzip,
    ),
    Body("the same span three times", "OK", lambda good: plain([*good, b"", b""]), is_stored=True),
]


def padded(payload: bytes) -> bytes:
    """With a length of five bytes, four of which say nothing."""
    size = len(payload)
    return bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, 128, 0]) + payload


def exactly(size: int, good: list[bytes]) -> bytes:
    head = plain(good)
    rest = size - len(head)
    return head + next(tail for filler in range(rest - 12, rest) if len(tail := field(77, bytes(filler))) == rest)


async def test_each_hostile_request_has_its_answer_and_the_others_theirs(
    kafka: KafkaBroker, receiver: Receiver
) -> None:
    """What is refused is refused for good or for now, truly; what is beside it is served meanwhile."""
    table = Table(kafka, receiver)
    async with receiver.channel() as channel, receiver.channel() as other:
        for case in BODIES:
            inside, beside = features(2), features(2)
            raw = case.raw([feature.span().SerializeToString() for feature in inside])
            answer, neighbour = await asyncio.gather(
                export(channel, raw, compression=case.compression), export(other, request(beside))
            )
            table.expect(case.name, (answer.code, answer.has_partial), (case.code, False))
            table.expect(f"{case.name}: when to come again", answer.retry_s, None)
            table.expect(f"beside {case.name}", neighbour.code, "OK")
            table.stored += [feature.value() for feature in (beside + inside if case.is_stored else beside)]
    await table.close()


# ---- the wire

GRPC_OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = "grpc 0", "grpc 3", "grpc 4", "grpc 8"
UNIMPLEMENTED, INTERNAL, UNAVAILABLE = "grpc 12", "grpc 13", "grpc 14"
ENDED = ("closed", "goaway", "reset")  # a connection, or a stream of it, ended: which, is the core's affair
NOT_SERVED = (*ENDED, "silence", INTERNAL)


@dataclass(frozen=True)
class Wire:
    """Bytes over a connection of their own, given the body of a request of two good spans, and what comes back."""

    name: str
    verdicts: tuple[str, ...]
    raw: Callable[[bytes], bytes]
    seconds: float = 20.0  # for a verdict; less where there may be none

    @property
    def is_stored(self) -> bool:
        return self.verdicts == (GRPC_OK,)


def call(body: bytes, **changed: str | None) -> bytes:
    return hello() + open_call(**changed) + body_frames(body)


def headers_of_megabytes(count: int) -> bytes:
    """By CONTINUATION, by a client that does not heed how much it may send."""
    piece = http2.fields([("x", "y" * 16_000)])
    start = frame(http2.HEADERS, http2.fields(http2.CALL.items()), stream=1)
    rest = frame(http2.CONTINUATION, piece, stream=1) * (count * MEBIBYTE // len(piece))
    return hello() + start + rest + frame(http2.CONTINUATION, flags=http2.END_HEADERS, stream=1) + body_frames(b"")


def bomb(mebibytes: int) -> bytes:
    """Zeros, a thousandth of their size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = bytes(MEBIBYTE)
    return b"".join(packer.compress(piece) for _ in range(mebibytes)) + packer.flush()


WIRES = [
    # not HTTP/2
    Wire("HTTP/1.1", ENDED, lambda _: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    Wire("OTLP/HTTP", ENDED, lambda b: b"POST /v1/traces HTTP/1.1\r\nContent-Length: 5\r\n\r\n" + b),
    Wire("noise", ENDED, lambda _: b"\xff" * 1000),
    Wire("TLS", ENDED, lambda _: bytes.fromhex("16030100a5010000a10303") + bytes(200)),
    Wire("half a preface", NOT_SERVED, lambda _: http2.PREFACE[:10], 0.3),
    # HTTP/2
    Wire("as it should be", (GRPC_OK,), lambda b: call(grpc_frame(b))),
    Wire("settings of three bytes", ENDED, lambda _: hello(b"abc"), 2),
    Wire(
        "window past its end", NOT_SERVED, lambda _: hello() + frame(http2.WINDOW_UPDATE, b"\x7f\xff\xff\xff") * 2, 0.3
    ),
    Wire("window of nothing", NOT_SERVED, lambda _: hello() + frame(http2.WINDOW_UPDATE, bytes(4)), 0.3),
    Wire("data for no stream", NOT_SERVED, lambda _: hello() + frame(http2.DATA, b"x"), 0.3),
    Wire("data for an idle stream", NOT_SERVED, lambda _: hello() + frame(http2.DATA, b"x", stream=5), 0.3),
    Wire("a stream of the server's", NOT_SERVED, lambda b: hello() + open_call(2) + body_frames(grpc_frame(b), 2), 0.3),
    Wire("a push", NOT_SERVED, lambda _: hello() + frame(http2.PUSH_PROMISE, bytes(8), flags=4, stream=1), 0.3),
    Wire(
        "a frame of 8 MiB",
        (*NOT_SERVED, UNAVAILABLE),
        lambda _: hello() + open_call() + (1 << 23).to_bytes(3) + b"\0\0\0\0\0\1" + bytes(MEBIBYTE),
        2,
    ),
    Wire(
        "frames of an unknown kind",
        (GRPC_OK,),
        lambda b: hello() + frame(0x77, b"abc") * 100 + open_call() + body_frames(grpc_frame(b)),
    ),
    Wire(
        "a header that was never told",
        NOT_SERVED,
        lambda _: hello() + frame(http2.HEADERS, b"\xff\xff\xff\xff\x0f", flags=5, stream=1),
        2,
    ),
    Wire(
        "a table of headers of gigabytes",
        NOT_SERVED,
        lambda _: hello() + frame(http2.HEADERS, b"\x3f\xff\xff\xff\x0f", flags=5, stream=1),
        2,
    ),
    Wire("headers of 64 MiB", (*NOT_SERVED, RESOURCE_EXHAUSTED), lambda _: headers_of_megabytes(64)),
    Wire(
        "20,000 continuations",
        NOT_SERVED,
        lambda _: hello() + open_call(flags=0) + frame(http2.CONTINUATION, stream=1) * 20_000,
        2,
    ),
    Wire("20,000 pings", NOT_SERVED, lambda _: hello() + frame(http2.PING, b"12345678") * 20_000, 2),
    Wire("20,000 settings", NOT_SERVED, lambda _: hello() + frame(http2.SETTINGS) * 20_000, 2),
    Wire(
        "5,000 streams, each reset at once",
        NOT_SERVED,
        lambda _: (
            hello() + b"".join(open_call(n) + frame(http2.RST_STREAM, bytes(4), stream=n) for n in range(1, 10_001, 2))
        ),
        3,
    ),
    # gRPC's headers
    Wire("no path", (UNIMPLEMENTED,), lambda b: call(grpc_frame(b), p_path=None)),
    Wire("another path", (UNIMPLEMENTED,), lambda b: call(grpc_frame(b), p_path="/v1/traces")),
    Wire("GET", ("http 405",), lambda b: call(grpc_frame(b), p_method="GET")),
    Wire("JSON", ("http 415",), lambda _: call(b"{}", content_type="application/json")),
    Wire("a deadline in words", (INTERNAL,), lambda b: call(grpc_frame(b), grpc_timeout="soon")),
    Wire(
        "a deadline of nothing",
        (DEADLINE_EXCEEDED, UNAVAILABLE, *ENDED),
        lambda b: call(grpc_frame(b), grpc_timeout="0m"),
    ),
    Wire("binary metadata that is none", (GRPC_OK,), lambda b: call(grpc_frame(b), x_bin="%%%")),
    Wire("a path that is no UTF-8", (UNIMPLEMENTED,), lambda b: call(grpc_frame(b), p_path="/\xff")),
    Wire("a key that is no UTF-8", (GRPC_OK,), lambda b: call(grpc_frame(b), x_api_key="\xff\xfe")),
    Wire("snappy", (UNIMPLEMENTED,), lambda b: call(grpc_frame(b, flag=1), grpc_encoding="snappy")),
    Wire(
        "zstd",
        (GRPC_OK,),
        lambda b: call(grpc_frame(bytes(cramjam.zstd.compress(b)), flag=1), grpc_encoding="zstd"),
    ),
    Wire("zstd and is not", (INVALID_ARGUMENT,), lambda b: call(grpc_frame(b, flag=1), grpc_encoding="zstd")),
    # gRPC's frames
    Wire("headers and no more", (INVALID_ARGUMENT,), lambda _: hello() + open_call(flags=5)),
    Wire("no frame", (INVALID_ARGUMENT,), lambda _: call(b"")),
    Wire("half a length", (INVALID_ARGUMENT,), lambda _: call(b"\0\0\0")),
    Wire("longer than its body", (INVALID_ARGUMENT, INTERNAL), lambda b: call(grpc_frame(b, size=len(b) + 1))),
    Wire("4 GiB long", (RESOURCE_EXHAUSTED,), lambda b: call(grpc_frame(b, size=2**32 - 1))),
    Wire("two in one call", (GRPC_OK,), lambda b: call(grpc_frame(b) * 2)),
    Wire("a rest", (GRPC_OK,), lambda b: call(grpc_frame(b) + b"\0\0\0")),
    Wire("zipped and does not say how", (UNIMPLEMENTED,), lambda b: call(grpc_frame(gzip.compress(b), flag=1))),
    Wire("says zipped and is not", (INVALID_ARGUMENT,), lambda b: call(grpc_frame(b, flag=1), grpc_encoding="gzip")),
    Wire(
        "zipped and cut",
        (INVALID_ARGUMENT,),
        lambda b: call(grpc_frame(gzip.compress(b)[:-12], flag=1), grpc_encoding="gzip"),
    ),
    Wire("may zip and does not", (GRPC_OK,), lambda b: call(grpc_frame(b), grpc_encoding="gzip")),
    Wire("zipped", (GRPC_OK,), lambda b: call(grpc_frame(gzip.compress(b), flag=1), grpc_encoding="gzip")),
    Wire("deflated", (GRPC_OK,), lambda b: call(grpc_frame(zlib.compress(b), flag=1), grpc_encoding="deflate")),
    Wire(
        "60 MiB of zeros in 60 KiB",
        (RESOURCE_EXHAUSTED,),
        lambda _: call(grpc_frame(bomb(60), flag=1), grpc_encoding="gzip"),
    ),
    Wire(
        "half a body, then a reset",
        NOT_SERVED,
        lambda b: (
            hello()
            + open_call()
            + body_frames(grpc_frame(b)[:20], ends=False)
            + frame(http2.RST_STREAM, bytes(4), stream=1)
        ),
        0.3,
    ),
    Wire(
        "half a body, then nothing",
        (UNAVAILABLE,),
        lambda b: hello() + open_call() + body_frames(grpc_frame(b)[:20], ends=False),
    ),
    Wire("200 calls without a body", ("reset",), lambda _: hello() + b"".join(open_call(n) for n in range(1, 401, 2))),
]


async def test_each_hostile_connection_is_answered_or_ended_and_the_others_are_served(
    kafka: KafkaBroker, receiver: Receiver
) -> None:
    """Whoever reaches the port can send this, with a key or without."""
    table = Table(kafka, receiver)
    async with receiver.channel() as other:
        for case in WIRES:
            inside, beside = features(2), features(2)
            raw = case.raw(request(inside))
            heard, neighbour = await asyncio.gather(
                http2.heard(receiver.port, raw, case.seconds), export(other, request(beside))
            )
            if heard.verdict not in case.verdicts:
                table.failures.append(f"{case.name}: {heard.verdict}")
            table.expect(f"beside {case.name}", neighbour.code, "OK")
            table.stored += [feature.value() for feature in (beside + inside if case.is_stored else beside)]
    await receiver.idle()
    await table.close()


def test_the_table_is_as_long_as_it_was_promised() -> None:
    """Sixty at least, and none of them twice."""
    names = [(type(case), case.name) for case in (*SPANS, *BODIES, *WIRES)]
    assert len(names) == len(set(names)) >= 60
