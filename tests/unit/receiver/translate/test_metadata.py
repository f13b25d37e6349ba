"""attributes -> event_metadata: what is allowed, what is dropped, and bounds that are named where they cut."""

import json
import time
from typing import Any

import pytest

from receiver.translate.engines.reference import read_resource, translate
from receiver.translate.redaction.privacy import JUDGED_CHARS_MAX
from shared.wire import decode, encode
from support.encoding import LOGIN, Text, metadata, outcome, pairs, resource_bytes, rules, span_bytes


def test_only_allowed_attributes_are_kept() -> None:
    """An allow-list: what nobody asked for is not stored."""
    assert metadata(
        {
            "metadata.plan": "pro",
            "service.name": "shop",
            "service.version": "1.2.3.4",
            "service.namespace": "eu",
            "error.type": "Timeout",
            "telemetry.sdk.language": "python",
            "service.instance.id": "x",
            "telemetry.sdk.name": "x",
            "metadata": "x",
            "metadatax": "x",
            "xmetadata.y": "x",
            "Metadata.y": "x",
            "metadata.": "x",
        }
    ) == {
        "plan": "pro",
        "service.name": "shop",
        "service.version": "1.2.3.4",
        "service.namespace": "eu",
        "error.type": "Timeout",
        "telemetry.sdk.language": "python",
    }


def test_the_allow_list_is_a_setting() -> None:
    """A `*` stands for any characters; nothing else in a pattern is special but as in file names."""
    by = rules(metadata_attributes=("a.*", "b", "c?"))
    assert metadata({"a.b.c": 1, "b": 2, "b.c": 3, "cd": 4, "metadata.x": 5, "axb": 6}, by=by) == {
        "a.b.c": 1,
        "b": 2,
        "cd": 4,
    }
    assert metadata({"metadata.x": 1}, by=rules(metadata_attributes=())) == {}


def test_keys_with_an_underscore_are_our_own() -> None:
    """A sender must not be able to say what we have cut."""
    assert metadata({"metadata._truncated": "x", "metadata._y": "x", "metadata.a_b": 1}) == {"a_b": 1}
    assert metadata({"_x": 1}, by=rules(metadata_attributes=("*",))).keys() == {
        "event.category",
        "event.type",
        "user.id",
    }


@pytest.mark.parametrize(
    ("span", "resource", "expected"),
    [
        ({"service.name": 1, "metadata.service.name": 2}, {}, 2),
        ({"metadata.service.name": 2, "service.name": 1}, {}, 2),
        ({"service.name": 1}, {"service.name": 2}, 1),
        ({"service.name": 1}, {"metadata.service.name": 2}, 2),
        ({"metadata.service.name": 1}, {"metadata.service.name": 2}, 1),
        ({"metadata.service.name": ""}, {"service.name": 2}, 2),
    ],
)
def test_collisions_have_one_winner(span: dict[str, Any], resource: dict[str, Any], expected: int) -> None:
    """`metadata.x` was meant for us, the plain key was not; and the span knows better than its resource."""
    assert metadata(span, resource=resource) == {"service.name": expected}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        (7, 7),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (True, True),
        (1.5, 1.5),
        (1.0, 1.0),
        (float("nan"), None),
        (float("inf"), None),
        (float("-inf"), None),
        ([], []),
        ({}, {}),
        (["a", 1, None, [2.5, float("nan")]], ["a", 1, None, [2.5, None]]),
        ({"a": {"b": [True]}, "c": "", "_d": None}, {"a": {"b": [True]}, "c": "", "_d": None}),
        (b"\x00\xffbytes", "AP9ieXRlcw=="),
        (b"", ""),
        ("a\0b", "a\ufffdb"),
        (Text(b"a\xffb"), "a\ufffdb"),
        ({"a\0": "\0"}, {"a\ufffd": "\ufffd"}),
    ],
)
def test_values_are_typed_json(value: Any, expected: Any) -> None:
    """A number stays a number: dashboards add them up."""
    found = metadata({"metadata.x": value})["x"]
    assert found == expected
    assert type(found) is type(expected)


def test_negative_zero_stays_what_it_is() -> None:
    """-0.0 == 0.0, so the text has to be looked at."""
    assert str(metadata({"metadata.x": -0.0})["x"]) == "-0.0"


@pytest.mark.parametrize("value", ["", " ", "\u2003", None])
def test_what_is_blank_is_absent(value: Any) -> None:
    """A key without a value says nothing; the resource's may."""
    assert metadata({"metadata.x": value}) == {}
    assert metadata({"metadata.x": value}, resource={"metadata.x": 1}) == {"x": 1}


# ---- secrets


