"""Spans by hand: protobuf written byte for byte, so that a span may be as wrong as a test wants it."""

import struct
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from receiver.decode.spans import ResourceSpans
from receiver.translate.attributes import Notes
from receiver.translate.engines.reference import read_resource, translate
from receiver.translate.identity import Traces
from receiver.translate.outcome import Outcome
from receiver.translate.rules import Rules
from shared.identity import Hasher
from support.engines import Answers, answers_by, engines

TRACE_ID = bytes.fromhex("0af7651916cd43dd8448eb211c80319c")
SPAN_ID = bytes.fromhex("b7ad6b7169203331")
ID = "e2681862-d99e-887f-8991-ca7edf58cbce"  # of these two
START_NS = 1_795_460_000_123_456_789
END_NS = START_NS + 12_500_000
SERVER, CLIENT = 2, 3

Attributes = Mapping[str, Any] | Iterable[tuple[str | bytes, Any]]


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def any_value(value: Any) -> bytes:  # noqa: C901  a case a type
    """None is a value with nothing set; Text is a string of any bytes."""
    match value:
        case None:
            return b""
        case Text():
            return field(1, value)
        case str():
            return field(1, value.encode())
        case bool():
            return b"\x10" + varint(value)
        case int():
            return b"\x18" + varint(value)
        case float():
            return b"\x21" + struct.pack("<d", value)
        case bytes():
            return field(7, value)
        case list():
            return field(5, b"".join(field(1, any_value(one)) for one in value))
        case dict():
            return field(6, b"".join(field(1, key_value(key, one)) for key, one in value.items()))
        case Encoded():
            return value.raw
    raise TypeError(value)


class Text(bytes):
    """A string value that need not be UTF-8."""


class Encoded:
    """A value that is encoded already."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw


def key_value(key: str | bytes, value: Any) -> bytes:
    return field(1, key.encode() if isinstance(key, str) else key) + field(2, any_value(value))


def pairs(attributes: Attributes) -> list[tuple[str | bytes, Any]]:
    return list(attributes.items() if isinstance(attributes, Mapping) else attributes)


def span_bytes(
    attributes: Attributes = (),
    *,
    kind: int = 1,
    trace_id: bytes = TRACE_ID,
    span_id: bytes = SPAN_ID,
    start_ns: int = START_NS,
    end_ns: int = END_NS,
    parent: bytes = b"",
    name: bytes = b"work",
    trace_state: bytes = b"",
    more: bytes = b"",
) -> bytes:
    return b"".join(
        [
            field(1, trace_id),
            field(2, span_id),
            *([field(3, trace_state)] if trace_state else []),
            *([field(4, parent)] if parent else []),
            field(5, name),
            b"\x30" + varint(kind),
            b"\x39" + struct.pack("<Q", start_ns),
            b"\x41" + struct.pack("<Q", end_ns),
            *(field(9, key_value(key, value)) for key, value in pairs(attributes)),
            more,
        ]
    )


def resource_bytes(attributes: Attributes = ()) -> bytes:
    return b"".join(field(1, key_value(key, value)) for key, value in pairs(attributes))


def request_bytes(*groups: tuple[bytes, list[bytes]]) -> bytes:
    """resource_spans of (resource, spans)."""
    return b"".join(
        field(1, field(1, resource) + field(2, b"".join(field(2, span) for span in spans)))
        for resource, spans in groups
    )


PLAIN = Rules(hashed=Hasher("hash"))


def rules(**settings: Any) -> Rules:
    return Rules(**{"hashed": Hasher("hash"), **settings})


def translated(raw: bytes, resource: bytes = b"", by: Rules = PLAIN, notes: Notes | None = None) -> Outcome:
    """The outcome by the reference. What is served must be the same, byte for byte, as often as it is asked for."""
    traces = traces_of([ResourceSpans(resource, [raw])], by)
    found = translate(raw, read_resource(resource, by), by, traces=traces, notes=notes)
    expected = Answers.of([found])
    for engine in engines(by):
        for _ in range(1 if engine.name == "python" else 2):  # the reference has just been asked
            assert answers_by(engine, request_bytes((resource, [raw]))) == expected, (engine.name, raw, resource)
    return found


def traces_of(groups: list[ResourceSpans], by: Rules) -> Traces:
    traces = Traces(by)
    for _ in traces.read(groups):
        pass
    return traces


def outcome(
    attributes: Attributes = (),
    *,
    resource: Attributes = (),
    by: Rules = PLAIN,
    notes: Notes | None = None,
    **span: Any,
) -> Outcome:
    return translated(span_bytes(attributes, **span), resource_bytes(resource), by, notes)


LOGIN = {"event.category": "user_activity", "event.type": "login", "user.id": "42"}


def metadata(attributes: Attributes = (), *, resource: Attributes = (), by: Rules = PLAIN) -> dict[str, Any]:
    """The event_metadata of a login with these attributes."""
    event = outcome([*LOGIN.items(), *pairs(attributes)], resource=resource, by=by)
    found: dict[str, Any] = event.event_metadata  # type: ignore[union-attr]
    return found


def batch(spans: int, *, path: str, filler: str = "") -> bytes:
    """Server spans whose every value is new, as one sender's batch."""
    made = []
    for number in range(spans):
        attributes = {
            "http.request.method": "GET",
            "url.path": path.format(number),
            "http.response.status_code": 200,
            "user.id": uuid.uuid4().hex,
            "session.id": uuid.uuid4().hex,
            "metadata.note": f"note {uuid.uuid4().hex}{filler}",
        }
        made.append(span_bytes(attributes, kind=SERVER, span_id=(number + 1).to_bytes(8, "big")))
    return request_bytes((resource_bytes({"service.name": "shop"}), made))
