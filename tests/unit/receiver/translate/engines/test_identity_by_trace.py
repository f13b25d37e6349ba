"""Whose trace it is: an id on any span of the trace counts for those that name none, within one request."""

import itertools
import random
import time
from typing import Any

import pytest

from receiver.decode.spans import ResourceSpans
from receiver.translate import identity
from receiver.translate.engines.explain import explain_file
from receiver.translate.engines.reference import read_resource, translate
from receiver.translate.identity import SPANS_MAX
from receiver.translate.outcome import Ignored, Rejected
from receiver.translate.rules import Rules
from shared.identity import hash_id
from support.encoding import (
    LOGIN,
    PLAIN,
    SERVER,
    Text,
    field,
    request_bytes,
    resource_bytes,
    rules,
    span_bytes,
    traces_of,
)
from support.engines import Answers, answers_by, engines

REQUEST = {"http.request.method": "GET", "http.route": "/orders/{id}"}
TRACE = bytes(range(16))
OTHER_TRACE = bytes(range(1, 17))


def span(number: int, attributes: dict[str, Any] | None = None, *, parent: int = 0, **more: Any) -> bytes:
    """Of TRACE, unless told otherwise. Parent 0 is none."""
    place = {"trace_id": TRACE, "span_id": id_of(number), "parent": id_of(parent) if parent else b""}
    return span_bytes(attributes or {}, **{**place, **more})


def id_of(number: int) -> bytes:
    return number.to_bytes(8, "big")


def served(number: int, attributes: dict[str, Any] | None = None, *, parent: int = 0, **more: Any) -> bytes:
    return span(number, {**REQUEST, **(attributes or {})}, parent=parent, kind=SERVER, **more)


def events(*groups: tuple[dict[str, Any], list[bytes]], by: Rules = PLAIN) -> dict[int, Any]:
    """Each event by its span's number, the outcome where it is none."""
    read = [ResourceSpans(resource_bytes(resource), spans) for resource, spans in groups]
    traces = traces_of(read, by)
    found: dict[int, Any] = {}
    outcomes: list[Any] = []  # one a span, also where a span is there twice
    for group in read:
        resource = read_resource(group.resource, by)
        for raw in group.spans:
            outcomes.append(translate(raw, resource, by, traces=traces))
            found[int.from_bytes(raw[20:28], "big")] = outcomes[-1]
    body = request_bytes(*((group.resource, [*group.spans]) for group in read))
    told = explain_file(body, by)
    assert [one.reason or one.columns.get("user_id") for one in told] == [
        one.reason if isinstance(one, Ignored | Rejected) else one.user_id for one in outcomes
    ]
    for engine in engines(by):
        assert answers_by(engine, body) == Answers.of(outcomes), engine.name
    return found


def user_of(*groups: tuple[dict[str, Any], list[bytes]], of: int = 1, by: Rules = PLAIN) -> str | None:
    user: str | None = events(*groups, by=by)[of].user_id
    return user


def test_express_names_the_user_on_the_span_of_a_middleware() -> None:
    """The request's span is the event, and the id that the docs tell people to set lands on its child."""
    for spans in itertools.permutations([served(1), span(2, {"user.id": "anna"}, parent=1), span(3, {}, parent=1)]):
        assert user_of(({}, [*spans])) == hash_id("anna")


def test_the_nearest_ancestor_goes_before_all_others() -> None:
    """An admin acts for a customer: whoever is nearer."""
    spans = [span(1, {"user.id": "root"}), span(2, {"user.id": "anna"}, parent=1), span(3, {}, parent=2)]
    spans += [served(4, parent=3), span(5, {"user.id": "carl"}, parent=4)]
    for shuffled in itertools.permutations(spans):
        assert user_of(({}, [*shuffled]), of=4) == hash_id("anna")


def test_without_an_ancestor_two_users_are_none() -> None:
    """A guess would be another person's row."""
    named = [span(2, {"user.id": "anna"}, parent=1), span(3, {"enduser.id": "anna"}, parent=1)]
    assert user_of(({}, [served(1), *named])) == hash_id("anna")
    assert user_of(({}, [served(1), *named, span(4, {"user.id": "carl"}, parent=1)])) is None
    assert user_of(({}, [served(1), *named, span(4, {"user.id": 4711}, parent=1)])) is None
    both = [span(2, {"user.id": 4711}, parent=1), span(3, {"user.id": "4711"}, parent=1)]
    assert user_of(({}, [served(1), *both])) == hash_id("4711")  # one id, as text and as number


def test_user_organization_and_session_are_found_each_by_itself() -> None:
    """One span knows the tenant, another one the person."""
    spans = [span(1, {"event.category": "user_activity", "event.type": "login"})]
    spans += [span(2, {"user.id": "anna"}, parent=1), span(3, {"tenant.id": "acme"}, parent=1)]
    spans += [span(4, {"session.id": "s-1"}, parent=1), span(5, {"user.id": "carl", "session.id": "s-1"})]
    found = events(({}, spans))[1]
    assert found == Rejected("missing_user_id")  # two users
    found = events(({}, spans[:4]))[1]
    assert (found.user_id, found.organization_id, found.session_id) == (hash_id("anna"), hash_id("acme"), "s-1")


