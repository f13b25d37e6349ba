"""Requests in an unusual spelling: protobuf reads them, so every engine has the same answers for them."""

import pytest

from receiver.decode.spans import read_request
from receiver.translate.engines.reference import read_resource, translate
from support.encoding import LOGIN, PLAIN, field, request_bytes, resource_bytes, span_bytes, traces_of, varint
from support.engines import SPANS_MAX, Answers, answers_by, engines

LOGIN_SPAN = span_bytes(LOGIN)
SHOP = resource_bytes({"service.name": "shop"})
WEB = resource_bytes({"service.version": "1"})
REQUEST = request_bytes((SHOP, [LOGIN_SPAN, span_bytes({"a": "b" * 200})]), (b"", []), (b"", [b"\xff", LOGIN_SPAN]))
ODD = [
    b"\x12\x01x" + REQUEST + b"\x18\x05",  # fields of later versions
    field(1, field(1, SHOP) + field(2, field(2, LOGIN_SPAN)) + field(1, WEB)),  # a resource in two pieces
    field(1, field(2, field(2, LOGIN_SPAN)) + field(1, SHOP)),  # behind its spans
    field(1, field(2, field(2, LOGIN_SPAN) + b"\x08\x01") + b"\x18\x01" + field(3, b"schema")),
    field(1, b"\x10\x01" + field(2, field(2, LOGIN_SPAN))),
    field(1, field(2, b"\x10\x01" + field(2, LOGIN_SPAN))),
    b"\x08\x01" + REQUEST,
    b"\x13\x0a\x00\x14" + REQUEST,  # a group
    b"\x10" + varint(2**64 - 1) + REQUEST,
    b"\x8a\x00" + REQUEST[1:],  # a tag in two bytes
    field(2**29 - 1, b"x") + REQUEST,
]


@pytest.mark.parametrize("body", ODD)
def test_an_unusual_envelope_has_its_records(body: bytes) -> None:
    """Refused for our own reasons, it would come again for ever."""
    groups = read_request(body, spans_max=SPANS_MAX)
    traces = traces_of(groups, PLAIN)
    outcomes = [
        translate(span, read_resource(group.resource, PLAIN), PLAIN, traces=traces)
        for group in groups
        for span in group.spans
    ]
    expected = Answers.of(outcomes)
    assert expected.records
    for engine in engines(PLAIN):
        assert answers_by(engine, body) == expected, engine.name
