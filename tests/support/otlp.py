"""OTLP requests from the test's own description, and the record each span must become. No product code."""

import hashlib
import random
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

START_NS = 1_795_460_000_123_456_789
_KINDS: dict[type, str] = {bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value"}


@dataclass(frozen=True)
class Feature:
    """A span that uses a feature: as sent, and as stored."""

    trace_id: bytes
    span_id: bytes
    name: str = "export"
    action: str | None = "created"
    user: str | None = "42"
    filler: str = ""

    @property
    def id(self) -> uuid.UUID:
        return event_id(self.trace_id, self.span_id)

    def span(self) -> Span:
        attributes = {"feature.name": self.name, "feature.action": self.action, "user.id": self.user}
        return span(self.trace_id, self.span_id, {**attributes, "metadata.filler": self.filler or None})

    def value(self) -> dict[str, Any]:
        """The record's value, with the defaults of the settings."""
        fields = {
            "schema_version": 2,
            "table": "feature_usage",
            "id": str(self.id),
            "timestamp_us": START_NS // 1000,
            "deployment_type": "self-hosted",
            "user_id": self.user and hashlib.sha256(self.user.encode()).hexdigest()[:16],
            "trace_id": str(uuid.UUID(bytes=self.trace_id)),
            "weight": 1.0,
            "feature_name": self.name,
            "action": self.action,
            "event_metadata": {"filler": self.filler} if self.filler else {},
        }
        return {name: value for name, value in fields.items() if value is not None}


def features(count: int, *, seed: int | None = None, **fields: Any) -> list[Feature]:
    random_ = random.Random(seed)
    return [Feature(random_.randbytes(16), random_.randbytes(8), **fields) for _ in range(count)]


def event_id(trace_id: bytes, span_id: bytes) -> uuid.UUID:
    """As the table of columns describes it, in the plainest form."""
    digest = bytearray(hashlib.sha256(trace_id + span_id).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return uuid.UUID(bytes=bytes(digest))


def span(trace_id: bytes, span_id: bytes, attributes: Mapping[str, Any], **fields: Any) -> Span:
    """Attributes of None are left out."""
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        name="work",
        start_time_unix_nano=START_NS,
        end_time_unix_nano=START_NS + 5_000_000,
        attributes=key_values(attributes),
        **fields,
    )


def key_values(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [
        KeyValue(key=key, value=AnyValue(**{_KINDS.get(type(value), "string_value"): value}))
        for key, value in attributes.items()
        if value is not None
    ]


def request(spans: Iterable[Span | Feature], resource: Mapping[str, Any] | None = None) -> bytes:
    """One request with one resource."""
    sent = [each.span() if isinstance(each, Feature) else each for each in spans]
    group = ResourceSpans(
        resource=Resource(attributes=key_values(resource or {})), scope_spans=[ScopeSpans(spans=sent)]
    )
    return ExportTraceServiceRequest(resource_spans=[group]).SerializeToString()


def empty_spans(count: int) -> bytes:
    """A request of spans of no bytes: two bytes each on the wire, a hundred in memory."""
    spans = b"\x12\x00" * count
    return _field(1, _field(2, spans))


def _field(number: int, payload: bytes) -> bytes:
    size, length = len(payload), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload
