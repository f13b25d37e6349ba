"""OTLP's JSON -> the same request as protobuf bytes. Pure: follows the published descriptors.

OTLP's JSON differs from protobuf's own JSON in two ways: ids are hex, and enums are numbers. A malformed span becomes
bytes that protobuf refuses too, so that only this span is rejected.
"""

import base64
import binascii
import struct
from collections.abc import Callable, Generator
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from opentelemetry.proto.trace.v1 import trace_pb2

from receiver.decode.spans import MalformedRequest
from shared.errors import Permanent

BYTES_MAX = 8 * 1024 * 1024  # takes 80 ms to parse, and the parser cannot be interrupted
CONTAINERS_MAX = 400_000  # arrays and objects: one or two bytes each in the text, 200 bytes each in memory
SPANS_A_STEP = 32

_HEX_NAMES = {"trace_id", "span_id", "parent_span_id"}
_MALFORMED_SPAN = b"\xff"
_BAD_ID = b"\xff"
_MALFORMED = "not an ExportTraceServiceRequest in JSON"
_Value = Callable[[Any], bytes]


class TooLargeJson(Permanent):
    """More JSON than is parsed at once."""


class _Misfit(Exception):  # noqa: N818  names the value, not an error
    """A value has another type than its field."""


def reading(body: bytes) -> Generator[None, None, bytes]:
    """Convert a JSON request to protobuf, in steps of some milliseconds; the generator returns the bytes.

    Raises:
        MalformedRequest: the bytes are no ExportTraceServiceRequest in JSON.
        TooLargeJson: above BYTES_MAX, or more than CONTAINERS_MAX arrays and objects.
    """
    if len(body) > BYTES_MAX or body.count(b"{") + body.count(b"[") > CONTAINERS_MAX:
        raise TooLargeJson
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise MalformedRequest(_MALFORMED) from None
    return (yield from written(request))


def written(request: Any) -> Generator[None, None, bytes]:
    """Convert a request that is parsed already, as `reading` does.

    Raises:
        MalformedRequest: the value is no ExportTraceServiceRequest.
    """
    try:
        return (yield from _request(request if isinstance(request, dict) else _misfit()))
    except (_Misfit, RecursionError):
        raise MalformedRequest(_MALFORMED) from None


def _request(request: dict[str, Any]) -> Generator[None, None, bytes]:
    groups = []
    for group in _listed(request, "resourceSpans", "resource_spans"):
        scopes = []
        for scope in _listed(group, "scopeSpans", "scope_spans"):
            spans = _listed(scope, "spans", "spans")
            pieces = []
            for number, span in enumerate(spans, 1):
                pieces.append(_field(2, _span(span)))
                if number % SPANS_A_STEP == 0:
                    yield
            rest = {name: value for name, value in scope.items() if name != "spans"}
            scopes.append(_field(2, _SCOPE_SPANS(rest) + b"".join(pieces)))
        rest = {name: value for name, value in group.items() if name not in ("scopeSpans", "scope_spans")}
        groups.append(_field(1, _RESOURCE_SPANS(rest) + b"".join(scopes)))
        yield
    return b"".join(groups)


def _listed(message: Any, name: str, other_name: str) -> list[dict[str, Any]]:
    found = message.get(name, message.get(other_name)) if isinstance(message, dict) else _misfit()
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise _Misfit
    return found


def _span(span: dict[str, Any]) -> bytes:
    try:
        return _SPAN(span)
    except (_Misfit, RecursionError):
        return _MALFORMED_SPAN


def _misfit() -> Any:
    raise _Misfit


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


# ---- a writer for each message, made of its descriptor

_writers: dict[str, Callable[[dict[str, Any]], bytes]] = {}


def _writer_of(message: Descriptor | None) -> Callable[[dict[str, Any]], bytes]:
    assert message is not None
    if message.full_name in _writers:
        return _writers[message.full_name]
    fields: dict[str, tuple[bytes, _Value, bool]] = {}

    def write(value: dict[str, Any]) -> bytes:
        if not isinstance(value, dict):
            raise _Misfit
        out = []
        for name, held in value.items():
            field = fields.get(name)
            if field is None or held is None:
                continue
            tag, write_value, is_repeated = field
            if is_repeated:
                if not isinstance(held, list):
                    raise _Misfit
                out += [tag + write_value(each) for each in held]
            else:
                out.append(tag + write_value(held))
        return b"".join(out)

    _writers[message.full_name] = write
    for field in message.fields:
        wire_type, write_value = _value_of(field)
        entry = (_varint(field.number << 3 | wire_type), write_value, field.is_repeated)
        fields[field.json_name] = fields[field.name] = entry
    return write


def _value_of(field: FieldDescriptor) -> tuple[int, _Value]:  # noqa: PLR0911  one line a type
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            write = _writer_of(field.message_type)
            return 2, lambda value: _sized(write(value))
        case FieldDescriptor.TYPE_STRING:
            return 2, lambda value: _sized(value.encode()) if isinstance(value, str) else _misfit()
        case FieldDescriptor.TYPE_BYTES:
            return 2, _id if field.name in _HEX_NAMES else _base64
        case FieldDescriptor.TYPE_BOOL:
            return 0, lambda value: (b"\1" if value else b"\0") if isinstance(value, bool) else _misfit()
        case FieldDescriptor.TYPE_DOUBLE:
            return 1, lambda value: struct.pack("<d", _number(value))
        case FieldDescriptor.TYPE_FIXED64:
            return 1, lambda value: struct.pack("<Q", _integer(value, 0, 2**64 - 1))
        case FieldDescriptor.TYPE_FIXED32:
            return 5, lambda value: struct.pack("<I", _integer(value, 0, 2**32 - 1))
        case FieldDescriptor.TYPE_ENUM:
            assert field.enum_type is not None
            names = {each.name: each.number for each in field.enum_type.values}
            return 0, lambda value: _varint(_integer(names.get(value, value), -(2**31), 2**31 - 1) % 2**64)
        case _:
            return 0, lambda value: _varint(_integer(value, -(2**63), 2**64 - 1) % 2**64)


def _sized(payload: bytes) -> bytes:
    return _varint(len(payload)) + payload


def _id(value: Any) -> bytes:
    """Decode hex. Other text becomes one byte: no id has that length, so the span is rejected for its id."""
    try:
        return _sized(binascii.unhexlify(value)) if isinstance(value, str) else _misfit()
    except ValueError:
        return _sized(_BAD_ID)


def _base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise _Misfit
    try:
        return _sized(
            base64.b64decode(value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4), validate=True)
        )
    except ValueError:
        raise _Misfit from None


def _integer(value: Any, least: int, most: int) -> int:
    try:
        number = int(value) if isinstance(value, str) or (isinstance(value, float) and value.is_integer()) else value
    except ValueError:
        raise _Misfit from None
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
        raise _Misfit
    return number


def _number(value: Any) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise _Misfit
        return float(value)
    except (ValueError, OverflowError):
        raise _Misfit from None


_RESOURCE_SPANS, _SCOPE_SPANS, _SPAN = (
    _writer_of(message.DESCRIPTOR) for message in (trace_pb2.ResourceSpans, trace_pb2.ScopeSpans, trace_pb2.Span)
)
