"""records just as our own encoder writes them -> rows, by one regular expression a table. Pure.

`decode` and `row_of` are the long way, and say what a record means. This gives the same row in half the time, or none:
for other spaces or orders of fields, escapes, nulls, exponents, times before 1970, and whatever else is not plain. The
expressions are made from the schemas by which pydantic validates, so a new field is taken in, and one of a kind that
is unknown here sends its whole table the long way.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter
from pydantic_core import to_json

from consumer.store.schema import ANALYTICS_TABLES, Row
from shared.events import EVENT_MODELS, BaseEvent

_METADATA_KNOWN_MAX = 4096
_ID = r'"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"'
_DECIMAL = r"((?:0|[1-9][0-9]{0,15})\.[0-9]{1,17})"
_OBJECT = r"(\{.{0,1000}\})"  # longer ones seldom repeat, and would fill the memory

Convert = Callable[[str], Any]


class _Way(NamedTuple):
    """Of one table."""

    table: str
    beginning: bytes
    rest: Callable[[str, int], re.Match[str] | None]  # matches what comes behind that
    groups: tuple[int, ...]  # one a column
    conversions: tuple[tuple[int, Convert], ...]  # of those columns whose text is not their value


def plain_row(value: bytes) -> tuple[str, Row] | None:
    """The table and the row of a plain record; None when only the long way can tell."""
    for table, beginning, rest, groups, conversions in _WAYS:
        if value.startswith(beginning):
            try:
                found = rest(value.decode(), len(beginning))
                if found is None:
                    return None
                columns = list(found.group(*groups))
                for at, convert in conversions:
                    if (text := columns[at]) is not None:
                        columns[at] = convert(text)
            except ValueError:  # no UTF-8, or no JSON
                return None
            return table, tuple(columns)
    return None


@lru_cache(_METADATA_KNOWN_MAX)
def _metadata(text: str) -> str:
    """As the long way writes it: by the same validator and at the same depth, but as the only one of a list.

    Raises:
        ValueError: it is no JSON object, or more than one.
    """
    [metadata] = _validate_objects(f"[{text}]")
    return to_json(metadata).decode()


_validate_objects = TypeAdapter(list[dict[str, Any]], config=ConfigDict(strict=True)).validator.validate_json


class _Unknown(Exception):  # noqa: N818  no error: that table goes the long way
    """A kind of field, or of model, that the short way cannot stand for."""


def _kind(schema: Mapping[str, Any]) -> tuple[str, Convert | None]:
    """The pattern of a value, with one group, and what makes its text the column's value."""
    match schema:
        case {"type": "uuid", **more} if not more:
            return _ID, None
        case {"type": "str", "max_length": most, **more} if not more:
            return rf'"([^"\\\x00-\x1f]{{0,{most}}}+)"', None
        case {"type": "int", "ge": low, "le": high, **more} if low <= 0 and high >= 9 and not more:
            return rf"(0|[1-9][0-9]{{0,{len(str(high + 1)) - 2}}})", int  # as many digits as are never too many
        case {"type": "float", "ge": 0, "allow_inf_nan": False, **more} if not more:
            return _DECIMAL, float
        case {"type": "dict", **more} if more == {"keys_schema": {"type": "str"}, "values_schema": {"type": "any"}}:
            return _OBJECT, _metadata
    raise _Unknown


def _pared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without notes that no validator reads."""
    return {
        key: _pared(value) if isinstance(value, dict) else value for key, value in schema.items() if key != "metadata"
    }


def _way(model: type[BaseEvent]) -> _Way:
    """The way of the model's table.

    Raises:
        _Unknown: the short way cannot stand for it.
    """
    constants: list[str] = []
    fields: list[str] = []
    names: list[str] = []
    conversions: dict[str, Convert] = {}
    for name, field in _fields(model).items():
        match field:
            case {"type": "default", "default": constant, "schema": {"type": "literal", "expected": expected}} if (
                constant in expected and not names
            ):
                constants.append(f'"{name}":{to_json(constant).decode()},')
                continue
            case {"type": "default", "schema": {"type": "nullable", "schema": schema, **inner}, **outer} if (
                not inner and outer == {"default": None}
            ):
                or_none = "|"  # half the time of a question mark behind it
            case {"type": "default", "schema": {"type": "float"} as schema, **outer} if outer.keys() == {"default"}:
                or_none = ""  # our encoder writes it always
            case schema:
                or_none = ""
        pattern, convert = _kind(schema)
        comma = "," if names else ""
        fields.append(f'(?:{comma}"{name}":{pattern}{or_none})')
        names.append(name)
        if convert:
            conversions[name] = convert
    table = model.model_fields["table"].default
    columns = [
        "timestamp_us" if column.name == "timestamp" else column.name for column in ANALYTICS_TABLES[table].columns
    ]
    if sorted(columns) != sorted(names):
        raise _Unknown
    beginning = "{" + "".join(constants)
    return _Way(
        table,
        beginning.encode(),
        re.compile("".join(fields) + r"\}", re.DOTALL).fullmatch,
        tuple(names.index(column) + 1 for column in columns),
        tuple((columns.index(name), convert) for name, convert in conversions.items()),
    )


def _fields(model: type[BaseEvent]) -> Mapping[str, Mapping[str, Any]]:
    """The schemas of the fields, in their order, of a model with no rules beside them.

    Raises:
        _Unknown: it has some, or settings that may change what a value becomes.
    """
    match model.__pydantic_core_schema__:
        case {
            "type": "model",
            "config": {"strict": True, "extra_fields_behavior": _, "hide_input_in_errors": _, "title": _, **settings},
            "custom_init": False,
            "root_model": False,
            "cls": _,
            "ref": _,
            "metadata": _,
            "schema": {"type": "model-fields", "fields": fields},
            **more,
        } if not settings and not more:
            pared = {name: _pared(field) for name, field in fields.items()}
            if all(field.keys() == {"type", "schema"} for field in pared.values()):
                return {name: field["schema"] for name, field in pared.items()}
    raise _Unknown


def _ways() -> list[_Way]:
    found = []
    for model in EVENT_MODELS:
        try:
            found.append(_way(model))
        except _Unknown:
            continue
    return found


_WAYS = _ways()
