"""Whatever the bytes: an event, an ignore or a rejection, never an exception, and never somebody's secret."""

import base64
import json
import random
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from receiver.decode.spans import MalformedRequest, TooManySpans, read_request
from receiver.translate import mapping
from receiver.translate.engines.explain import explain_file
from receiver.translate.mapping import VERSION_KEY
from receiver.translate.outcome import IGNORE_REASONS, REJECT_REASONS, Ignored, Outcome, Rejected
from shared.wire import decode, encode
from support.encoding import (
    CLIENT,
    LOGIN,
    PLAIN,
    SERVER,
    Text,
    field,
    key_value,
    request_bytes,
    resource_bytes,
    rules,
    span_bytes,
    translated,
)
from support.mutation import KEYS, Mutator
from support.shares import SHARES, one_in

REQUEST = {"http.request.method": "GET", "http.route": "/a/{id}", "http.response.status_code": 200}
SEEDS = [
    span_bytes(LOGIN),
    span_bytes(REQUEST, kind=SERVER),
    span_bytes({"http.method": "GET", "http.target": "/a/17?b=c", "http.status_code": "200"}, kind=SERVER),
    span_bytes(REQUEST, kind=CLIENT),
    span_bytes({"feature.name": "export", "metadata.x": [1, {"a": [b"x", 1.5, None]}], "user.id": 7}),
    span_bytes({**LOGIN, "metadata.url": "https://a.example/?b", "session.id": "s", "organization.id": "acme"}),
]


def checked(span: bytes, resource: bytes = b"") -> Outcome:
    """The outcome, which must be one: of a closed set, and fit for the topic."""
    found = translated(span, resource)
    match found:
        case Ignored(reason):
            assert reason in IGNORE_REASONS
        case Rejected(reason):
            assert reason in REJECT_REASONS
            assert reason != "internal", found
        case _:
            value = encode(found).value
            assert decode(value) == found
            assert b"\\u0000" not in value
    assert translated(span, resource) == found
    return found


@given(st.binary(max_size=200), st.sampled_from([b"", b"event.category", b"feature.name", b"http.method"]))
def test_any_bytes_have_an_outcome(raw: bytes, key: bytes) -> None:
    """Anybody who has a key may send anything."""
    checked(raw + key)
    checked(span_bytes(LOGIN), raw + key)
    checked(span_bytes({"a": 1}, more=raw + key))


DAMAGED = st.builds(lambda raw, seed: Mutator(random.Random(seed)).span(raw), st.sampled_from(SEEDS), st.integers(0))


