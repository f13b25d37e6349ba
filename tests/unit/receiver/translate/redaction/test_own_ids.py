"""The span's own raw user and organization ids: found in no column and no metadata, in whatever spelling."""

from typing import Any
from urllib.parse import quote

import pytest

from receiver.translate import mapping
from receiver.translate.redaction.own_ids import OwnIds
from shared.identity import hash_id
from shared.wire import encode
from support.encoding import LOGIN, outcome
from support.shares import SHARES, one_in

USER = "48151623"
NAME = "alice-7"
TABLES: list[dict[str, Any]] = [
    {"event.category": "user_activity", "event.type": "login", "user.id": "42"},
    {"event.category": "endpoint_usage", "http.route": "/a"},
    {"event.category": "feature_usage", "feature.name": "export"},
    {"event.category": "model_usage", "gen_ai.operation.name": "chat"},
]
PLACES = [key.decode() for key in mapping.attributes() if key != mapping.CATEGORY]


def spellings(raw: str) -> list[Any]:
    """One id as senders write it."""
    numbers = [int(raw), float(raw)] if raw.isdigit() else []
    twice = quote(quote(f"%{ord(raw[0]):02x}" + raw[1:]))
    return [
        raw,
        *numbers,
        f" {raw} ",
        twice,
        f"&#{ord(raw[0])};{raw[1:]}",
        f"\\u{ord(raw[0]):04x}{raw[1:]}",
        raw[0] + "\u200b" + raw[1:],
        "".join(chr(ord(character) + 0xFEE0) for character in raw),  # full width
    ]


def texts_of(event: Any) -> str:
    """Everything of a record but what is made of the span's own times and ids."""
    return encode(event.model_copy(update={"id": event.id, "timestamp_us": 0})).value.decode()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("raw", [USER, NAME])
@pytest.mark.parametrize("key", [key.decode() for key in mapping.ID_KEYS])
def test_no_attribute_says_the_id_that_another_names(raw: str, key: str, share: int) -> None:
    """Also an id that lost against another key is somebody's."""
    seen = 0
    for table in TABLES if key == "user.id" else TABLES[:1]:
        for place in [*PLACES, "metadata.note", "metadata.list", "service.namespace"]:
            if place == key:
                continue
            for sent in one_in(share, spellings(raw), place):
                value = [sent, {"a": sent}] if place == "metadata.list" else sent
                found = outcome({**table, "duration_ms": 1, key: raw, place: value})
                if not hasattr(found, "table"):
                    assert found.reason.startswith("invalid_"), (place, sent, found)  # type: ignore[union-attr]
                    continue
                seen += 1
                text = texts_of(found)
                for form in (str(sent), raw, f"{raw}.0"):
                    assert form not in text, (place, sent, text)
    assert seen > 200 / share


@pytest.mark.parametrize("key", [key.decode() for key in mapping.ID_KEYS])
def test_a_resource_may_say_it_too(key: str) -> None:
    """A service that runs for one customer, and tells the customer's number twice."""
    for named, said in (("resource", "resource"), ("span", "resource"), ("resource", "span")):
        for sent in spellings(USER):
            for place in ("metadata.x", "service.name", "deployment.type", "error.type"):
                attributes: dict[str, dict[str, Any]] = {"span": {"feature.name": "x"}, "resource": {}}
                attributes[named][key] = USER
                attributes[said][place] = sent
                text = texts_of(outcome(attributes["span"], resource=attributes["resource"]))
                assert USER not in text, (named, said, place, sent)


@pytest.mark.parametrize(
    ("attribute", "column"),
    [
        ("event.type", "event_type"),
        ("deployment.type", "deployment_type"),
        ("session.id", "session_id"),
        ("service.name", "service_name"),
    ],
)
def test_the_hash_stands_in_its_place(attribute: str, column: str) -> None:
    """The row still says that both are the same person."""
    found = outcome({**LOGIN, "user.id": NAME, attribute: NAME})
    assert getattr(found, column) == hash_id(NAME)
    assert found.user_id == hash_id(NAME)  # type: ignore[union-attr]


def test_what_is_redacted_never_loses_the_span() -> None:
    """An analytics event without one of its texts is still an event."""
    secret = "https://u:p@h.example/"
    for required in (
        {"event.type": secret},
        {"event.type": NAME},
        {"event.type": "?token=x"},
        {"event.type": "a@b.co"},
    ):
        assert outcome({**LOGIN, "user.id": NAME, **required}).table == "user_activity"  # type: ignore[union-attr]
    usage = {"event.category": "endpoint_usage", "user.id": NAME}
    for path in (NAME, "?token=x", secret, "a@b.co", "#x"):
        for key in ("http.route", "url.path", "http.target", "url.full"):
            assert outcome({**usage, key: path}).table == "endpoint_usage"  # type: ignore[union-attr]
    for text in (NAME, "?a=b", secret):
        assert outcome({"feature.name": text, "user.id": NAME}).table == "feature_usage"  # type: ignore[union-attr]
    found = outcome({**usage, "http.route": "/a", "http.method": "alice-7"})
    assert (found.method, found.event_metadata) == (hash_id(NAME)[:10], {"_truncated": ["method"]})  # type: ignore[union-attr]


def test_a_number_column_that_says_the_id_is_null() -> None:
    """A hash is no number; a count that is the user's id by chance is one in many."""
    tokens = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 48151623}
    assert outcome(tokens).input_tokens == 48151623  # type: ignore[union-attr]
    assert outcome({**tokens, "user.id": USER}).input_tokens is None  # type: ignore[union-attr]
    assert outcome({**tokens, "gen_ai.usage.input_tokens": 4111111111111111}).input_tokens is None  # type: ignore[union-attr]
    timed = outcome({**tokens, "user.id": USER, "duration_ms": 48151623.0})
    assert timed.duration_ms == 12.5  # type: ignore[union-attr]  # the span's own


def test_short_ids_are_part_of_too_much() -> None:
    """Three characters stand in names that mean something else."""
    own_ids = OwnIds(hash_id)
    own_ids.add("abc")
    assert not own_ids
    own_ids.add("abcd")
    assert own_ids.hash_of("abcd") == own_ids.hash_of(" %61bcd") == hash_id("abcd")
    assert own_ids.hash_of("abcde") is None
    assert own_ids.hash_of_number(1234) is None
