"""The short way from span to record: taken for ordinary traffic, and forgetful in bounds."""

import random

import pytest

from receiver import fast_path
from receiver.fast_path import FastPath
from receiver.outcome import Ignored
from receiver.translate import read_resource, translate
from shared.wire import Record, encode
from support.encoding import CLIENT, LOGIN, PLAIN, SERVER, resource_bytes, span_bytes

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
    monkeypatch.setattr(fast_path, "_KNOWN_MAX", 200)
    monkeypatch.setattr(fast_path, "_PLACES_MAX", 100)
    fast = FastPath(PLAIN)
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
    assert len(fast._known) <= fast_path._KNOWN_MAX
    assert len(fast._places) <= fast_path._PLACES_MAX
