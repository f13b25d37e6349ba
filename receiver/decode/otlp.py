"""OTLP's messages as this service reads them: the same wire, bytes where OTLP has strings. Pure.

Protobuf refuses a whole message for one string of bad UTF-8, and some senders truncate strings in the middle of a
character. Bytes need no check, and each value is decoded where it is used, as strictly as that use needs. Fields that
nothing reads (scopes, states, the content of span events and links) are not declared, so protobuf skips them. A unit
test compares every field with the published descriptors.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "telemetry_processor.otlp"

SPAN_KIND_SERVER = 2

ValueKind = Literal[
    "string_value", "bool_value", "int_value", "double_value", "array_value", "kvlist_value", "bytes_value"
]


class AnyValue(Protocol):
    string_value: bytes
    bool_value: bool
    int_value: int
    double_value: float
    array_value: "ArrayValue"
    kvlist_value: "KeyValueList"
    bytes_value: bytes

    def WhichOneof(self, oneof_group: Literal["value"], /) -> ValueKind | None: ...  # noqa: N802  protobuf's name


class KeyValue(Protocol):
    key: bytes
    value: AnyValue


class ArrayValue(Protocol):
    values: Sequence[AnyValue]


class KeyValueList(Protocol):
    values: Sequence[KeyValue]


class Span(Protocol):
    trace_id: bytes
    span_id: bytes
    trace_state: bytes
    parent_span_id: bytes
    name: bytes
    kind: int
    start_time_unix_nano: int
    end_time_unix_nano: int
    attributes: Sequence[KeyValue]
    events: Sequence[bytes]  # counted, never parsed
    links: Sequence[bytes]  # counted, never parsed


class Link(Protocol):
    """Only the ids of a span: of its trace, of itself and of its parent."""

    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes


class Resource(Protocol):
    attributes: Sequence[KeyValue]


class ScopeSpans(Protocol):
    spans: Sequence[bytes]


class ResourceSpans(Protocol):
    resource: Sequence[bytes]  # a message sent in parts: the joined bytes parse as the merged message
    scope_spans: Sequence[ScopeSpans]


class Request(Protocol):
    resource_spans: Sequence[ResourceSpans]


# message -> field -> (number, type); a list is a repeated field, a text is the name of a message.
SCHEMA: dict[str, dict[str, tuple[int, Any]]] = {
    "AnyValue": {
        "string_value": (1, _Field.TYPE_BYTES),
        "bool_value": (2, _Field.TYPE_BOOL),
        "int_value": (3, _Field.TYPE_INT64),
        "double_value": (4, _Field.TYPE_DOUBLE),
        "array_value": (5, "ArrayValue"),
        "kvlist_value": (6, "KeyValueList"),
        "bytes_value": (7, _Field.TYPE_BYTES),
    },
    "ArrayValue": {"values": (1, ["AnyValue"])},
    "KeyValueList": {"values": (1, ["KeyValue"])},
    "KeyValue": {"key": (1, _Field.TYPE_BYTES), "value": (2, "AnyValue")},
    "Span": {
        "trace_id": (1, _Field.TYPE_BYTES),
        "span_id": (2, _Field.TYPE_BYTES),
        "trace_state": (3, _Field.TYPE_BYTES),
        "parent_span_id": (4, _Field.TYPE_BYTES),
        "name": (5, _Field.TYPE_BYTES),
        "kind": (6, _Field.TYPE_INT32),  # an open enum on the wire
        "start_time_unix_nano": (7, _Field.TYPE_FIXED64),
        "end_time_unix_nano": (8, _Field.TYPE_FIXED64),
        "attributes": (9, ["KeyValue"]),
        "events": (11, [_Field.TYPE_BYTES]),
        "links": (13, [_Field.TYPE_BYTES]),
    },
    "Link": {
        "trace_id": (1, _Field.TYPE_BYTES),
        "span_id": (2, _Field.TYPE_BYTES),
        "parent_span_id": (4, _Field.TYPE_BYTES),
    },
    "Resource": {"attributes": (1, ["KeyValue"])},
    "ScopeSpans": {"spans": (2, [_Field.TYPE_BYTES])},
    "ResourceSpans": {"resource": (1, [_Field.TYPE_BYTES]), "scope_spans": (2, ["ScopeSpans"])},
    "Request": {"resource_spans": (1, ["ResourceSpans"])},
}


def _declare(name: str, file: descriptor_pb2.FileDescriptorProto) -> None:
    message = file.message_type.add(name=name)
    for field_name, (number, type_) in SCHEMA[name].items():
        is_repeated = isinstance(type_, list)
        (plain,) = type_ if isinstance(type_, list) else (type_,)
        field = message.field.add(
            name=field_name,
            number=number,
            label=_Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL,
            type=_Field.TYPE_MESSAGE if isinstance(plain, str) else plain,
        )
        if isinstance(plain, str):
            field.type_name = f".{_PACKAGE}.{plain}"
        if name == "AnyValue":
            field.oneof_index = 0
    if name == "AnyValue":
        message.oneof_decl.add(name="value")


def _compiled() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="telemetry_processor/otlp.proto", package=_PACKAGE, syntax="proto3")
    for name in SCHEMA:
        _declare(name, file)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in SCHEMA}


MESSAGES = _compiled()


def parse_request(body: bytes) -> Request:
    """Parse the outer message. Like every `parse_` function here, raises google.protobuf.message.DecodeError."""
    return cast("Request", MESSAGES["Request"].FromString(body))


def request_of(groups: Iterable[tuple[bytes, Sequence[bytes]]]) -> bytes:
    """Encode resources and their spans as a request."""
    fields = [{"resource": [resource], "scope_spans": [{"spans": spans}]} for resource, spans in groups]
    written: bytes = MESSAGES["Request"](resource_spans=fields).SerializeToString()
    return written


def parse_resource(raw: bytes) -> Resource:
    return cast("Resource", MESSAGES["Resource"].FromString(raw))


_span_of = MESSAGES["Span"].FromString
_link_of = MESSAGES["Link"].FromString


def parse_span(raw: bytes) -> Span:
    return cast("Span", _span_of(raw))


def parse_link(raw: bytes) -> Link:
    return cast("Link", _link_of(raw))
