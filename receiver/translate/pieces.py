"""attribute bytes -> the piece of a record that they become, each read once by the code of the long way. Pure.

Traffic repeats itself, so what an attribute became is remembered by its bytes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from pydantic_core import to_json

from receiver.decode import otlp
from receiver.translate import reading as keys
from receiver.translate.attributes import REPLACEMENT, Attributes, Keys, Notes, kind_of
from receiver.translate.endpoint import FORMS
from receiver.translate.metadata import candidates, event_metadata
from receiver.translate.reading import Reading
from receiver.translate.rules import CATEGORY, FEATURE_NAME, METHOD_KEYS, Rules
from shared.events import EVENT_MODELS

# So many attributes are remembered, of up to so many bytes: 40 MB if all are as long as they may be.
_KNOWN_MAX = 32_768
_KNOWN_BYTES_MAX = 256
_PLACES_MAX = 4_096  # keys
_USELESS_VALUES_MAX = 64  # of one key, remembered in order to be passed over quickly

# What is read off attributes: the columns, and what decides on the table; with the keys that may give it, in order.
READERS: dict[str, tuple[Keys, Callable[[Reading], Any]]] = {
    "category": ((CATEGORY,), Reading.category),
    "deployment_type": (keys.DEPLOYMENT_KEYS, lambda span: span.text("deployment_type", keys.DEPLOYMENT_KEYS)),
    "user_id": (keys.USER_KEYS, lambda span: span.ids["user_id"]),
    "organization_id": (keys.ORGANIZATION_KEYS, lambda span: span.ids["organization_id"]),
    "event_type": (keys.EVENT_TYPE_KEYS, lambda span: span.text("event_type", keys.EVENT_TYPE_KEYS)),
    "session_id": (keys.SESSION_KEYS, Reading.session_id),
    "endpoint": (tuple(FORMS), Reading.read_endpoint),
    "method": (METHOD_KEYS, Reading.method),
    "status_code": (keys.STATUS_KEYS, Reading.status_code),
    "duration_ms": (keys.DURATION_KEYS, Reading.duration_ms),
    "feature_name": ((FEATURE_NAME,), lambda span: span.text("feature_name", (FEATURE_NAME,))),
    "action": (keys.ACTION_KEYS, lambda span: span.text("action", keys.ACTION_KEYS)),
}
METADATA, NOWHERE, UNCLEAR = "event_metadata", "nowhere", "unclear"  # instead of a column
LAST = 99  # the rank of a default


class Declines(Exception):  # noqa: N818  a verdict, seen by nobody else
    """This is not plain."""


@dataclass(slots=True, eq=False)
class Place:
    """Where the values of a key go. Compared by identity: the places of a span's attributes are its shape."""

    column: str
    rank: int = 0  # of two keys for one column the lower wins
    name: str = ""  # in event_metadata; of a category, its table
    useless_values: int = 0
    number: int = field(default_factory=count().__next__)  # its identity outside of Python


@dataclass(slots=True, eq=False)
class Piece:
    """What an attribute becomes."""

    place: Place
    # Of a column, with a comma before it; empty for NULL. Of event_metadata, with a comma behind it; empty for what is
    # left out. None: not read, as it was not needed.
    text: str | None = None
    own_id: bytes = b""  # the raw id, where it is long enough to be looked for elsewhere
    own_times: int = 0  # how often the span's attribute itself says it
    # Where the hash of an id would take its place: words that may be it, and a path that may hold it.
    words: tuple[bytes, ...] = ()
    path: bytes = b""
    is_excluded: bool = False  # of an endpoint


class _Known(dict[bytes, Piece]):
    """Attributes by their bytes. Those that nobody had for long are forgotten first."""

    def __init__(self, read: Callable[[bytes], Piece]) -> None:
        super().__init__()
        self.unread: dict[bytes, Piece] = {}  # by key: of scalars that are not kept, or not before they are needed
        self._read = read
        self._older: dict[bytes, Piece] = {}

    def __missing__(self, raw: bytes) -> Piece:
        piece = self._older.get(raw)
        if piece is not None:
            return self.keep(raw, piece)
        return self.unread.get(key_of_scalar(raw)) or self._read(raw)

    def keep(self, raw: bytes, piece: Piece) -> Piece:
        if len(raw) <= _KNOWN_BYTES_MAX:
            if len(self) >= _KNOWN_MAX // 2:
                self._older = dict(self)
                self.clear()
            self[raw] = piece
        return piece


