"""OTLP in JSON becomes the same request as in protobuf; what is wrong costs its span, or the request."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from receiver.decode import json_request
from receiver.decode.json_request import TooLargeJson, reading
from receiver.decode.spans import MalformedRequest, read_request
from support.http import otlp_json
from support.otlp import features, request, span


def protobuf_of(body: bytes | dict[str, Any]) -> bytes:
    work = reading(json.dumps(body).encode() if isinstance(body, dict) else body)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return bytes(end.value)


def sent(**fields: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": [fields]}]}]}


def span_of(**fields: Any) -> Span:
    [group] = read_request(protobuf_of(sent(**fields)), spans_max=10)
    return Span.FromString(group.spans[0])


VALUES = st.recursive(
    st.one_of(
        st.builds(AnyValue, string_value=st.text(max_size=20)),
        st.builds(AnyValue, bool_value=st.booleans()),
        st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
        st.builds(AnyValue, double_value=st.floats(allow_nan=False)),
        st.builds(AnyValue, bytes_value=st.binary(max_size=20)),
    ),
    lambda inner: st.one_of(
        st.builds(AnyValue, array_value=st.builds(ArrayValue, values=st.lists(inner, max_size=3))),
        st.builds(
            AnyValue,
            kvlist_value=st.builds(
                KeyValueList, values=st.lists(st.builds(KeyValue, key=st.text(max_size=5), value=inner), max_size=3)
            ),
        ),
    ),
    max_leaves=8,
)


@given(
    st.lists(
        st.builds(
            Span,
            trace_id=st.binary(min_size=16, max_size=16),
            span_id=st.binary(min_size=8, max_size=8),
            parent_span_id=st.binary(max_size=8),
            trace_state=st.text(max_size=10),
            name=st.text(max_size=20),
            kind=st.integers(0, 5),
            start_time_unix_nano=st.integers(0, 2**64 - 1),
            end_time_unix_nano=st.integers(0, 2**64 - 1),
            flags=st.integers(0, 2**32 - 1),
            attributes=st.lists(st.builds(KeyValue, key=st.text(max_size=10), value=VALUES), max_size=4),
            events=st.lists(st.builds(Span.Event, name=st.text(max_size=5)), max_size=2),
            links=st.lists(st.builds(Span.Link, trace_id=st.binary(min_size=16, max_size=16)), max_size=2),
        ),
        max_size=3,
    )
)
def test_a_request_is_the_same_in_json(spans: list[Span]) -> None:
    """Every field of the published messages, every kind of value."""
    body = request(spans, {"service.name": "shop"})
    ours = ExportTraceServiceRequest.FromString(protobuf_of(otlp_json(body)))
    assert ours.SerializeToString(deterministic=True) == ExportTraceServiceRequest.FromString(body).SerializeToString(
        deterministic=True
    )


def test_ids_are_hex_and_numbers_may_be_texts() -> None:
    """Protobuf's own JSON has ids in base64, which nobody sends; browsers have no 64-bit integers."""
    found = span_of(
        traceId="0AF7651916CD43DD8448EB211C80319C",
        spanId="b7ad6b7169203331",
        kind=2,
        startTimeUnixNano="18446744073709551615",
        endTimeUnixNano=5,
        attributes=[
            {"key": "a", "value": {"intValue": "-9223372036854775808"}},
            {"key": "b", "value": {"intValue": 7}},
            {"key": "c", "value": {"doubleValue": "NaN"}},
            {"key": "d", "value": {"bytesValue": base64.b64encode(b"\xff").decode()}},
            {"key": "e", "value": None},
        ],
        unknownField={"anything": [1]},
    )
    assert (found.trace_id.hex(), found.span_id.hex()) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert (found.kind, found.start_time_unix_nano, found.end_time_unix_nano) == (2, 2**64 - 1, 5)
    values = [attribute.value for attribute in found.attributes]
    assert (values[0].int_value, values[1].int_value) == (-(2**63), 7)
    assert span_of(kind="SPAN_KIND_SERVER").kind == 2
    assert span_of(trace_id="0a").trace_id == b"\x0a"  # protobuf's own names are taken as well


@pytest.mark.parametrize(
    "fields",
    [
        {"traceId": 5},
        {"startTimeUnixNano": -1},
        {"startTimeUnixNano": "soon"},
        {"startTimeUnixNano": 2**64},
        {"kind": 2**31},
        {"name": 5},
        {"attributes": {}},
        {"attributes": [5]},
        {"attributes": [{"key": "a", "value": {"intValue": 1.5}}]},
        {"attributes": [{"key": "a", "value": {"boolValue": 1}}]},
        {"attributes": [{"key": "a", "value": {"bytesValue": "%"}}]},
    ],
)
def test_a_span_that_is_none_costs_no_neighbour(fields: dict[str, Any]) -> None:
    """One broken sender behind a proxy must not cost the others' spans."""
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "before"}, fields, {"name": "after"}]}]}]}
    [group] = read_request(protobuf_of(body), spans_max=10)
    assert [Span.FromString(raw).name for raw in (group.spans[0], group.spans[2])] == ["before", "after"]
    assert group.spans[1] == b"\xff"


@pytest.mark.parametrize("text", ["not hex at all, and long", "sixteen letters!", "8letters"])
def test_an_id_that_is_no_hex_rejects_its_span_by_that_reason(text: str) -> None:
    """`invalid_trace_id` says what to correct; `malformed_span` would not. No text may pass as the bytes of an id."""
    parsed = span_of(traceId=text, spanId=text)
    assert len(parsed.trace_id) not in (0, 16)
    assert len(parsed.span_id) not in (0, 8)


DEEP = '{"arrayValue":{"values":[' * 300 + '{"intValue":1}' + "]}}" * 300


def test_a_value_nested_without_end_costs_its_span() -> None:
    """Deeper than Python counts, and deeper than protobuf reads."""
    body = json.dumps(sent(attributes=[{"key": "a", "value": "HERE"}])).replace('"HERE"', DEEP).encode()
    [group] = read_request(protobuf_of(body), spans_max=10)
    assert len(group.spans) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b"\xff",
        b'{"resourceSpans":5}',
        b'{"resourceSpans":[5]}',
        b'{"resourceSpans":[{"scopeSpans":{}}]}',
        b'{"resourceSpans":[{"resource":5}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_request_is_malformed(body: bytes) -> None:
    """Told for good: sent again it would be the same."""
    with pytest.raises(MalformedRequest):
        protobuf_of(body)


def test_an_empty_request_is_empty() -> None:
    """An SDK sends one at its end."""
    for body in (b"{}", b'{"resourceSpans":[]}', b'{"resourceSpans":null}'):
        assert protobuf_of(body) == b""


def test_json_that_would_fill_the_memory_is_not_parsed() -> None:
    """A byte or two of an array are 64 in memory."""
    for body in (b'{"a":[' + b"[]," * json_request.CONTAINERS_MAX + b"[]]}", b" " * (json_request.BYTES_MAX + 1)):
        with pytest.raises(TooLargeJson):
            protobuf_of(body)


def test_large_requests_are_read_in_steps() -> None:
    """Between two of them other requests are served."""
    body = otlp_json(request([*features(500), span(b"\1" * 16, b"\2" * 8, {})]))
    assert sum(1 for _ in reading(body)) > 10