def test_secret_keys_are_dropped_at_every_depth() -> None:
    """Booleans stay, and so do measures."""
    assert metadata(
        {
            "metadata.api_key": "x",
            "metadata.user.password": ["x"],
            "metadata.email_verified": True,
            "metadata.email_note": "x",
            "metadata.token_count": 7,
            "metadata.token_cost": 0.5,
            "metadata.token_count_text": "7",
            "metadata.token": 7,
            "metadata.prompt_tokens": 9,
            "metadata.cardinality": 3,
            "metadata.list": [{"secret": "x", "a": [{"jwt": {"b": 1}, "c": 1, "otp": False}]}],
        }
    ) == {
        "email_verified": True,
        "token_count": 7,
        "token_cost": 0.5,
        "prompt_tokens": 9,
        "cardinality": 3,
        "list": [{"a": [{"c": 1, "otp": False}]}],
    }


def test_secret_values_are_redacted_at_every_depth_and_in_keys() -> None:
    """The whole string, since the rest of it says whose it was."""
    assert metadata(
        {
            "metadata.a": "mail bob@example.org",
            "metadata.b": ["10.1.2.3", {"c": "sk-proj-4eC39HqLyjWDarjtT1zdp7dc", "bob@example.org": 1}],
            "metadata.bob@example.org": 2,
            "metadata.d": b"bob@example.org",
        }
    ) == {
        "a": "[redacted]",
        "b": ["[redacted]", {"c": "[redacted]", "[redacted]": 1}],
        "[redacted]": 2,
        "d": "[redacted]",
    }


def test_versions_are_no_addresses() -> None:
    """1.2.3.4 under a key of a version is one, at every depth."""
    assert metadata(
        {
            "service.version": "1.2.3.4",
            "metadata.os.version": "10.0.0.1",
            "metadata.app": {"version": ["1.2.3.4", "::1"], "name": "1.2.3.4"},
        }
    ) == {
        "service.version": "1.2.3.4",
        "os.version": "10.0.0.1",
        "app": {"version": ["1.2.3.4", "[redacted]"], "name": "[redacted]"},
    }


def test_the_spans_own_ids_become_their_hashes() -> None:
    """The same value that the columns hold, so that nothing is lost and nobody is named."""
    assert metadata(
        {
            "user.id": "u-1234",  # the first one, LOGIN's, counts
            "organization.id": "acme",
            "metadata.a": "acme",
            "metadata.b": ["acme", {"acme": "acme!"}],
            "metadata.c": "42",
            "metadata.d": b"acme",
            "metadata.e": "u-1234",
        }
    ) == {
        "a": ACME,
        "b": [ACME, {ACME: "acme!"}],
        "c": "42",  # too short to mean the user
        "d": ACME,
        "e": "u-1234",
    }


ACME = "822b33ad87c148a0"


def test_urls_lose_their_query_and_say_so() -> None:
    """What is gone is named."""
    assert metadata({"metadata.a": {"b": "https://a.example/x?token=1"}}) == {
        "a": {"b": "https://a.example/x"},
        "_truncated": ["event_metadata.a"],
    }


# ---- bounds


def test_sixty_four_keys_are_kept_the_spans_first() -> None:
    """In the order sent; `_truncated` counts for nothing."""
    span = {f"metadata.k{n:02}": n for n in range(60)}
    resource = {f"metadata.r{n:02}": n for n in range(10)}
    found = metadata(span, resource=resource)
    assert list(found) == [*(f"k{n:02}" for n in range(60)), "r00", "r01", "r02", "r03", "_truncated"]
    assert found["_truncated"] == [f"event_metadata.r{n:02}" for n in range(4, 10)]


def test_dropped_keys_take_no_room() -> None:
    """Sixty-four secrets must not push out the rest."""
    span = {**{f"metadata.token.k{n}": "x" for n in range(100)}, "metadata.a": 1}
    assert metadata(span) == {"a": 1}


def test_at_most_sixty_four_cuts_are_named() -> None:
    """The list of what was cut is bounded as well, and sorted."""
    span = {f"metadata.k{n:03}": n for n in reversed(range(300))}
    found = metadata(span)["_truncated"]
    assert found == [f"event_metadata.k{n:03}" for n in range(64)]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("x" * 1024, None),
        ("é" * 1025, "é" * 1024),
        ("\U0001f600" * 2000, "\U0001f600" * 1024),
        (list(range(64)), None),
        (list(range(65)), list(range(64))),
        ({f"k{n}": n for n in range(64)}, None),
        ({f"k{n}": n for n in range(65)}, {f"k{n}": n for n in range(64)}),
        ({"k" * 129: 1}, {"k" * 128: 1}),
        (b"\0" * 768, "AAAA" * 256),
        (b"\0" * 769, "AAAA" * 256),
        ([[[[1]]]], None),
        ([[[[[1]]]]], [[[["[cut]"]]]]),
        ({"a": {"b": {"c": {"d": {}}}}}, {"a": {"b": {"c": {"d": "[cut]"}}}}),
        (["x" * 1025, "y"], ["x" * 1024, "y"]),
    ],
)
def test_what_is_too_much_is_cut_and_named(value: Any, kept: Any) -> None:
    """A sender's mistake must not fill the table; a reader must see that something is missing."""
    found = metadata({"metadata.x": value})
    assert found["x"] == (value if kept is None else kept)
    is_cut = kept is not None and value != b"\0" * 768
    assert found.get("_truncated") == (["event_metadata.x"] if is_cut else None)


