"""mapping -> the native engine's data. Pure: gives the engine only the kinds of value that it can read.

The engine sees no names of settings or columns. It gets positions, prefixes and limits.
"""

from collections.abc import Callable
from typing import Any

import orjson

from receiver.translate import mapping
from receiver.translate.cardinality import OTHER
from receiver.translate.endpoint import ID
from receiver.translate.mapping import Column, Form, Key, Setting, Table, When
from receiver.translate.metadata import KEYS_MAX, TEXT_CHARS_MAX, Named
from receiver.translate.redaction import privacy
from receiver.translate.rules import Rules
from shared.wire import HEADERS

# Columns and their ranks and forms; bits of conditions; the metadata's prefix and which types stay; is it judged?
Role = tuple[list[tuple[int, int, str]], int, tuple[bytes, bool, bool, bool] | None, bool]

# Why the engine leaves a span to the reference.
DECLINED = (
    *("wire", "size", "resource", "key", "repeated", "rule", "ids", "missing", "text", "path", "number", "own_id"),
    "trace",
)

_GLOB_SPECIALS = frozenset("?[")  # the engine's patterns know `*` alone
_CATEGORY = Column("", mapping.Text(), (Key(mapping.CATEGORY),))
_COLUMNS = (*mapping.COLUMNS, _CATEGORY)
_POSITIONS = {column.name: at for at, column in enumerate(_COLUMNS)}

_KINDS: dict[type[mapping.Kind], str] = {
    mapping.Text: "text",
    mapping.SessionText: "text",
    mapping.HashedId: "hashed_id",
    mapping.Token: "token",
    mapping.PathTemplate: "path",
    mapping.Integer: "integer",
    mapping.Duration: "number",
}
_SOURCES: dict[type[mapping.Kind], str] = {
    mapping.EventId: "event_id",
    mapping.TraceId: "trace_id",
    mapping.StartTime: "timestamp_us",
    mapping.SamplingWeight: "weight",
    mapping.Metadata: "metadata",
}
_FORMS = {None: "", Form.ROUTE: "route", Form.PATH: "path"}


def mapping_spec(rules: Rules, *, spans_max: int, fields_max: int) -> dict[str, Any]:
    """The mapping and the settings, as the engine takes them."""
    bits = _condition_bits()
    whens = [(when, table) for table in mapping.TABLES for when in table.inferred_when] if rules.infer_events else []
    return {
        "columns": [_column(column, rules) for column in _COLUMNS],
        "tables": [_table(table, rules) for table in mapping.TABLES],
        "category": _POSITIONS[_CATEGORY.name],
        "inferences": [_inference(when, table, bits, rules) for when, table in whens],
        "exclusions": list(rules.endpoint_exclude),
        "hash_key": rules.hashed.key or None,
        "is_prehashed": rules.hashed.mode == "prehashed",
        "placeholder": ID.encode(),
        "span_bytes_max": rules.span_bytes_max,
        "span_attributes_max": rules.span_attributes_max,
        "metadata_keys_max": KEYS_MAX,
        "metadata_chars_max": TEXT_CHARS_MAX,
        "spans_max": spans_max,
        "fields_max": fields_max,
        "counted": [(_prefix(column), _prefix(owner)) for column, owner in mapping.COUNTED.items()],
        "wildcard": OTHER.encode(),
        "deciding_keys": list(mapping.deciding_keys(infer_events=rules.infer_events)),
        "suspicious": [
            (literal.encode(), literal in privacy.BOUNDED_LITERALS)
            for literal in privacy.LITERALS
            if literal not in ("@", "://")  # no plain text has them
        ],
    }


def role_of(rules: Rules) -> Callable[[bytes], Role]:
    """The function that tells what an attribute's key says about its value. The engine calls it once for each key."""
    bits = _condition_bits()
    by_key: dict[bytes, list[tuple[int, int, str]]] = {}
    for at, column in enumerate(_COLUMNS):
        for rank, key in enumerate(column.keys):
            by_key.setdefault(key.name, []).append((at, rank, _form(key)))

    def role(key: bytes) -> Role:
        columns = by_key.get(key, [])
        named = rules.allowed(key)
        is_judged = named is not None and (bool(named.key.rule) or named.key.is_cut or key in mapping.ID_KEYS)
        return columns, bits.get(key, 0), None if named is None or is_judged else _metadata(named), is_judged

    return role


def _form(key: Key) -> str:
    return "judged" if key.renames or key.behind else _FORMS.get(key.form, "judged")


def _metadata(named: Named) -> tuple[bytes, bool, bool, bool]:
    key = named.key
    prefix = orjson.dumps(key.shown) + b":"
    return prefix, not key.is_secret, key.is_measure or not key.is_secret, True


def _condition_bits() -> dict[bytes, int]:
    whens = [when for table in mapping.TABLES for when in table.inferred_when]
    keys = dict.fromkeys(key for when in whens for key in (*when.any_of, *when.all_of))
    return {key: 1 << at for at, key in enumerate(keys)}


def _column(column: Column, rules: Rules) -> dict[str, Any]:
    read = column.read
    limits = [table.chars_max[column.name] for table in mapping.TABLES if column.name in table.chars_max]
    is_shared = column.is_shared_by_trace and rules.identity_by_trace
    minimum, maximum = (read.minimum, read.maximum) if isinstance(read, mapping.Integer) else (0, 0)
    return {
        "kind": _KINDS.get(type(read), ""),
        "chars_max": min(limits, default=0),
        "minimum": minimum,
        "maximum": maximum,
        "is_inherited": is_shared,
        "is_named_by_span": isinstance(read, mapping.PathTemplate) and read.is_named_by_span,
        "shared_keys": list(column.key_names) if is_shared else [],
    }


def _table(table: Table, rules: Rules) -> dict[str, Any]:
    fields = table.event.model_fields
    version = fields["schema_version"].default
    return {
        "name": table.name,
        "prefix": f'{{"schema_version":{version},"table":"{table.name}",'.encode(),
        "fields": [_field(column, rules, is_required=fields[column.name].is_required()) for column in table.columns],
        "headers": HEADERS[table.name],
    }


def _field(column: Column, rules: Rules, *, is_required: bool) -> dict[str, Any]:
    default = b"1.0" if isinstance(column.read, mapping.SamplingWeight) else None
    if isinstance(column.otherwise, Setting):
        default = orjson.dumps(getattr(rules, column.otherwise.name))
    return {
        "prefix": _prefix(column.name),
        "source": _SOURCES.get(type(column.read), "column"),
        "column": _POSITIONS[column.name],
        # A constant depends on conditions, which only the reference checks.
        "is_required": (is_required and default is None) or isinstance(column.otherwise, mapping.Constant),
        "default": default,
        "is_duration": isinstance(column.read, mapping.Duration),
    }


def _prefix(column: str) -> bytes:
    return f'"{column}":'.encode()


def _inference(when: When, table: Table, bits: dict[bytes, int], rules: Rules) -> dict[str, Any]:
    has_odd_glob = bool(table.excluded_by) and any(_GLOB_SPECIALS & set(glob) for glob in rules.endpoint_exclude)
    is_judged = bool(when.values) or has_odd_glob
    return {
        "needs_server": when.is_server,
        "any_of": sum(bits[key] for key in when.any_of),
        "all_of": sum(bits[key] for key in when.all_of),
        "table": None if is_judged else mapping.TABLES.index(table),
        "excluded_by": _POSITIONS[table.excluded_by] if table.excluded_by else None,
    }
