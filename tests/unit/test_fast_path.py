"""The short way from span to record: taken for ordinary traffic, and forgetful in bounds."""

import random

import pytest

from receiver.decode.spans import ResourceSpans
from receiver.translate import fast_path, pieces
from receiver.translate.fast_path import FastPath
from receiver.translate.outcome import Ignored
from receiver.translate.records import Records
from receiver.translate.reference import read_resource, translate
from shared.wire import Record, encode
from support.encoding import CLIENT, LOGIN, PLAIN, SERVER, any_value, field, outcome, resource_bytes, span_bytes

RESOURCE = resource_bytes({"service.name": "shop", "telemetry.sdk.language": "python", "host.name": "a"})
HTTP = {
    "http.request.method": "GET",
    "url.path": "/orders/17",
    "http.route": "/orders/{id}",
    "http.response.status_code": 200,
    "user_agent.original": "curl",
    "user.id": "user-17",
    "organization.id": "acme",
}
FEATURE = {"feature.name": "export", "feature.action": "created", "metadata.plan": "pro", "metadata.rows": 17}


def test_ordinary_spans_take_the_short_way() -> None:
    """Were they declined, everything would still be right, and four times as slow."""
    fast = FastPath(PLAIN)
    plain = fast.resource(RESOURCE)
    assert plain is not None
    for attributes in (LOGIN, HTTP, FEATURE, {**LOGIN, "session.id": "s-1", "duration_ms": 1.5}):
        assert isinstance(fast.records_of([span_bytes(attributes, kind=SERVER)], plain)[0], Record)
    assert fast.records_of([span_bytes(HTTP, kind=CLIENT)], plain) == [Ignored("not_product_event")]
    health = span_bytes({**HTTP, "http.route": "/healthz"}, kind=SERVER)
    assert fast.records_of([health], plain) == [Ignored("excluded_endpoint")]


def test_what_it_remembers_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender with a new value in each span must cost memory only up to the bound."""
    monkeypatch.setattr(pieces, "_KNOWN_MAX", 200)
    monkeypatch.setattr(pieces, "_PLACES_MAX", 100)
    monkeypatch.setattr(fast_path, "_PLANS_MAX", 50)
    fast = FastPath(PLAIN)
    fast.speedups = None
    plain = fast.resource(RESOURCE)
    assert plain is not None
    resource = read_resource(RESOURCE, PLAIN)
    generator = random.Random(1)
    for _ in range(1_000):
        attributes = {**FEATURE, "user.id": f"u-{generator.random()}", "metadata.x": str(generator.random())}
        raw = span_bytes({**attributes, f"metadata.{generator.randrange(10_000)}": 1})
        [record] = fast.records_of([raw], plain)
        if generator.random() < 0.1:
            event = translate(raw, resource, PLAIN)
            assert record == encode(event)  # type: ignore[arg-type]
    known = fast.pieces.known
    assert len(known) + len(known._older) <= pieces._KNOWN_MAX
    assert len(known.unread) <= len(fast.pieces._places) <= pieces._PLACES_MAX
    assert len(fast._plans) <= fast_path._PLANS_MAX


def test_what_is_asked_for_again_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a stream of new values would wash out the few that every span has."""
    monkeypatch.setattr(pieces, "_KNOWN_MAX", 200)
    fast = FastPath(PLAIN)
    fast.speedups = None
    plain = fast.resource(RESOURCE)
    assert plain is not None
    fast.records_of([span_bytes(LOGIN)], plain)
    [read] = [piece for piece in fast.pieces.known.values() if piece.place.column == "user_id"]
    for number in range(1_000):
        fast.records_of([span_bytes(LOGIN), span_bytes({**FEATURE, "metadata.n": f"{number}"})], plain)
    assert any(piece is read for piece in fast.pieces.known.values())


def test_an_attribute_without_a_key_stands_for_no_other() -> None:
    """Attributes of which the key cannot be told at a glance have none either, at first."""
    records = Records(PLAIN)
    at_a_glance = span_bytes([*(("", f"{number}") for number in range(100)), *LOGIN.items()])
    method = field(1, b"http.request.method") + 2 * field(2, any_value("GET"))  # the second value counts
    merged = span_bytes({"http.route": "/orders"}, kind=SERVER, more=field(9, method))
    for span in (at_a_glance, merged):
        expected = encode(translate(span, read_resource(RESOURCE, PLAIN), PLAIN))  # type: ignore[arg-type]
        assert [*records.of(ResourceSpans(RESOURCE, [span]))][-1] == [expected]


def test_an_id_is_hashed_where_its_bytes_do_not_stand() -> None:
    """In the resource, of which the short way has the text ready; where it is what a key is replaced by; in a path."""
    fast = FastPath(PLAIN)
    plain = fast.resource(RESOURCE)
    assert plain is not None
    assert fast.records_of([span_bytes({**LOGIN, "user.id": name}) for name in ("shop", "shopper")], plain)[0] is None
    event = outcome({**LOGIN, "user.id": "shop"}, resource={"service.name": "shop"})
    assert event.event_metadata == {"service.name": PLAIN.hashed("shop")}  # type: ignore[union-attr]
    event = outcome({**LOGIN, "user.id": "[redacted]", "metadata.bob@example.com": "x"})
    assert event.event_metadata == {PLAIN.hashed("[redacted]"): "x"}  # type: ignore[union-attr]
    encoded = {"http.request.method": "GET", "url.path": "/u/%61lice/x", "user.id": "alice"}
    event = outcome(encoded, kind=SERVER)
    assert event.endpoint == "/u/{id}/x"  # type: ignore[union-attr]


def test_steps_are_short_and_a_long_span_is_one_of_its_own() -> None:
    """The service gives the loop back after each of them."""
    plain, long = span_bytes(LOGIN), span_bytes({**LOGIN, "metadata.text": "x" * 3_000})
    declined = span_bytes({**LOGIN, "metadata.list": [1, 2]})

    def steps(spans: list[bytes]) -> list[int]:
        return [len(step) for step in Records(PLAIN).of(ResourceSpans(RESOURCE, spans)) if step]

    assert steps([plain] * 130) == [64, 64, 2]
    assert steps([long] * 64) == [1] * 64  # cut, so that it takes the long way
    assert steps([plain, declined, plain, plain]) == [1, 1, 2]
    assert steps([span_bytes({**LOGIN, "unread": "x" * 1_500})] * 64) == [4] * 16