def test_a_long_key_is_cut_and_named_as_stored() -> None:
    """128 code points."""
    assert metadata({"metadata." + "é" * 130: 1}) == {
        "é" * 128: 1,
        "_truncated": ["event_metadata." + "é" * 128],
    }


def json_bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


@pytest.mark.parametrize("text", ["x" * 1000, "é" * 500, "\x01" * 300, '"\\' * 400])
def test_sixty_four_kibibytes_of_json_are_kept(text: str) -> None:
    """Later keys fall out: the first that does not fit, and all after it."""
    span = {**{f"metadata.k{n:02}": [text] * 8 for n in range(40)}, "metadata.small": 1}
    found = metadata(span)
    cuts = found.pop("_truncated")
    count = len(found)
    assert list(found) == [f"k{n:02}" for n in range(count)]
    assert json_bytes(found) <= 65_536 < json_bytes({**found, "next": [text] * 8})
    assert cuts == [*(f"event_metadata.k{n:02}" for n in range(count, 40)), "event_metadata.small"]


def test_a_map_of_exactly_the_bound_is_kept() -> None:
    """The arithmetic of commas and quotes, checked at the edge."""
    sixty = {f"k{n:02}": "x" * 1024 for n in range(60)}

    exact = {**sixty, "l": ["y" * 1000, "y" * 1000], "m": []}
    exact["m"] = ["y" * 1000, "z" * (65_536 - json_bytes({**exact, "m": ["y" * 1000, ""]}))]
    assert json_bytes(exact) == 65_536

    assert metadata({f"metadata.{name}": value for name, value in exact.items()}) == exact
    exact["m"][1] += "z"
    found = metadata({f"metadata.{name}": value for name, value in exact.items()})
    assert found.keys() == exact.keys() - {"m"} | {"_truncated"}


def test_a_secret_behind_the_cut_still_redacts() -> None:
    """Judged whole, then cut."""
    text = "x" * 20_000 + " bob@example.org"
    assert metadata({"metadata.x": text}) == {"x": "[redacted]"}


def test_text_beyond_what_is_judged_does_not_come_out() -> None:
    """Work is bounded, so some text is never looked at; none of that may be stored."""
    many = {f"metadata.k{n}": "y" * JUDGED_CHARS_MAX + "bob@example.org" for n in range(20)}
    found = metadata({**many, "metadata.z": "y" * 1020 + " bob@example.org"})
    assert found["z"] == "[redacted]"
    assert "example" not in json.dumps(found)


MEBIBYTE = 1024 * 1024


@pytest.mark.parametrize(
    "keys",
    [
        ["k" * 4 * MEBIBYTE + ".password"],
        ["k" * 250 + f".{n}.password" for n in range(1000)],
        ["k" * 4000 + f".{n}.password" for n in range(1000)],
    ],
)
def test_long_keys_take_no_time_and_let_no_secret_by(keys: list[str]) -> None:
    """What is too long to be judged is dropped. Measured: 10 to 70 ms; were every key read to its end, 100 to 450."""
    by = rules(span_bytes_max=8 * MEBIBYTE)
    long = {f"metadata.{key}": "hunter2" for key in keys}
    span = span_bytes([*LOGIN.items(), *long.items(), ("metadata.plan", "pro")])
    resource = resource_bytes(long)

    def took_s() -> float:
        started = time.process_time()
        event = translate(span, read_resource(resource, by), by)
        ended = time.process_time()
        assert event.event_metadata == {"plan": "pro"}  # type: ignore[union-attr]
        return ended - started

    assert any(took_s() < 0.3 for _ in range(3))  # a busy machine may slow one of them


def test_long_keys_are_kept_within_their_bound() -> None:
    """128 KiB of them, the first in order; short keys are none of them."""
    long = {f"metadata.{n}{'k' * 65_000}": True for n in range(3)}
    short = {f"metadata.{'s' * 110}{n}": n for n in range(10)}
    found = metadata(long | short)
    assert list(found) == [f"{n}{'k' * 127}" for n in range(2)] + [f"{'s' * 110}{n}" for n in range(10)] + [
        "_truncated"
    ]


def test_metadata_survives_the_topic() -> None:
    """What is written is what is read: nulls inside included."""
    event = outcome([*LOGIN.items(), *pairs({"metadata.x": [None, {"a": None}, -0.0, 1e300, "é\ufffd"]})])
    assert decode(encode(event).value) == event  # type: ignore[arg-type]
