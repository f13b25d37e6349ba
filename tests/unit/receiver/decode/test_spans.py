"""request bytes -> spans: one span's bytes harm no other, and no request makes more objects than it may."""

import time
import tracemalloc
from collections.abc import Callable

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from receiver.decode import scan
from receiver.decode.spans import MalformedRequest, ResourceSpans, TooManySpans, read_request
from support.encoding import field, request_bytes, resource_bytes, span_bytes, varint

MIB = 1024 * 1024


def test_spans_come_by_resource_in_the_order_sent() -> None:
    """The resource's attributes belong to each of its spans, whatever scope they were recorded under."""
    one, two, three = (span_bytes({"n": n}) for n in range(3))
    shop, web = resource_bytes({"service.name": "shop"}), resource_bytes({"service.name": "web"})
    scopes = field(2, field(2, one)) + field(2, field(1, b"") + field(2, two))
    body = field(1, field(1, shop) + scopes) + request_bytes((web, [three]))
    assert read_request(body, spans_max=10) == [ResourceSpans(shop, [one, two]), ResourceSpans(web, [three])]


def test_our_reading_agrees_with_the_published_classes() -> None:
    """The schema is our own: it has to mean what everybody else's means."""
    body = request_bytes((resource_bytes({"a": "b"}), [span_bytes({"c": 1}), span_bytes({"d": [1.5]})]))
    published = ExportTraceServiceRequest.FromString(body)
    (group,) = read_request(published.SerializeToString(), spans_max=10)
    assert group.resource == published.resource_spans[0].resource.SerializeToString()
    assert group.spans == [span.SerializeToString() for span in published.resource_spans[0].scope_spans[0].spans]


def test_an_empty_request_is_a_request() -> None:
    """OTLP: an empty request is a success."""
    assert read_request(b"", spans_max=10) == []
    assert read_request(request_bytes((b"", [])), spans_max=10) == []


def test_a_resource_in_pieces_is_merged() -> None:
    """Protobuf's rule for a message that is sent twice; a last-wins reading would lose the first half."""
    body = field(1, field(1, b"one") + field(1, b"two") + field(2, field(2, b"span")))
    assert read_request(body, spans_max=10) == [ResourceSpans(b"onetwo", [b"span"])]


def test_a_broken_span_is_handed_on_as_it_is() -> None:
    """Its neighbours must be stored, so its brokenness is judged alone, and later."""
    good = span_bytes()
    (group,) = read_request(request_bytes((b"", [b"\xff\xff", good])), spans_max=10)
    assert group.spans == [b"\xff\xff", good]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"\x0a\x05ab",
        b"{}",
        b'{"resourceSpans":[]}',
        b"\x00",
        request_bytes((b"", [span_bytes()]))[:-1],
        field(1, b"\x12\xff"),
        b"\x0f",
        varint(1 << 63) * 2,
    ],
)
@pytest.mark.parametrize("spans_max", [1, 100_000])
def test_bytes_that_are_no_request_are_malformed(body: bytes, spans_max: int) -> None:
    """The sender is told that repeating it is useless."""
    with pytest.raises(MalformedRequest):
        read_request(body, spans_max=spans_max)
    with pytest.raises(MalformedRequest):  # also when it is long enough to be counted first
        read_request(field(5, b"x" * 20_000) + body, spans_max=spans_max)


def test_the_limit_counts_spans_over_all_groups() -> None:
    """One above is refused, and the limit itself is not."""
    groups = [(b"", [b"s"] * 3), (b"", [b"s"] * 2)]
    assert sum(len(group.spans) for group in read_request(request_bytes(*groups), spans_max=5)) == 5
    with pytest.raises(TooManySpans):
        read_request(request_bytes(*groups), spans_max=4)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty spans": lambda: field(1, field(2, b"\x12\x00" * (8 * MIB))),
    "empty scopes": lambda: field(1, b"\x12\x00" * (8 * MIB)),
    "empty resources": lambda: field(1, b"\x0a\x00" * (8 * MIB)),
    "empty groups": lambda: b"\x0a\x00" * (8 * MIB),
    "unknown fields": lambda: b"\xa2\x06\x00" * (5 * MIB),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_sixteen_mebibytes_of_nothing_cost_neither_memory_nor_time(kind: str) -> None:
    """Parsed, they are gigabytes and seconds in which nobody else is answered. Measured: 0.1 to 0.2 s."""
    body = HOSTILE[kind]()
    started = time.process_time()
    with pytest.raises(TooManySpans):
        read_request(body, spans_max=100_000)
    assert time.process_time() - started < 1
    tracemalloc.start()
    try:
        with pytest.raises(TooManySpans):
            read_request(body, spans_max=1000)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_the_scan_counts_only_into_what_the_shape_names() -> None:
    """A long string that looks like many fields is one field."""
    assert not scan.has_more_pieces(field(9, b"\x0a\x00" * 1000), {}, pieces_max=1)
    assert scan.has_more_pieces(field(9, b"\x0a\x00" * 1000), {9: {}}, pieces_max=1000)
    assert not scan.has_more_pieces(field(9, b"\x0a\x00" * 1000), {9: {}}, pieces_max=1001)


@pytest.mark.parametrize(
    "body",
    [b"\x08" + b"\xff" * 20, b"\x09\x00", b"\x0d\x00", b"\x0a\x05a", b"\x0a", b"\x0e", b"\x0a\xff\xff\xff\xff\xff"],
)
def test_the_scan_ends_at_senseless_bytes(body: bytes) -> None:
    """It reads what an attacker wrote: a length beyond the end, a number without one."""
    with pytest.raises(scan.Unreadable):
        scan.has_more_pieces(body, scan.REQUEST, pieces_max=100)


def test_the_scan_knows_every_wire_type() -> None:
    """Legal fields of types that we do not read must not be mistaken for broken ones."""
    body = b"\x08\x96\x01" + b"\x11" + bytes(8) + b"\x1d" + bytes(4) + b"\x23\x24" + field(300, b"x")
    assert not scan.has_more_pieces(body, scan.REQUEST, pieces_max=6)
    assert scan.has_more_pieces(body, scan.REQUEST, pieces_max=5)


def test_groups_are_counted_whatever_the_bytes() -> None:
    """What a request takes in memory is reserved before it is parsed."""
    assert scan.groups_in(b"") == 0
    assert scan.groups_in(field(1, b"") * 1000 + b"\x08\x01" + field(1, b"x" * 300)) == 1002
    assert scan.groups_in(b"\x1a\x00" * 1_000_000) == 100_000  # as many as cost 20 ms
    assert scan.groups_in(field(1, b"x") + b"\x0a\xff") == 2
    assert scan.groups_in(b"\xff" * 100) == 0