def test_what_the_span_or_its_resource_says_itself_always_wins() -> None:
    """Also when an ancestor says something else."""
    parent = span(2, {"user.id": "anna"})
    assert user_of(({}, [parent, served(1, {"user.id": "carl"}, parent=2)])) == hash_id("carl")
    assert user_of(({"user.id": "carl"}, [served(1, parent=2)]), ({}, [parent])) == hash_id("carl")
    assert user_of(({}, [parent, served(1, {"user.id": " "}, parent=2)])) == hash_id("anna")  # blank is absent
    rejected = events(({}, [parent, served(1, {"user.id": 1.5}, parent=2)]))[1]
    assert rejected == Rejected("invalid_user_id")  # its own says something, of no use


def test_an_ancestors_resource_counts_as_the_ancestor() -> None:
    """A tenant's own service says so in its resource."""
    assert user_of(({"enduser.id": "anna"}, [span(2)]), ({}, [served(1, parent=2)])) == hash_id("anna")


@pytest.mark.parametrize("value", [1.5, True, b"anna", ["anna"], {}, Text(b"\xff"), "", " ", None])
def test_an_id_of_an_unusable_type_names_nobody(value: Any) -> None:
    """It rejects its own span, and no other."""
    assert user_of(({}, [served(1), span(2, {"user.id": value}, parent=1)])) is None
    spans = [served(1, parent=2), span(2, {"user.id": value}, parent=3), span(3, {"user.id": "anna"})]
    assert user_of(({}, spans)) == hash_id("anna")


def test_another_trace_is_another_matter() -> None:
    """Spans of one request may be anybody's."""
    stranger = span(2, {"user.id": "anna"}, parent=1, trace_id=OTHER_TRACE)
    assert user_of(({}, [served(1), stranger])) is None
    assert user_of(({}, [served(1)]), ({}, [stranger])) is None


def test_off_by_setting() -> None:
    """Some send exactly what they mean."""
    spans = [served(1), span(2, {"user.id": "anna"}, parent=1)]
    assert user_of(({}, spans), by=rules(identity_by_trace=False)) is None


def test_an_id_found_so_is_redacted_like_an_own_one() -> None:
    """It may stand in the path as well."""
    named = span(2, {"user.id": "anna-7"}, parent=1)
    more = {"http.route": "/people/anna-7", "metadata.who": "anna-7", "service.name": "anna-7"}
    found = events(({}, [served(1, more), named]))[1]
    assert found.endpoint == "/people/{id}"
    assert found.event_metadata == {"who": hash_id("anna-7"), "service.name": hash_id("anna-7")}
    assert found.service_name == hash_id("anna-7")


def test_explain_names_the_span_that_an_id_came_from() -> None:
    """The question of whoever sees a user that the span does not name."""
    body = request_bytes((b"", [served(1), span(2, {"enduser.id": "anna-7"}, parent=1)]))
    told = explain_file(body, PLAIN)[0]
    assert told.sources["user_id"] == "span 0000000000000002 enduser.id"
    assert "anna" not in str(told)


def test_odd_traces_end() -> None:
    """Parents in a circle, spans twice, ids of no length, bytes that are no span."""
    circle = [served(1, parent=2), span(2, parent=3), span(3, parent=1), span(4, {"user.id": "anna"}, parent=4)]
    assert user_of(({}, circle)) == hash_id("anna")
    twice = [served(1, parent=2), span(2, {"user.id": "anna"}), span(2, {"user.id": "carl"})]
    assert user_of(({}, twice)) == hash_id("anna")
    odd = [b"\xff", b"", span(3, {"user.id": "carl"}, trace_id=b""), span(4, {"user.id": "anna"}, more=b"\xff")]
    read = ResourceSpans(b"\xff user.id", [served(1), *odd])
    assert translate(served(1), read_resource(b"", PLAIN), PLAIN, traces=traces_of([read], PLAIN)).user_id is None  # type: ignore[union-attr]


def test_a_deep_trace_costs_no_more_than_a_wide_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 spans in one line, each of them an event: walked once. Quadratic, it would be many seconds."""
    monkeypatch.setattr(identity, "SPANS_MAX", 10_000)
    spans = [span(1, {"user.id": "anna"})] + [span(n, {}, parent=n - 1) for n in range(2, 10_000)]
    random.Random(1).shuffle(spans)
    started = time.process_time()
    traces = traces_of([ResourceSpans(b"", spans)], PLAIN)
    trace = traces.of(TRACE)
    for number in range(2, 10_000):
        named = trace.named("user_id", id_of(number))
        assert named is not None
        assert named.raw == "anna"
    assert time.process_time() - started < 2


def test_what_a_span_of_a_bomb_names_is_not_read() -> None:
    """Reading it would take what a request may not take."""
    bomb = span(2, {"user.id": "anna"}, parent=1, more=field(9, b"\x0a\x00" * 100) * 4000)
    assert user_of(({}, [served(1), bomb])) is None
    assert user_of(({}, [served(1, LOGIN), bomb])) == hash_id("42")


def test_a_trace_of_too_many_spans_names_nobody() -> None:
    """Looking through it would make everybody wait: a second for each ten thousand spans."""
    named = span(2, {"user.id": "anna"}, parent=1)
    for count, expected in ((SPANS_MAX - 2, hash_id("anna")), (SPANS_MAX - 1, None)):
        others = [span(number) for number in range(3, count + 3)]
        assert user_of(({}, [served(1), named, *others])) == expected
