"""The bound on distinct endpoints of a service: which segment gives way, what is not counted; both engines alike."""

import time
from collections.abc import Iterable

import orjson
import pytest

from receiver.translate.cardinality import BYTES_MAX, Guard
from support.encoding import SERVER, request_bytes, resource_bytes, rules, span_bytes
from support.engines import answers_by, engines


def stored(guard: Guard, *paths: str, service: str = "shop") -> list[str]:
    return [guard.stored(service, path) for path in paths]


def people(count: int, behind: str = "") -> list[str]:
    return [f"/people/p{number:x}y{behind}" for number in range(count)]


def test_the_segment_that_varies_gives_way() -> None:
    """A name in a path is a value, and says who somebody is."""
    guard = Guard(10)
    assert stored(guard, "/checkout", *people(9)) == ["/checkout", *people(9)]
    assert stored(guard, "/people/zoe", *people(9), "/checkout", "/cart") == [
        *["/people/{other}"] * 10,
        "/checkout",
        "/cart",
    ]


def test_what_stands_behind_it_stays() -> None:
    """`/people/anna/orders` and `/people/anna/profile` are two features."""
    guard = Guard(10)
    for path in [*people(6, "/orders"), *people(6, "/profile")]:
        guard.stored("shop", path)
    assert stored(guard, "/people/zoe/orders", "/people/zoe/profile") == [
        "/people/{other}/orders",
        "/people/{other}/profile",
    ]


def test_services_are_counted_apart() -> None:
    """A service with templates does not pay for one without."""
    guard = Guard(10)
    stored(guard, *people(50))
    assert stored(guard, *people(10), service="other") == people(10)


def test_an_answer_is_given_again() -> None:
    """So a span that is sent twice has one endpoint, and what was stored is itself an endpoint."""
    guard = Guard(20)
    paths = [f"/a{n % 7}/b{n % 11}/c{n}" for n in range(500)]
    stored(guard, *paths)
    narrowings = guard.narrowings
    once = stored(guard, *paths)
    assert stored(guard, *paths) == once
    assert stored(guard, *once) == once
    assert guard.narrowings - narrowings <= 3
    assert len(set(once)) <= 20


@pytest.mark.parametrize("path", ["/{0}", "/a/{0}", "/{0}/{0}/{0}", "/x" * 100 + "{0}", "{0}" * 30, "/{0}" * 20])
def test_memory_and_time_are_bounded_whatever_is_asked(path: str) -> None:
    """Paths and names of services are chosen by whoever sends."""
    guard = Guard(200)
    started_at = time.process_time()
    found = {
        service: {guard.stored(service, path.format(f"v{number}")) for number in range(260)}
        for service in (f"service {number}" for number in range(40))
    }
    assert guard.held_bytes < BYTES_MAX + 1024 * 1024
    assert max(map(len, found.values())) <= 400  # those before the bound was reached, and those after
    assert time.process_time() - started_at < 60


def request(paths: Iterable[str], *, key: str = "url.path") -> bytes:
    spans = [
        span_bytes({"http.request.method": "GET", key: path}, kind=SERVER, span_id=(number + 1).to_bytes(8, "big"))
        for number, path in enumerate(paths)
    ]
    return request_bytes((resource_bytes({"service.name": 'the "shop"'}), spans))


def endpoints_by_engine(body: bytes, *, bound: int) -> list[list[str]]:
    """Of engines that have seen nothing before."""
    answers = [answers_by(engine, body).records for engine in engines(rules(endpoints_per_service=bound))]
    assert all(answer == answers[0] for answer in answers)
    return [[orjson.loads(value)["endpoint"] for _, value in answer] for answer in answers]


def test_both_engines_store_the_same() -> None:
    """Also where spans that one of them declines stand between others."""
    paths = [path for number in range(200) for path in (f"/people/p{number:x}y", f"/caf%C3%A9/v{number:x}w", "/cart")]
    for endpoints in endpoints_by_engine(request(paths), bound=20):
        assert endpoints[:3] == ["/people/p0y", "/caf%C3%A9/v0w", "/cart"]
        assert endpoints[-3:] == ["/people/{other}", "/caf%C3%A9/{other}", "/cart"]
        assert len(set(endpoints)) <= 40


def test_templates_are_not_counted() -> None:
    """They are as many as the program has routes, and each is meant."""
    routes = [f"/r{number:x}y/{{user}}" for number in range(100)]
    for endpoints in endpoints_by_engine(request(routes, key="http.route"), bound=20):
        assert endpoints == routes


def test_a_name_of_a_span_is_a_template_only_with_a_parameter() -> None:
    """Some instrumentations put the path into the name as it is."""
    spans = [
        span_bytes(
            {"http.request.method": "GET", "url.path": "/x"},
            kind=SERVER,
            name=f"GET {path}".encode(),
            span_id=(number + 1).to_bytes(8, "big"),
        )
        for number, path in enumerate([*people(30), *(f"/r{number:x}y/{{user}}" for number in range(30))])
    ]
    for endpoints in endpoints_by_engine(request_bytes((resource_bytes({}), spans)), bound=20):
        assert endpoints[29] == "/people/{other}"
        assert endpoints[30:] == [f"/r{number:x}y/{{user}}" for number in range(30)]


def test_it_can_be_switched_off() -> None:
    """0 is no bound."""
    for endpoints in endpoints_by_engine(request(people(300)), bound=0):
        assert endpoints == people(300)
