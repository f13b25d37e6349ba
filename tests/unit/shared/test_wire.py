"""events <-> record values: what is in a topic today must be readable for ever."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from shared.errors import Undecodable
from shared.events import (
    EVENT_MODELS,
    EndpointUsage,
    FeatureUsage,
    ModelUsage,
    UserActivity,
    event_id,
    partition_of,
    text_limits,
)
from shared.wire import HEADERS, decode, encode

GOLDEN = Path(__file__).parents[2] / "golden"

EVENTS = {
    "feature_usage": FeatureUsage(
        id=UUID("e2681862-d99e-887f-8991-ca7edf58cbce"),
        timestamp_us=1_795_460_000_123_456,
        deployment_type="cloud",
        user_id="73475cb40a568e8d",
        feature_name="export",
        action="created",
        event_metadata={"plan": "pro"},
    ),
    "endpoint_usage": EndpointUsage(
        id=UUID("0a1b2c3d-4e5f-8a6b-9c7d-8e9f0a1b2c3d"),
        timestamp_us=1_795_460_000_000_001,
        deployment_type="self-hosted",
        user_id="73475cb40a568e8d",
        organization_id="3b12d0412db185c9",
        endpoint="/orders/{id}",
        method="GET",
        status_code=200,
        duration_ms=12.5,
        event_metadata={"service.name": "shop", "_truncated": ["endpoint"]},
    ),
    "user_activity": UserActivity(
        id=UUID("ffffffff-ffff-8fff-bfff-ffffffffffff"),
        timestamp_us=-1,
        deployment_type="cloud",
        user_id="73475cb40a568e8d",
        event_type="login",
        session_id="s-1",
        event_metadata={},
    ),
}
SINCE_VERSION_2 = {
    "service_name": "shop",
    "service_version": "1.4.2",
    "trace_id": UUID("0af76519-16cd-43dd-8448-eb211c80319c"),
    "weight": 4.0,
}
NEWEST = {
    **{table: event.model_copy(update=SINCE_VERSION_2) for table, event in EVENTS.items()},
    "model_usage": ModelUsage(
        id=UUID("0a1b2c3d-4e5f-8a6b-9c7d-8e9f0a1b2c3d"),
        timestamp_us=1_795_460_000_000_001,
        deployment_type="cloud",
        user_id="73475cb40a568e8d",
        service_name="assistant",
        operation="chat",
        provider="openai",
        model="gpt-4o-2024-08-06",
        input_tokens=1234,
        output_tokens=567,
        duration_ms=812.25,
        error_type="timeout",
        event_metadata={},
    ),
}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_records_of_every_version_decode(path: Path) -> None:
    """A topic is replayed years later: a decoder that forgets an old version loses those rows."""
    table, version = path.stem.split(".")
    event = decode(path.read_bytes())
    expected = {"v1": EVENTS, "v2": NEWEST}[version][table]
    assert event.model_dump(exclude={"schema_version"}) == expected.model_dump(exclude={"schema_version"})
    assert event.schema_version == int(version[1:])


@pytest.mark.parametrize("table", NEWEST)
def test_encoding_gives_the_golden_bytes_of_the_present_version(table: str) -> None:
    """A changed byte is a changed contract for every other reader of the topic."""
    record = encode(NEWEST[table])
    assert record.value == (GOLDEN / f"{table}.v2.json").read_bytes()
    assert record.key == str(NEWEST[table].id).encode()
    assert HEADERS[table] == [("event_type", table.encode()), ("schema_version", b"2")]


def test_the_weight_is_always_written() -> None:
    """A reader in SQL sums weights: it needs no rule for those that are missing."""
    assert b'"weight":1.0' in encode(EVENTS["user_activity"]).value


def test_every_table_has_a_golden_record() -> None:
    """A new table without one would be free to break."""
    assert {path.stem for path in GOLDEN.glob("*.json")} == {
        *(f"{table}.v1" for table in EVENTS),
        *(f"{table}.v2" for table in NEWEST),
    }
    assert {model.model_fields["table"].default for model in EVENT_MODELS} == set(NEWEST)


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads((GOLDEN / "feature_usage.v1.json").read_text()), **fields}).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "empty"),
        (b" ", "not_json"),
        (b"{", "not_json"),
        (b"\xff", "not_json"),
        (changed() + b"x", "not_json"),
        (b"null", "invalid_fields"),
        (b"[1]", "invalid_fields"),
        (b"{}", "unknown_type"),
        (changed(table="page_views"), "unknown_type"),
        (changed(table=None), "unknown_type"),
        (changed(schema_version=3), "newer_schema"),
        (changed(schema_version=3, table="page_views"), "newer_schema"),
        (changed(schema_version=1, table="model_usage"), "invalid_fields"),
        (changed(schema_version=0), "invalid_fields"),
        (changed(schema_version="1"), "invalid_fields"),
        (changed(schema_version=None), "invalid_fields"),
        (changed(schema_version=True), "invalid_fields"),
        (changed(schema_version=1.0), "invalid_fields"),
        (changed().replace(b'"schema_version": 1, ', b""), "invalid_fields"),
        (changed(id="not-a-uuid"), "invalid_fields"),
        (changed(feature_name="x" * 101), "invalid_fields"),
        (changed(feature_name=None), "invalid_fields"),
        (changed(timestamp_us="1"), "invalid_fields"),
        (changed(timestamp_us=10**18), "invalid_fields"),
        (changed(event_metadata=[]), "invalid_fields"),
    ],
)
def test_what_is_no_event_has_a_reason_that_repeats_nothing_of_it(value: bytes, reason: str) -> None:
    """The reason goes into tables and metrics, where the data must not."""
    with pytest.raises(Undecodable) as caught:
        decode(value)
    assert caught.value.reason == reason
    assert str(caught.value) == reason
    assert caught.value.__context__ is None


def test_unknown_fields_of_the_same_version_are_passed_over() -> None:
    """A sender may be newer than a reader."""
    assert decode(changed(colour="red")) == decode(changed())


def test_the_order_of_fields_and_the_space_between_them_carry_no_meaning() -> None:
    """Another producer's JSON library writes them as it likes."""
    fields = dict(reversed(json.loads(changed()).items()))
    assert decode(json.dumps(fields, indent=1).encode()) == decode(changed())


def test_text_limits_count_code_points_as_the_columns_do() -> None:
    """A limit in bytes would refuse what the column holds."""
    assert decode(changed(feature_name="ü" * 100)).table == "feature_usage"
    assert text_limits(FeatureUsage)["feature_name"] == 100


def test_the_id_is_the_documented_function_of_trace_and_span() -> None:
    """Other tools compute it to find a span's row."""
    computed = event_id(bytes.fromhex("0af7651916cd43dd8448eb211c80319c"), bytes.fromhex("b7ad6b7169203331"))
    assert str(computed) == "e2681862-d99e-887f-8991-ca7edf58cbce"
    assert computed.version == 8


def test_the_partition_is_the_last_four_bytes_modulo_the_partitions() -> None:
    """Every producer must agree, or two versions of a span race each other."""
    assert partition_of(UUID("e2681862-d99e-887f-8991-ca7edf58cbce"), 12) == 0xDF58CBCE % 12