class Pieces:
    """Reads attributes, and remembers them. Bounded in memory, and the same whatever it has seen before."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.known = _Known(self.read)
        self._places: dict[bytes, Place] = {}
        self.default_deployment = Piece(
            Place("deployment_type", rank=LAST), text=_column("deployment_type", rules.deployment_type)
        )

    def read(self, raw: bytes) -> Piece:
        """The piece of an attribute; without its text if that is a column's.

        Raises:
            DecodeError: the attribute, and so the whole span, is malformed.
        """
        key = key_of_scalar(raw) or _pair(raw).key
        place = self._places.get(key) or self._place(key)
        if place.column == METADATA:
            return self.known.keep(raw, self._of_metadata(raw, place))
        if place.column == "category":
            return self.known.keep(raw, self._of_category(raw))
        if place.column != NOWHERE:
            piece = Piece(place)
        elif place.useless_values < _USELESS_VALUES_MAX:
            place.useless_values += 1
            return self.known.keep(raw, _USELESS)
        else:
            piece = _USELESS
        if key and key in self._places:  # no key stands for all attributes that are no scalars
            self.known.unread[key] = piece
        return piece

    def of_column(self, raw: bytes, place: Place) -> Piece:
        """The piece of an attribute that gives a column, with its text.

        Raises:
            Declines: the value is absent, cut, or of a kind that is not plain here.
        """
        pair, notes, piece, column = _pair(raw), Notes(), Piece(place), place.column
        span = self._reading(pair, notes)
        value, kind, said = READERS[column][1](span), kind_of(pair.value), pair.value.string_value
        if kind is None or notes.cuts or (value is None and column in _NEEDED):
            raise Declines
        if column in ("user_id", "organization_id"):
            piece.own_id = "".join(span.own_ids).encode()
            if REPLACEMENT.encode() in piece.own_id:  # equal to what it is not
                raise Declines
            piece.own_times = raw.count(piece.own_id)
        elif column in ("session_id", "endpoint"):
            if kind != "string_value" or (column == "endpoint" and b"%" in said):  # decoded, it may say any id
                raise Declines
            piece.words, piece.path = ((said,), b"") if column == "session_id" else ((), said)
            piece.is_excluded = column == "endpoint" and self._rules.is_excluded(value)
        piece.text = "" if value is None else _column(column, value)
        return piece

    def _place(self, key: bytes) -> Place:
        of_column, named = _COLUMN_PLACES.get(key), self._rules.allowed(key)
        if named is None:
            place = of_column or Place(NOWHERE)
        else:
            place = Place(UNCLEAR if of_column else METADATA, name=named.key.shown)
        if len(key) <= _KNOWN_BYTES_MAX:
            if len(self._places) >= _PLACES_MAX:
                self._places.clear()
                self.known.unread.clear()
            self._places[key] = place
        return place

    def _of_category(self, raw: bytes) -> Piece:
        category = self._reading(_pair(raw), Notes()).category()
        return Piece(_CATEGORY_PLACES[category]) if category in _CATEGORY_PLACES else _UNCLEAR_PIECE

    def _of_metadata(self, raw: bytes, place: Place) -> Piece:
        """One attribute's part of event_metadata; an empty text where it has none, but takes its name."""
        pair, notes, name = _pair(raw), Notes(), place.name.encode()
        # It may say an id where the id does not stand in its bytes, or stands there and is not the whole.
        is_opaque = name not in raw or pair.value.WhichOneof("value") in ("bytes_value", "array_value", "kvlist_value")
        if is_opaque:
            return _UNCLEAR_PIECE
        found = candidates({pair.key: pair.value}, "span", self._rules.allowed, notes)
        made = event_metadata(found, [], notes=notes, is_small=True)
        if notes.cuts:
            return _UNCLEAR_PIECE
        text = f"{to_json(made)[1:-1].decode()}," if made else ""
        return Piece(place, text, words=(name, pair.value.string_value))

    def _reading(self, pair: otlp.KeyValue, notes: Notes) -> Reading:
        return Reading(_EMPTY_SPAN, Attributes({pair.key: pair.value}, {}, notes), self._rules)


def key_of_scalar(raw: bytes) -> bytes:
    """The key of a well-formed attribute that is a text, an int or a double, with lengths of one byte; else empty."""
    if len(raw) < 2 or raw[0] != 0x0A:
        return b""
    value_at = raw[1] + 2
    size = len(raw) - value_at - 2
    if value_at >= 0x80 or not 2 <= size < 0x80:
        return b""
    if raw.startswith(_TEXT_HEADS[size], value_at) or _NUMBER.fullmatch(raw, value_at):
        return raw[2:value_at]
    return b""


_TEXT_HEADS = [bytes((0x12, size, 0x0A, max(0, size - 2))) for size in range(0x80)]
_INTS = (rb"\x12\x%02x\x18[\x80-\xff]{%d}[\x00-\x7f]" % (2 + more, more) for more in range(9))
_NUMBER = re.compile(rb"(?s:\x12\x09\x21.{8})|" + b"|".join(_INTS))


def _pair(raw: bytes) -> otlp.KeyValue:
    """Read as part of a span, so that nesting counts as it does there."""
    size, length = len(raw), bytearray(b"\x4a")
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return otlp.parse_span(bytes([*length, size]) + raw).attributes[0]


def _column(name: str, value: Any) -> str:
    return f',"{name}":{to_json(value).decode()}'


# Tables of which every column is read here; a newer one goes the long way until it is taken in.
_OTHERS = {"schema_version", "table", "id", "timestamp_us", "event_metadata"}
PLAIN_MODELS = {
    model.model_fields["table"].default: model
    for model in EVENT_MODELS
    if model.model_fields.keys() <= {*_OTHERS, *READERS}
}
_USELESS, _UNCLEAR_PIECE = Piece(Place(NOWHERE)), Piece(Place(UNCLEAR))
_EMPTY_SPAN = otlp.parse_span(b"")
_COLUMN_PLACES = {key: Place(name, rank) for name, (of, _) in READERS.items() for rank, key in enumerate(of)}
_CATEGORY_PLACES = {table: Place("category", name=table) for table in PLAIN_MODELS}
# Where no value is not NULL, but a span that is no event, or a duration from start to end.
_NEEDED = {"user_id", "organization_id", "duration_ms"} | {
    name
    for model in PLAIN_MODELS.values()
    for name, column in model.model_fields.items()
    if name in READERS and column.is_required()
}
