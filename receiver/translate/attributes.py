"""attribute lists -> values by key: span over resource, the first present key wins. Pure.

An attribute that is unset, empty or only white space is absent: then the resource's value, or the next key, is used.
Any other attribute is used, even when its type does not fit.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from receiver.decode.otlp import AnyValue, KeyValue, ValueKind
from receiver.translate.redaction.own_ids import OwnIds

AttributeMap = Mapping[bytes, AnyValue]
Keys = tuple[bytes, ...]
Origin = Literal["span", "resource"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Notes:
    """Notes of what was done to one span's values. Here only truncations are kept; `explain` keeps every note.

    A place is a column, or `event_metadata.<key>`. A place may be shown to anybody, a sender's key may not.
    """

    __slots__ = ("cuts", "is_raw_path", "own_ids")

    def __init__(self) -> None:
        self.cuts: set[str] = set()
        self.is_raw_path = False  # no template gave the span's path
        self.own_ids = OwnIds(hashed=str)  # of the span; reading gives it

    def cut(self, place: str, rule: str) -> None:  # noqa: ARG002  for explain
        self.cuts.add(place)

    def source(self, column: str, origin: str, key: bytes = b"") -> None:
        """The column came from there: the span, its resource, a setting."""

    def kept(self, name: str, origin: Origin, key: bytes) -> None:
        """The attribute is in event_metadata under `name`."""

    def dropped(self, key: bytes, rule: str) -> None:
        """The attribute, or key of a map, was left out."""

    def redacted(self, place: str, rule: str) -> None:
        """A text was replaced by `[redacted]` or by a hash."""


class Found(NamedTuple):
    """An attribute that is not absent."""

    key: bytes
    kind: ValueKind
    value: AnyValue


class Attributes(NamedTuple):
    """A span's attributes over its resource's."""

    span: AttributeMap
    resource: AttributeMap
    notes: Notes

    def first(self, keys: Keys, column: str) -> Found | None:
        """The first of `keys` that is present. It is noted as the source of `column`, unless `column` is empty."""
        for key in keys:
            value, origin = self.span.get(key), "span"
            kind = None if value is None else kind_of(value)
            if kind is None:
                value, origin = self.resource.get(key), "resource"
                kind = None if value is None else kind_of(value)
            if value is not None and kind is not None:
                if column:
                    self.notes.source(column, origin, key)
                return Found(key, kind, value)
        return None

    def all_of(self, keys: Keys) -> Iterator[Found]:
        """Each of `keys` that is present, of the span and of its resource."""
        for key in keys:
            for attributes in (self.span, self.resource):
                value = attributes.get(key)
                if value is not None and (kind := kind_of(value)):
                    yield Found(key, kind, value)


def by_key(pairs: Iterable[KeyValue]) -> dict[bytes, AnyValue]:
    """In the order sent; of a repeated key the first."""
    found: dict[bytes, AnyValue] = {}
    for pair in pairs:
        found.setdefault(pair.key, pair.value)
    return found


def kind_of(value: AnyValue) -> ValueKind | None:
    """The type of a value; None when it is absent."""
    kind = value.WhichOneof("value")
    return None if kind == "string_value" and _is_blank(value.string_value) else kind


def _is_blank(raw: bytes) -> bool:
    if raw and 0x20 < raw[0] < 0x7F:  # starts with a visible ASCII character: nearly always
        return False
    return not raw or decoded(raw).isspace()


def decoded(raw: bytes) -> str:
    """Text of any value but an id; invalid UTF-8 becomes U+FFFD. In an id that would make another subject."""
    return raw.decode(errors="replace")


def without_nul(text: str) -> str:
    """Postgres holds no NUL."""
    return text.replace("\0", REPLACEMENT) if "\0" in text else text


def text_of(found: Found | None) -> str | None:
    """A string as it is; an int, bool or double as JSON text; None for any other value."""
    if found is None:
        return None
    match found.kind:
        case "string_value":
            return decoded(found.value.string_value)
        case "int_value":
            return str(found.value.int_value)
        case "bool_value":
            return "true" if found.value.bool_value else "false"
        case "double_value" if math.isfinite(found.value.double_value):
            return repr(found.value.double_value)
        case _:
            return None


class BadId(Exception):  # noqa: N818  what the value is
    """The value is of a type that no id has, or not UTF-8."""


def raw_id_of(found: Found) -> str:
    """An id exactly as sent: not trimmed, not case-folded, not normalised.

    Raises:
        BadId: neither a string nor an int64, or invalid UTF-8.
    """
    if found.kind == "int_value":
        return str(found.value.int_value)
    if found.kind != "string_value":
        raise BadId
    try:
        return found.value.string_value.decode()
    except UnicodeDecodeError:
        raise BadId from None
