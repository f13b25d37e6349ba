"""Plain records by the native engine: the row of the reference, or none; and taken by what our receiver writes."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import AfterValidator, ConfigDict, Field

from consumer.pipeline.batch import engine_of
from consumer.store.rows import plain_rows
from consumer.store.rows.plain_rows import PlainRows
from consumer.store.schema import ANALYTICS_TABLES, Row, row_of
from shared.engine import native_library
from shared.errors import Undecodable, WrongSetting
from shared.events import EVENT_MODELS, TIMESTAMP_US_MAX, TIMESTAMP_US_MIN, BaseEvent, FeatureUsage, UserActivity
from shared.wire import decode, encode
from support.copy_data import rows_of
from support.damaged_records import TOKENS, damaged
from support.golden import SENDERS, fates_of

GOLDEN = sorted((Path(__file__).parents[4] / "golden").glob("*.json"))
ORDINARY = (
    b'{"schema_version":2,"table":"endpoint_usage","id":"aba33538-575a-87bc-8565-ab82e28feed1",'
    b'"timestamp_us":1795524929306311,"deployment_type":"cloud","user_id":"f55777966accac8a",'
    b'"organization_id":"0cd168f3d5551c7f","service_name":"gateway","service_version":"1.2.3",'
    b'"trace_id":"0af76519-16cd-43dd-8448-eb211c80319c","weight":1.0,"endpoint":"/api/v1/invoices/{id}","method":"GET","status_code":200,'
    b'"duration_ms":21.1542,"event_metadata":{"service.name":"gateway","items":[1,2.5,{"a":null}],"is_trial":false}}'
)
SEEDS = [ORDINARY, *(path.read_bytes() for path in GOLDEN)]


LIBRARY = native_library()
PLAIN = LIBRARY and PlainRows(LIBRARY)


def plain_row(value: bytes) -> tuple[str, Row] | None:
    """By the engine alone, read back from its COPY data; None where it declines, or was not built."""
    if PLAIN is None:
        return None
    chunk = PLAIN.engine.read_values([(0, 0, value)])
    found = PLAIN.engine.by_table([(0, chunk, 0, 1, [])])
    assert (found == []) == (len(chunk.declined()) == 1)
    if not found:
        return None
    table = PLAIN.tables[found[0].table()]
    [row] = rows_of(table, found[0].copy_data(False))
    return table, row


def agrees(value: bytes) -> bool:
    """The engine has the row of the reference, or none; whether it has one, or was not built."""
    short = plain_row(value)
    try:
        event = decode(value)
    except Undecodable:
        assert short is None
        return False
    if short is None:
        return PLAIN is None
    assert short == (event.table, row_of(event))
    assert [*map(type, short[1])] == [*map(type, row_of(event))]  # 1 and 1.0 are equal, and are not the same
    return True


@pytest.mark.parametrize("sender", SENDERS)
def test_what_the_original_senders_sent_is_read_by_the_engine(sender: str) -> None:
    """Real traffic, of which the rows are written down by hand."""
    records = [json.dumps(fate, separators=(",", ":")).encode() for fate in fates_of(sender) if isinstance(fate, dict)]
    assert records
    assert all(map(agrees, records))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_what_our_encoder_writes_is_read_by_the_engine(path: Path) -> None:
    """Were it declined, everything would still be right, and half as fast."""
    event = decode(path.read_bytes())
    fields = {name: value for name, value in event if name not in ("schema_version", "table", "timestamp_us")}
    required = {name: value for name, value in fields.items() if type(event).model_fields[name].is_required()}
    for chosen in (fields, required):
        assert agrees(encode(type(event)(timestamp_us=1_795_460_000_123_456, **chosen)).value)
    assert agrees(ORDINARY)


@given(st.builds(damaged, st.sampled_from(SEEDS), st.integers(0)))
def test_a_damaged_record_has_the_row_of_the_reference_or_none(value: bytes) -> None:
    """A value that only one of the two accepts would be stored wrong, or be stored where it belongs to the letters."""
    agrees(value)


def test_each_odd_value_in_each_field() -> None:
    """One at a time, so that none hides behind another."""
    for seed in SEEDS:
        fields = json.loads(seed)
        odd = [seed + tail for tail in (b" ", b"\n", b"x", b"}", b",", b"\x00")] + [b" " + seed, b"\xef\xbb\xbf" + seed]
        for name in fields:
            before, _, rest = seed.decode().partition(f'"{name}":')
            after = rest[len(json.dumps(fields[name], separators=(",", ":"), ensure_ascii=False)) :]
            odd += [f'{before}"{name}":{token}{after}'.encode() for token in TOKENS]
        for value in odd:
            agrees(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.builds(
        FeatureUsage,
        timestamp_us=st.integers(TIMESTAMP_US_MIN, TIMESTAMP_US_MAX),
        deployment_type=st.text(max_size=50),
        feature_name=st.text(max_size=100),
        event_metadata=st.dictionaries(st.text(), JSON, max_size=4),
    )
    | st.builds(UserActivity, event_type=st.text(max_size=50), event_metadata=st.dictionaries(st.text(), JSON))
)
def test_any_event_has_the_row_of_the_reference_or_none(event: BaseEvent) -> None:
    agrees(encode(event).value)


@given(st.from_regex(r"(0|[1-9][0-9]{0,15})\.[0-9]{1,17}", fullmatch=True))
@example("9007199254740993.0")
@example("0.30000000000000004")
@example("2.2250738585072014")
def test_a_decimal_is_the_same_float(text: str) -> None:
    """Two parsers that round differently would make a replay change rows."""
    agrees(ORDINARY.replace(b"21.1542", text.encode()))


class Plain(FeatureUsage):
    """As FeatureUsage, under another name."""


class Validated(FeatureUsage):
    """With a rule that the wire does not show."""

    feature_name: Annotated[str, Field(max_length=100), AfterValidator(str.upper)]


class Ruled(FeatureUsage):
    """With a rule about the whole."""

    def model_post_init(self, _: Any, /) -> None:
        """Whatever it does."""


class Trimmed(FeatureUsage):
    """With a setting that changes every text."""

    model_config: ClassVar[ConfigDict] = ConfigDict(**{**BaseEvent.model_config, "str_strip_whitespace": True})


class Renewed(FeatureUsage):
    """Of a later version, which the encoder writes and the reader takes beside the earlier one."""

    schema_version: Literal[1, 2] = 2  # type: ignore[assignment]


class Widened(FeatureUsage):
    """With a column that the table has not got."""

    colour: Annotated[str, Field(max_length=10)] | None = None


class Renamed(FeatureUsage):
    """Read under another name."""

    feature_name: Annotated[str, Field(max_length=100)] = Field(validation_alias="feature")


class Keyed(FeatureUsage):
    """With limits on the names of metadata."""

    event_metadata: dict[Annotated[str, Field(max_length=3)], Any]  # type: ignore[assignment]


class Lax(FeatureUsage):
    """With a number for a text."""

    feature_name: Annotated[str, Field(max_length=100, coerce_numbers_to_str=True)]


@pytest.mark.parametrize("model", [Validated, Ruled, Trimmed, Widened, Renamed, Keyed, Lax])
def test_a_table_that_it_does_not_know_is_left_to_the_reference(model: type[BaseEvent]) -> None:
    """Whoever adds a rule to a model must not have to know of this module."""
    table = ANALYTICS_TABLES["feature_usage"]
    assert plain_rows._layout(Plain, table)["fields"]
    beginnings = [b'{"schema_version":%d,"table":"feature_usage",' % version for version in (1, 2)]
    assert plain_rows._layout(Renewed, table)["beginnings"] == beginnings
    with pytest.raises(plain_rows.Unknown):
        plain_rows._layout(model, table)


def test_every_table_is_known() -> None:
    """Lost by a change of a model, or of pydantic, it would cost time and nothing else would show it."""
    if PLAIN is not None:
        assert (sorted(PLAIN.tables), PLAIN.unknown) == (sorted(ANALYTICS_TABLES), [])
    assert {model.model_fields["table"].default for model in EVENT_MODELS} == ANALYTICS_TABLES.keys()


def test_a_forced_engine_that_was_not_built_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Served by the slow reference in silence, nobody would learn why the consumer lags."""
    monkeypatch.setitem(sys.modules, "telemetry_native", None)
    with pytest.raises(WrongSetting, match="ENGINE"):
        engine_of("native")
    assert engine_of("auto").name == engine_of("python").name == "python"
