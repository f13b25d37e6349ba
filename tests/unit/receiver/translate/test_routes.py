"""One spelling for the routes of all frameworks, rpc servers, and requests that matched none."""

from typing import Any

import pytest

from receiver.translate.endpoint import endpoint_of, route_named_by
from receiver.translate.engines.explain import explain_file
from receiver.translate.mapping import Form
from receiver.translate.outcome import Ignored, Rejected
from receiver.translate.redaction.own_ids import OwnIds
from support.encoding import CLIENT, PLAIN, SERVER, outcome, request_bytes, span_bytes

NOBODY = OwnIds(str)


def served(attributes: dict[str, Any], **span: Any) -> Any:
    found = outcome(attributes, **{"kind": SERVER, **span})
    assert not isinstance(found, Ignored | Rejected), found
    return found


@pytest.mark.parametrize(
    ("route", "endpoint"),
    [
        ("/users/:id", "/users/{id}"),  # Express, Koa, gin, Rails
        ("/users/:id?", "/users/{id}"),
        ("/users/:id(\\d+)", "/users/{id}"),
        ("/users/:id(\\d+)/x", "/users/{id}/x"),
        ("/users/:id([0-9]{1,3})?", "/users/{id}"),
        ("/users{/:id}", "/users/{id}"),  # Express 5
        ("/users/:id(.:format)", "/users/{id}"),  # Rails
        ("(/:locale)/users", "/{locale}/users"),
        ("/flights/:from-:to", "/flights/{from}-{to}"),
        ("/plantae/:genus.:species", "/plantae/{genus}.{species}"),
        ("/users/{id}", "/users/{id}"),  # Spring, Go, FastAPI
        ("/users/{id:int}", "/users/{id}"),  # ASP.NET, Starlette
        ("/users/{id?}", "/users/{id}"),
        ("/users/{id=5}", "/users/{id}"),
        ("/users/{id:[0-9]{4}}/x", "/users/{id}/x"),
        ("/users/{id<\\d+>}", "/users/{id}"),  # Symfony
        ("/files/{*path}", "/files/{path}"),
        ("/files/{**path}", "/files/{path}"),
        ("/files/{path...}", "/files/{path}"),  # Go 1.22
        ("/files/{path:path}", "/files/{path}"),
        ("/{$}", "/"),
        ("/files/*path", "/files/{path}"),  # gin
        ("/users/<id>", "/users/{id}"),  # Flask, Bottle
        ("/users/<int:id>", "/users/{id}"),
        ("users/<uuid:pk>/", "/users/{pk}"),  # Django
        ("/users/<any(a,b):kind>", "/users/{kind}"),
        ("/users/[id]", "/users/{id}"),  # Next.js
        ("/docs/[...slug]", "/docs/{slug}"),
        ("/docs/[[...slug]]", "/docs/{slug}"),
        ("^users/(?P<pk>[0-9]+)/$", "/users/{pk}"),  # Django's patterns
        ("^articles/(?P<year>[0-9]{4})/(?P<slug>[^/]+)/?$", "/articles/{year}/{slug}"),
        ("^api/^users/(?P<pk>[^/.]+)/\\Z", "/api/users/{pk}"),
        ("^files\\.json$", "/files.json"),
        ("/users/(?<id>[0-9]+)", "/users/{id}"),
        ("/users/([0-9]+)", "/users/{id}"),
        ("/files/{name}.{ext}", "/files/{name}.{ext}"),
        ("/v1/projects/{project}:cancel", "/v1/projects/{project}:cancel"),
        ("users", "/users"),
        ("users/", "/users"),
        ("/users/", "/users"),
        ("/mount//users/", "/mount//users"),
        ("/", "/"),
        ("", "/"),
        ("*", "*"),
        ("/*", "/*"),
        ("/**", "/**"),
        ("/files/*", "/files/*"),
        ("/files/**", "/files/**"),
        ("/users/17", "/users/{id}"),  # a raw path in the place of a route
        ("/users/17/{x}", "/users/{id}/{x}"),
        ("/a/{x", "/a/{x"),  # no placeholder
        ("/a/:", "/a/:"),
        ("/a/b:c", "/a/b:c"),
        ("/a/{}", "/a/{}"),
        ("/a/{alice@example.com}", "/a/{id}"),
        ("/a/{x}-alice@example.com", "/a/{id}"),
        ("/a/:AKIAIOSFODNN7EXAMPLE", "/a/{id}"),
        ("/a/{deadbeefdeadbeefdeadbeef}", "/a/{id}"),
    ],
)
def test_a_route_has_one_spelling(route: str, endpoint: str) -> None:
    """Else nobody can group across services."""
    assert endpoint_of(route, Form.ROUTE, own_ids=NOBODY) == endpoint
    assert endpoint_of(endpoint, Form.ROUTE, own_ids=NOBODY) == endpoint, "the spelling of a spelling is itself"


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("GET /users/{id}", "/users/{id}"),
        ("GET /users/:id", "/users/:id"),
        ("GET /users", "/users"),
        ("POST /", "/"),
        ("M /x", "/x"),
        ("GET /users/17/{x}", "/users/17/{x}"),
        ("GET /users/17", None),  # raw: the path tells as much
        ("GET /users/alice@example.com", None),
        ("GET", None),
        ("HTTP GET", None),
        ("HTTP GET /x", None),
        ("get /x", None),
        ("GET users", None),
        ("GET /a b", None),
        ("GET  /a", None),
        ("", None),
    ],
)
def test_a_spans_name_may_be_a_route(name: str, route: str | None) -> None:
    """Go's ServeMux tells the route nowhere else."""
    assert route_named_by(name, own_ids=NOBODY) == route