@given(DAMAGED)
def test_a_damaged_span_has_an_outcome(raw: bytes) -> None:
    """Real spans with a few bytes or fields wrong come further into the code than random ones."""
    checked(raw)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=20)
    | st.binary(max_size=20).map(Text)
    | st.sampled_from(["user_activity", "endpoint_usage", "feature_usage", "/a/17", "https://h/?q", "GET", "42"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=6,
)
ATTRIBUTES = st.tuples(st.sampled_from(KEYS), VALUES)


@given(st.lists(ATTRIBUTES, max_size=8), st.lists(ATTRIBUTES, max_size=3), st.integers(0, 5))
def test_any_attributes_have_an_outcome(span: list[Any], resource: list[Any], kind: int) -> None:
    """All types, all keys, in all places: typed JSON that the consumer reads back as it was."""
    checked(span_bytes(span, kind=kind), resource_bytes(resource))


@given(st.binary(max_size=100), st.lists(DAMAGED, max_size=3))
@example(b"", [b""])
def test_any_request_is_read_or_refused(tail: bytes, spans: list[bytes]) -> None:
    """And its good spans are stored, whatever stands beside them."""
    good = span_bytes(LOGIN)
    (group,) = read_request(request_bytes((b"", [good, *spans])), spans_max=10)
    assert [*group.spans] == [good, *spans]
    for body in (tail, request_bytes((b"", spans)) + tail):
        try:
            read_request(body, spans_max=10)
            explain_file(body, PLAIN)
        except (MalformedRequest, TooManySpans):
            pass


def test_what_our_schema_reads_is_what_the_published_one_reads() -> None:
    """Where both can read a span: our own classes must not see another one."""
    for raw in SEEDS:
        assert checked(raw) == checked(Span.FromString(raw).SerializeToString())


CANARIES = [
    "alice.canary@example.com",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlY2FuYXJ5",
    "sk-proj-4eC39HqLyjWDarjtT1zdp7dc",
    "4111111111111111",
    "203.0.113.77",
    "AKIAIOSFODNN7EXAMPLE",
    "https://canary:hunter22@shop.example/",
]
PLACES = [
    *(key.decode() for key in mapping.attributes() if key != mapping.CATEGORY),
    "metadata.note",
    "metadata.user.token",
    "other",
]


OTHER_TABLES: list[dict[str, Any]] = [
    {"event.category": "endpoint_usage", "http.route": "/a"},
    {"feature.name": "export"},
    {"gen_ai.operation.name": "chat"},
]


def shapes(canary: str) -> list[Any]:
    """Ways in which people send such a thing."""
    return [
        canary,
        f"x {canary} y",
        f"{'x' * 3000} {canary}",
        f"/a/{canary}/b",
        f"https://shop.example/a?q={canary}",
        f"/a?q={quote(canary, safe='')}",
        quote(canary, safe=""),
        canary.encode(),
        [canary],
        {"a": [{"b": canary}]},
        {canary: 1},
        {"a": {canary: {canary: canary}}},
    ]


def hidden_in(value: bytes, canary: str) -> bool:
    """As sent, in base64 at each of its three offsets, or URL-encoded."""
    forms = [canary, quote(canary, safe=""), quote(canary), json.dumps(canary)[1:-1]]
    forms += [base64.b64encode(b"\0" * pad + canary.encode()).decode()[pad and 4 : -4] for pad in range(3)]
    text = value.decode().lower()
    return any(form.lower() in text for form in forms)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("canary", CANARIES)
def test_no_canary_comes_out_of_any_place(canary: str, share: int) -> None:
    """The promise that the product makes: not in the topic, so not behind it. Explained, neither."""
    events = 0
    for table in (LOGIN, *OTHER_TABLES):
        for place in [*PLACES, canary, f"metadata.{canary}"]:
            for shape in one_in(share, shapes(canary), place):
                if place == VERSION_KEY and canary == "203.0.113.77":
                    continue  # what looks like an address is a version there
                ways: list[tuple[dict[str, Any], dict[str, Any]]] = [({**table, place: shape}, {})]
                if table is LOGIN:  # a resource's attributes are read alike for each table
                    ways.append(({**table, place: None}, {place: shape}))
                for span, resource in ways:
                    raw, raw_resource = span_bytes(span), resource_bytes(resource)
                    found = translated(raw, raw_resource)
                    if not isinstance(found, Ignored | Rejected):
                        events += 1
                        assert not hidden_in(encode(found).value, canary), (place, shape)
                    if table is not LOGIN:
                        continue
                    explained = explain_file(request_bytes((raw_resource, [raw])), PLAIN)
                    text = json.dumps([one.as_json() for one in explained]).encode()
                    assert not hidden_in(text, canary), (place, shape)
    assert events > 900 / share / 2


@given(st.sampled_from(CANARIES), VALUES, st.sampled_from(PLACES), st.integers(0, 3))
def test_no_canary_comes_out_of_any_structure(canary: str, inner: Any, place: str, depth: int) -> None:
    """Wherever it is nested, and whatever stands beside it."""
    value: Any = canary
    for _ in range(depth):
        value = {"k": [inner, value, f"z {canary}"], canary: inner}
    found = checked(span_bytes([*LOGIN.items(), ("metadata.first", value), (place, [value, inner]), (canary, value)]))
    if not isinstance(found, Ignored | Rejected):
        assert not hidden_in(encode(found).value, canary)


@given(st.text(min_size=4, max_size=30).filter(str.strip))
def test_an_own_id_of_any_form_never_comes_out(raw: str) -> None:
    """Ids that look like nothing in particular: known, because the span says whose it is."""
    by = rules()
    attributes = {**LOGIN, "user.id": raw, "session.id": raw, "metadata.a": raw, "metadata.b": [raw, {"c": raw}]}
    found = translated(span_bytes(attributes), by=by)
    assert not isinstance(found, Ignored | Rejected)
    hashed = found.user_id
    assert found.session_id == hashed  # type: ignore[union-attr]
    assert found.event_metadata == {"a": hashed, "b": [hashed, {"c": hashed}]}


def test_pieces_of_a_value_are_merged_as_protobuf_does() -> None:
    """A message in two pieces is legal, and the second piece must not slip past the first."""
    twice = field(9, field(1, b"metadata.x") + field(2, field(1, b"a")) + field(2, field(1, b"bob@example.org")))
    found = checked(span_bytes(LOGIN, more=twice))
    assert found.event_metadata == {"x": "[redacted]"}  # type: ignore[union-attr]
    assert checked(span_bytes(LOGIN, more=field(9, key_value("metadata.x", "a")))) != found
