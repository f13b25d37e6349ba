"""record batches -> COPY data by the native engine, for records just as our own encoder writes them. Pure.

`decode` and `row_of` are the reference, and say what a record means. The engine gives the same row or none: for another
order of fields, escapes, nulls, and whatever else is not plain. Its layouts are made from the event models and the
tables, so a new field is taken in by itself; a table with a kind of field or column that the engine does not know is
left to the reference as a whole.
"""

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, get_args
from uuid import UUID

import annotated_types
from pydantic import AllowInfNan
from pydantic.fields import FieldInfo
from sqlalchemy import BigInteger, DateTime, Double, Integer, String, Table, Text
from sqlalchemy.dialects import postgresql

from consumer.store.schema import ANALYTICS_TABLES, INDEX, KEY
from consumer.store.suppressions import COLUMN
from shared.events import EVENT_MODELS, BaseEvent

DECLINED = ("table", "field")  # another table, version or order of fields; a field that is written another way

_INT8_MIN, _INT8_MAX = -(2**63), 2**63 - 1
_CONSTANTS = ("schema_version", "table")
_TYPES: tuple[tuple[type[Any], str], ...] = (  # the first that fits
    (postgresql.UUID, "uuid"),
    (postgresql.JSONB, "json"),
    (DateTime, "timestamp"),
    (BigInteger, "int8"),
    (Integer, "int4"),
    (Double, "float8"),
    (String, "text"),
    (Text, "text"),
)


class Unknown(Exception):  # noqa: N818  no error: the reference serves that table
    """A kind of field or column that the engine does not know."""


class PlainRows:
    """The engine and the tables that it knows; one a process."""

    def __init__(self, library: ModuleType) -> None:
        layouts = _layouts(library)
        self.tables = [name for name, layout in layouts.items() if layout is not None]
        self.unknown = [name for name, layout in layouts.items() if layout is None]
        self.table_numbers = {name: number for number, name in enumerate(self.tables)}
        self.engine = library.Rows([layouts[name] for name in self.tables])


def _layouts(library: ModuleType) -> dict[str, dict[str, Any] | None]:
    """By table; None where the engine does not know it."""
    layouts: dict[str, dict[str, Any] | None] = {}
    for model in EVENT_MODELS:
        name = model.model_fields["table"].default
        try:
            layouts[name] = _layout(model, ANALYTICS_TABLES[name])
            library.Rows([layouts[name]])
        except (Unknown, ValueError):
            layouts[name] = None
    return layouts


def _layout(model: type[BaseEvent], table: Table) -> dict[str, Any]:
    decorators = model.__pydantic_decorators__
    has_rules = decorators.field_validators or decorators.model_validators or decorators.field_serializers
    if has_rules or model.__pydantic_post_init__ or model.model_config != BaseEvent.model_config:
        raise Unknown  # a rule beside the fields
    fields = {name: field for name, field in model.model_fields.items() if name not in _CONSTANTS}
    columns = INDEX[table.name]
    if {_column(name) for name in fields} != columns.keys():
        raise Unknown
    return {
        "beginnings": [
            f'{{"schema_version":{version},"table":"{table.name}",'.encode()
            for version in get_args(model.model_fields["schema_version"].annotation)
        ],
        "fields": [_field(name, field, columns[_column(name)]) for name, field in fields.items()],
        "types": [_type(column.type) for column in table.columns],
        "key": tuple(columns[name] for name in KEY),
        "subjects": [columns[name] for name in COLUMN.values()],
    }


def _column(field: str) -> str:
    return "timestamp" if field == "timestamp_us" else field


def _field(name: str, field: FieldInfo, column: int) -> dict[str, Any]:
    if field.alias or field.validation_alias or field.validate_default or field.default_factory:
        raise Unknown
    python_type, limits = _unwrapped(field)
    known: dict[Any, str] = {UUID: "uuid", str: "text", int: "integer", float: "double", dict[str, Any]: "object"}
    if python_type not in known:
        raise Unknown
    kind = known[python_type]
    minimum, maximum, chars_max = _INT8_MIN, _INT8_MAX, None
    for limit in limits:
        match limit:
            case annotated_types.MaxLen(most) if kind == "text":
                chars_max = most
            case annotated_types.Ge(int(least)) if kind in ("integer", "double"):
                minimum = least
            case annotated_types.Le(int(most)) if kind == "integer":
                maximum = most
            case AllowInfNan(allow_inf_nan=False) if kind == "double":
                pass  # the engine reads no such number
            case _:
                raise Unknown
    default = None if field.is_required() else field.default
    if kind == "text" and chars_max is None:
        raise Unknown
    return {
        "prefix": f'"{name}":'.encode(),
        "kind": kind,
        "chars_max": chars_max or 0,
        "minimum": minimum,
        "maximum": maximum,
        "is_required": field.is_required(),
        "column": column,
        "default": default,
    }


def _unwrapped(field: FieldInfo) -> tuple[Any, list[Any]]:
    """A field's type and its limits; of an optional type, those of the type."""
    limits = list(field.metadata)
    python_type: Any = field.annotation
    options = [option for option in get_args(python_type) if option is not type(None)]
    if type(None) in get_args(python_type):
        if len(options) != 1:
            raise Unknown
        [python_type] = options
    if hasattr(python_type, "__metadata__"):
        limits += _flattened(python_type.__metadata__)
        python_type = python_type.__origin__
    return python_type, _flattened(limits)


def _flattened(limits: Sequence[Any]) -> list[Any]:
    """`Field(ge=0)` inside an Annotated is one limit that holds others."""
    return [inner for limit in limits for inner in _inner(limit)]


def _inner(limit: Any) -> Iterator[Any]:
    if isinstance(limit, FieldInfo):
        yield from limit.metadata
    else:
        yield limit


def _type(column_type: Any) -> str:
    for known, name in _TYPES:
        if isinstance(column_type, known):
            return name
    raise Unknown