def test_where_a_span_names_the_route() -> None:
    """Behind http.route, before the raw path; of servers alone."""
    raw = {"http.request.method": "GET", "url.path": "/users/anna"}
    assert served(raw, name=b"GET /users/{id}").endpoint == "/users/{id}"
    assert served(raw, name=b"GET /users/:id/").endpoint == "/users/{id}"
    assert served({**raw, "http.route": "/x"}, name=b"GET /users/{id}").endpoint == "/x"
    assert served({**raw, "http.route": " "}, name=b"GET /users/{id}").endpoint == "/users/{id}"
    assert served(raw, name=b"GET /users/17").endpoint == "/users/anna"
    assert served(raw, name=b"GET \xff").endpoint == "/users/anna"
    client = {**raw, "event.category": "endpoint_usage"}
    assert served(client, name=b"GET /users/{id}", kind=CLIENT).endpoint == "/users/anna"
    assert outcome(raw, kind=SERVER, name=b"GET /health") == Ignored("excluded_endpoint")
    body = request_bytes((b"", [span_bytes(raw, kind=SERVER, name=b"GET /users/{id}")]))
    assert explain_file(body, PLAIN)[0].sources["endpoint"] == "the span's name"


def test_a_request_that_matched_nothing_is_stored() -> None:
    """Django sends a 404 without any path: it happened all the same."""
    found = served({"http.request.method": "GET", "http.response.status_code": 404})
    assert (found.endpoint, found.status_code) == ("{unmatched}", 404)
    assert served({"http.method": "GET", "http.route": " "}).endpoint == "{unmatched}"
    assert served({"http.method": "GET", "event.category": "endpoint_usage"}).endpoint == "{unmatched}"
    for kind, attributes in ((CLIENT, {"http.method": "GET"}), (SERVER, {})):
        asked = {**attributes, "event.category": "endpoint_usage"}
        assert outcome(asked, kind=kind) == Rejected("missing_endpoint")


@pytest.mark.parametrize(
    ("attributes", "method"),
    [
        ({"http.request.method": "_OTHER", "http.request.method_original": "purge"}, "PURGE"),
        ({"http.request.method": "_OTHER"}, "_OTHER"),
        ({"http.request.method": "_OTHER", "http.request.method_original": " "}, "_OTHER"),
        ({"http.request.method": "_OTHER", "http.request.method_original": "a b"}, None),
        ({"http.request.method": "GET", "http.request.method_original": "get"}, "GET"),
    ],
)
def test_a_method_that_is_not_known_gives_way_to_what_was_sent(attributes: dict[str, Any], method: str | None) -> None:
    """`_OTHER` groups what has nothing in common."""
    assert served({**attributes, "http.route": "/x"}).method == method


@pytest.mark.parametrize(
    ("attributes", "endpoint", "method"),
    [
        ({"rpc.system": "grpc", "rpc.service": "acme.v1.Users", "rpc.method": "Get"}, "/acme.v1.Users/Get", "GRPC"),
        ({"rpc.system.name": "grpc", "rpc.method": "acme.v1.Users/Get"}, "/acme.v1.Users/Get", "GRPC"),
        (
            {"rpc.system.name": "grpc", "rpc.service": "x", "rpc.method": "acme.v1.Users/Get"},
            "/acme.v1.Users/Get",
            "GRPC",
        ),
        ({"rpc.system": "jsonrpc", "rpc.method": "add"}, "/add", "JSONRPC"),
        ({"rpc.system": "connect_rpc", "rpc.service": "s", "rpc.method": "m"}, "/s/m", "CONNECT_RP"),
    ],
)
def test_an_rpc_server_is_an_endpoint(attributes: dict[str, Any], endpoint: str, method: str) -> None:
    """A company that speaks gRPC inside has endpoints too."""
    found = served({**attributes, "rpc.grpc.status_code": 5})
    assert (found.table, found.endpoint, found.method, found.status_code) == ("endpoint_usage", endpoint, method, None)
    assert outcome(attributes, kind=CLIENT) == Ignored("not_product_event")


def test_an_rpc_without_a_method_is_no_endpoint() -> None:
    """Nothing to call it by."""
    assert outcome({"rpc.system": "grpc", "rpc.service": "s"}, kind=SERVER) == Ignored("not_product_event")
