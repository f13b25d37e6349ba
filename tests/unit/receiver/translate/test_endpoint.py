"""route or URL -> endpoint: no host, no query, no ids, and names stay names."""

import time

import pytest

from receiver.translate.endpoint import endpoint_of
from receiver.translate.mapping import Form
from receiver.translate.redaction.own_ids import OwnIds


def own(*raws: str) -> OwnIds:
    """The span's raw ids."""
    own_ids = OwnIds(lambda raw: f"hash of {raw}")
    for raw in raws:
        own_ids.add(raw)
    return own_ids


UUID_TEXT = "0af76519-16cd-43dd-8448-eb211c80319c"


@pytest.mark.parametrize(
    ("form", "text", "endpoint"),
    [
        (Form.ROUTE, "/orders/{id}", "/orders/{id}"),
        (Form.ROUTE, "orders/:id", "/orders/{id}"),
        (Form.ROUTE, "/users/:id?", "/users/{id}"),
        (Form.ROUTE, "/users/:id?/x", "/users/{id}/x"),
        (Form.ROUTE, "/users?name=bob", "/users"),
        (Form.ROUTE, "/users?a[b]=c", "/users"),
        (Form.ROUTE, "/users/:id?/x?q=1", "/users/{id}/x"),
        (Form.ROUTE, "/a#b", "/a"),
        (Form.ROUTE, "#b", "/"),
        (Form.ROUTE, "http://shop.example/users/17", "/users/{id}"),
        (Form.ROUTE, "^users/(?P<pk>[^/.]+)/$", "/users/{pk}"),
        (Form.CALL, "acme.users.v1.UserService/GetUser", "/acme.users.v1.UserService/GetUser"),
        (Form.PATH, "/a/17?x", "/a/{id}"),
        (Form.PATH, "/a?", "/a"),
        (Form.PATH, "a/b", "/a/b"),
        (Form.PATH, "/A/b/", "/A/b/"),
        (Form.PATH, "//a", "//a"),
        (Form.PATH, "/a;v=1/b;jsessionid=2", "/a/b"),
        (Form.PATH, "http://u:p@shop.example/a", "/a"),
        (Form.TARGET, "/a?b=c", "/a"),
        (Form.TARGET, "http://u:p@shop.example/a?b", "/a"),
        (Form.TARGET, "http://shop.example", "/"),
        (Form.TARGET, "shop.example:443", "/"),
        (Form.TARGET, "*", "/"),
        (Form.TARGET, "//a/b", "//a/b"),
        (Form.TARGET, "/a#b?c", "/a"),
        (Form.URL, "https://u:p@shop.example:80/a/b?c#d", "/a/b"),
        (Form.URL, "https://shop.example", "/"),
        (Form.URL, "https://shop.example?x=/a", "/"),
        (Form.URL, "https://shop.example#x", "/"),
        (Form.URL, "//shop.example/a", "/a"),
        (Form.URL, "shop.example/a", "/a"),
        (Form.URL, "https://[::1]/a", "/a"),
        (Form.URL, "https://u:p#w@shop.example/a", "/"),
        (Form.URL, "mailto:bob", "/"),
    ],
)
def test_the_path_is_taken_out_of_every_form(form: Form, text: str, endpoint: str) -> None:
    """A host or a password is never part of it."""
    assert endpoint_of(text, form, own_ids=own()) == endpoint


IDS = [
    "17",
    "٣٤",
    UUID_TEXT,
    UUID_TEXT.upper(),
    UUID_TEXT.replace("-", ""),
    "{" + UUID_TEXT + "}",
    "0123456789abcdef",
    "ABCDEFABCDEFABCDEF",
    "alice@example.com",
    "alice@shop",
    "alice%40shop",
    "alice%2540example.com",
    "10.1.2.3",
    "2001:db8::1",
    "::1",
    "[::1]",
    "%31%37",
    "V1StGXR8Z5jdHi6BmyT1",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "a1b-c2-order-confirmation",
    "session-abcdefgh12345678",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    "4111-1111-1111-1111",
    "sk-4eC39HqLyjWDarjtT1zdp7dc",
    "bob:pw@shop",
    "bearer%20abcdef123",
]


@pytest.mark.parametrize("segment", IDS)
def test_a_segment_that_names_one_thing_becomes_a_placeholder(segment: str) -> None:
    """Else the table has a row a customer, and holds what identifies them."""
    assert endpoint_of(f"/a/{segment}/b", Form.PATH, own_ids=own()) == "/a/{id}/b"
    assert endpoint_of(f"/a/{segment}", Form.ROUTE, own_ids=own()) == "/a/{id}"


@pytest.mark.parametrize(
    "segment",
    [
        "orders",
        "v1",
        "claude-3-5-sonnet-20241022",
        "annual-report-2024.pdf",
        "acme.users.v1.UserService",
        "{id}",
        "{orderId:int}",
        "{*path}",
        ":id",
        ":orderId",
        "<id>",
        "<int:pk>",
        "{customerA1b2c3d4Identifier}",
        "abcdef",
        "deadbeef",
        "0123456789abcde",
        "1.2.3",
        "caf%C3%A9",
        "a%20b",
        "internationalization-and-localization",
        "a1b-c-order-confirmation",
        "1st-order-2nd-confirmation",
        "abcdefghijklmnopqrstuvwxyz",
        "20241022-20241023-20241024",
        "x" * 100,
    ],
)
def test_a_segment_that_is_a_name_stays(segment: str) -> None:
    """Templates that swallow names make one endpoint of many."""
    assert endpoint_of(f"/a/{segment}/b", Form.PATH, own_ids=own()) == f"/a/{segment}/b"


def test_the_spans_own_ids_become_placeholders() -> None:
    """An id of any form, when the span says itself that it is one."""
    assert endpoint_of("/u/alice/x", Form.PATH, own_ids=own("alice")) == "/u/{id}/x"
    assert endpoint_of("/u/%61lice/x", Form.PATH, own_ids=own("alice")) == "/u/{id}/x"
    assert endpoint_of("/u/alice2/x", Form.PATH, own_ids=own("alice")) == "/u/alice2/x"
    assert endpoint_of("/u/alice/x", Form.PATH, own_ids=own("bob")) == "/u/alice/x"


def test_a_long_path_is_judged_as_far_as_it_is_stored() -> None:
    """255 characters are kept; what lies beyond may be anything."""
    assert endpoint_of("/a" * 100_000, Form.PATH, own_ids=own())[:255] == ("/a" * 128)[:255]
    assert endpoint_of("/" + "x" * 300, Form.PATH, own_ids=own()) == "/" + "x" * 300
    assert endpoint_of("/" + "x" * 300 + "@y", Form.PATH, own_ids=own()) == "/{id}"


@pytest.mark.parametrize(
    "unit", ["/", "/a", "/1", "%", "%41", "/%41", "a1", "a-1-", "?", "?a", "a=", ";", ":", "/:", "{"]
)
@pytest.mark.parametrize("form", Form)
def test_no_path_takes_long(form: Form, unit: str) -> None:
    """The longest body is the sender's choice. Measured: below 20 ms."""
    started = time.process_time()
    for start in ("", "/", "http://"):
        endpoint_of(start + unit * (70_000 // len(unit)), form, own_ids=own("alice"))
    assert time.process_time() - started < 1
