"""Plain records by the native engine: the row of the reference, or none; and taken by what our receiver writes."""

import json
import random
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, ConfigDict, Field

from consumer.store import plain_rows
from consumer.store.plain_rows import PlainRows
from consumer.store.schema import ANALYTICS_TABLES, row_of
from shared.errors import Undecodable, WrongSetting
from shared.events import EVENT_MODELS, TIMESTAMP_US_MAX, TIMESTAMP_US_MIN, BaseEvent, FeatureUsage, UserActivity
from shared.wire import decode, encode
from support.golden import SENDERS, fates_of

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.json"))
ORDINARY = (
    b'{"schema_version":2,"table":"endpoint_usage","id":"aba33538-575a-87bc-8565-ab82e28feed1",'
    b'"timestamp_us":1795524929306311,"deployment_type":"cloud","user_id":"f55777966accac8a",'
    b'"organization_id":"0cd168f3d5551c7f","service_name":"gateway","service_version":"1.2.3",'
    b'"trace_id":"0af76519-16cd-43dd-8448-eb211c80319c","weight":1.0,"endpoint":"/api/v1/invoices/{id}","method":"GET","status_code":200,'
    b'"duration_ms":21.1542,"event_metadata":{"service.name":"gateway","items":[1,2.5,{"a":null}],"is_trial":false}}'
)
SEEDS = [ORDINARY, *(path.read_bytes() for path in GOLDEN)]


PLAIN = PlainRows()


def agrees(value: bytes) -> bool:
    """The engine has the row of the reference, or none; whether it has one, or was not built."""
    short = PLAIN.read(value)
    try:
        event = decode(value)
    except Undecodable:
        assert short is None
        return False
    if short is None:
        return PLAIN.name == "python"
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


def damaged(raw: bytes, seed: int) -> bytes:
    """With one to three places changed, in its bytes or in its tokens."""
    dice = random.Random(seed)
    for _ in range(dice.randint(1, 3)):
        raw = (_damaged_byte if dice.random() < 0.3 else _damaged_token)(raw, dice)
    return raw


def _damaged_byte(raw: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(raw) + 1)
    put = dice.choice(
        (b"", dice.randbytes(1), b'"', b"\\", b"}", b"{", b",", b" ", b"\n", b"0", b"-", b"\x00", b"\x7f")
    )
    return raw[:at] + put + raw[at + dice.randrange(2) :]


NUMBERS = ["0", "-0", "1", "-1", "00", "01", "999", "1000", "1.0", "0.0", "-0.0", "0.1", "1e2", "1E400", "1.5e-7", ".5"]
NUMBERS += [
    "5.",
    "12345678901234567890",
    "99999999999999999",
    "253402300799999999",
    "253402300800000000",
    "1_0",
    "+1",
    "٣",
    "00.5",
]
NUMBERS += ["9223372036854775808", "0.1234567890123456789", "12345678901234567.5", "NaN", "Infinity", "-Infinity"]
TEXTS = ["", "x" * 10, "x" * 11, "x" * 256, "ü" * 32, "ü" * 33, "\U0001f600" * 10, "\u2028", "\x7f", "null", "\ufeff"]
WORDS = ['"\\u0000"', '"\\u00e9"', '"\\ud800"', '"\\n"', '"a\tb"', "null", "true", "{}", "[]", '{"a":1,"a":2}', "[{}]"]
WORDS += [
    '{"a":1},"event_metadata":{"b":2}',
    '{"a":1},"x":{}',
    '{"a":1},{"b":2}',
    '{"a":{"b":NaN}}',
    '{"a":1}}',
    "{" * 3,
    '{"a":1,}',
    "{'a':1}",
]
WORDS += ['{"a":' + "[" * depth + "]" * depth + "}" for depth in (1, 196, 197, 198, 199, 200, 201)]
ID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
WORDS += [f'"{ID.replace(part, part.upper())}"' for part in ID.split("-")]
WORDS += [f'"{ID.replace("-", "")}"', f'"{{{ID}}}"', f'"urn:uuid:{ID}"', f'"{ID[:-1]}"', f'"{ID}e"', '"user_activity"']
TOKENS = NUMBERS + WORDS + [json.dumps(text, ensure_ascii=False) for text in TEXTS]


def _damaged_token(raw: bytes, dice: random.Random) -> bytes:
    """A value replaced, or a field dropped, doubled, added or moved."""
    try:
        fields = dict(json.loads(raw))
    except (ValueError, TypeError):
        return _damaged_byte(raw, dice)
    if not fields:
        return raw
    name = dice.choice([*fields])
    parts = [(key, json.dumps(value, separators=(",", ":"), ensure_ascii=False)) for key, value in fields.items()]
    at = [*fields].index(name)
    match dice.randrange(8):
        case 0:
            del parts[at]
        case 1:
            parts.insert(dice.randrange(len(parts) + 1), parts[at])
        case 2:
            parts.insert(dice.randrange(len(parts) + 1), (dice.choice(("colour", "event_metadata", "action")), "{}"))
        case 3:
            parts.append(parts.pop(at))
        case _:
            parts[at] = name, dice.choice(TOKENS)
    text = ",".join(f'"{key}":{value}' for key, value in parts)
    return f"{{{text}}}".encode("utf-8", "surrogatepass")


FUZZ = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
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


@FUZZ
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


@FUZZ
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
    assert plain_rows._layout(Plain, table)["name"] == "feature_usage"
    beginnings = [b'{"schema_version":%d,"table":"feature_usage",' % version for version in (1, 2)]
    assert plain_rows._layout(Renewed, table)["beginnings"] == beginnings
    with pytest.raises(plain_rows.Unknown):
        plain_rows._layout(model, table)


def test_every_table_is_known() -> None:
    """Lost by a change of a model, or of pydantic, it would cost time and nothing else would show it."""
    layouts, unknown = plain_rows._layouts()
    assert [layout["name"] for layout in layouts] == [model.model_fields["table"].default for model in EVENT_MODELS]
    assert unknown == []


def test_a_forced_engine_that_was_not_built_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Served by the slow reference in silence, nobody would learn why the consumer lags."""
    monkeypatch.setitem(sys.modules, "telemetry_native", None)
    with pytest.raises(WrongSetting, match="ENGINE"):
        PlainRows("native")
    assert PlainRows("auto").name == PlainRows("python").name == "python"
