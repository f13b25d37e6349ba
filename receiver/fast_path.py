"""span bytes -> record bytes, for a span with nothing special about it: the short way of `translate` and `wire`. Pure.

Traffic repeats itself. So each value of an attribute is read once, by the code that reads it on the long way, and
remembered as the piece of JSON that it becomes; a record is pieces put together. Whatever is not plain is declined
and goes the long way: a value that is missing, bad or cut, a name that comes twice, an id that the span repeats
elsewhere. So the answer is either None or, byte for byte, that of the long way; tests compare the two over made-up
and damaged spans.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import orjson
from google.protobuf.message import DecodeError
from pydantic_core import to_json

from receiver import otlp
from receiver import reading as keys
from receiver.attributes import REPLACEMENT, Attributes, Keys, Notes, by_key, kind_of
from receiver.endpoint import FORMS
from receiver.memo import remembered
from receiver.metadata import KEYS_MAX, SAFE_WIRE_BYTES, candidates, event_metadata
from receiver.otlp import KeyValue, ValueKind
from receiver.outcome import EXCLUDED_ENDPOINT, NOT_PRODUCT_EVENT, Ignored
from receiver.reading import Reading
from receiver.rules import CATEGORY, FEATURE_NAME, METHOD_KEYS, Rules
from shared.events import EVENT_MODELS, SCHEMA_VERSION, ProductEvent
from shared.wire import Record

# Of up to so many bytes each: 20 MB if all are as long as they may be.
_VALUES_MAX = 32_768
_VALUE_BYTES_MAX = 256
_PLACES_MAX = 4_096  # attribute keys
_HALF_BYTES_MAX = SAFE_WIRE_BYTES // 2  # of a span, and of its resource: then event_metadata need not be measured
_PIECE_BYTES_MIN = 2  # of an attribute, a span event or a link on the wire
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)

# What is read off attributes: the columns, and what decides on the table; with the keys that may give it, in order.
_READERS: dict[str, tuple[Keys, Callable[[Reading], Any]]] = {
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
_NAMES = tuple(_READERS)
_SLOTS = {name: slot for slot, name in enumerate(_NAMES)}
_CATEGORY, _FEATURE, _METHOD = _SLOTS["category"], _SLOTS["feature_name"], _SLOTS["method"]
_USER, _ORGANIZATION = _SLOTS["user_id"], _SLOTS["organization_id"]
_SESSION, _ENDPOINT = _SLOTS["session_id"], _SLOTS["endpoint"]
_DEPLOYMENT, _DURATION = _SLOTS["deployment_type"], _SLOTS["duration_ms"]
_METADATA, _NOWHERE, _UNCLEAR = -1, -2, -3  # in the place of a slot, for keys that are no column's


class _Declines(Exception):  # noqa: N818  a verdict, seen by nobody else
    """This span is not plain."""


class _Piece:
    """What a value becomes."""

    __slots__ = ("is_excluded", "name", "own_id", "sayings", "text")

    def __init__(self, text: str) -> None:
        self.text = text  # JSON with a comma before it, and without in event_metadata; empty for NULL and nothing
        self.name = ""  # in event_metadata
        self.own_id = b""  # the raw id, where it is long enough to be looked for elsewhere
        self.sayings: _Sayings | None = None  # where a raw id would be replaced by its hash
        self.is_excluded = False  # of an endpoint


class _Sayings(NamedTuple):
    """Names and texts that are whole, and those in which an id may stand anywhere, or None where that is unclear."""

    whole: tuple[bytes, ...]
    parts: bytes | None = b""

    def may_be(self, own_id: bytes) -> bool:
        return own_id in self.whole or self.parts is None or own_id in self.parts


class _Place:
    """Where the values of a key go, and what the latest ones became."""

    __slots__ = ("ints", "known", "rank", "slot")

    def __init__(self, slot: int, rank: int) -> None:
        self.slot = slot
        self.rank = rank  # of two keys for one slot the lower wins, and the span's before the resource's
        self.known: dict[bytes, _Piece] = {}
        self.ints: dict[int, _Piece] = {}


# The value chosen for a slot: of a span as sent, of a resource read already.
_Choice = tuple[_Place, KeyValue | _Piece]


class PlainResource(NamedTuple):
    """A resource as its spans begin with it."""

    is_marked: bool
    chosen: list[_Choice | None]
    metadata: dict[str, _Piece]
    metadata_text: str
    sayings: _Sayings


class _Layout(NamedTuple):
    """A table's record: the columns that come from attributes, and whether they must be there, in wire order."""

    prefix: str
    columns: list[tuple[int, bool]]
    has_duration: bool


class FastPath:
    """Remembers values; one a process. Bounded in memory, and the same whatever it has seen before."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._span_bytes_max = min(_HALF_BYTES_MAX, rules.span_bytes_max, _PIECE_BYTES_MIN * rules.span_attributes_max)
        self._places: dict[bytes, _Place] = {}
        self._values = 0
        self._deployment = _Piece(_column("deployment_type", rules.deployment_type))
        self.resource = remembered(entries=512, length_max=_HALF_BYTES_MAX)(self._resource)

    def record_of(self, raw: bytes, resource: PlainResource) -> Record | Ignored | None:
        """The record of a span, or why it is none; None when only the long way can tell."""
        if not (resource.is_marked or self._rules.is_marked(raw)):
            return NOT_PRODUCT_EVENT
        if len(raw) > self._span_bytes_max:
            return None
        try:
            return self._record_of(raw, resource)
        except (_Declines, DecodeError):
            return None

    def _record_of(self, raw: bytes, resource: PlainResource) -> Record | Ignored:
        span = otlp.parse_span(raw)
        chosen = resource.chosen.copy()
        metadata: dict[str, _Piece] = {}
        place_of = self._places.get
        for pair in span.attributes:
            place = place_of(pair.key) or self._place(pair.key)
            slot = place.slot
            if slot >= 0:
                rival = chosen[slot]
                if rival is None or place.rank < rival[0].rank:
                    chosen[slot] = place, pair
            elif slot != _NOWHERE:
                _add(place.known.get(pair.value.string_value) or self._piece(place, pair), metadata)
        table = self._table(span, chosen)
        if isinstance(table, Ignored):
            return table
        layout = _LAYOUTS[table]
        columns = self._columns(layout, chosen, [resource.sayings, *_sayings(metadata)])
        start_ns = span.start_time_unix_nano
        if layout.has_duration and (chosen[_DURATION] is None or not columns[-1]):
            columns.append(_duration(start_ns, span.end_time_unix_nano))
        id_ = _id(span.trace_id, span.span_id)
        metadata_text = _joined(metadata, resource) if metadata else resource.metadata_text
        value = (
            f'{layout.prefix}{id_}","timestamp_us":{start_ns // 1000}{"".join(columns)}'
            f',"event_metadata":{{{metadata_text}}}}}'
        )
        return Record(table, id_.encode(), value.encode())

    def _columns(self, layout: _Layout, chosen: list[_Choice | None], sayings: list[_Sayings]) -> list[str]:
        """The table's columns; declines when a raw id of the span's may stand elsewhere in it too."""
        columns, own_ids = [], []
        for slot, is_required in layout.columns:
            choice = chosen[slot]
            if choice is not None:
                place, sent = choice
                if isinstance(sent, _Piece):
                    piece = sent
                else:
                    piece = place.known.get(sent.value.string_value) or self._piece(place, sent)
                columns.append(piece.text)
                if piece.own_id:
                    own_ids.append(piece.own_id)
                elif piece.sayings:
                    sayings.append(piece.sayings)
            elif is_required:
                raise _Declines
        for own_id in own_ids:
            for said in sayings:
                if said.may_be(own_id):
                    raise _Declines
        return columns

    def _table(self, span: otlp.Span, chosen: list[_Choice | None]) -> str | Ignored:
        """As `Reading.table` decides."""
        category = chosen[_CATEGORY]
        if category is not None:
            return self._chosen(category).text
        if not self._rules.infer_events:
            return NOT_PRODUCT_EVENT
        if chosen[_FEATURE] is not None:
            return "feature_usage"
        method = chosen[_METHOD]
        if method is None or span.kind != otlp.SPAN_KIND_SERVER:
            return NOT_PRODUCT_EVENT
        self._chosen(method)
        endpoint = chosen[_ENDPOINT]
        return EXCLUDED_ENDPOINT if endpoint and self._chosen(endpoint).is_excluded else "endpoint_usage"

    def _chosen(self, choice: _Choice) -> _Piece:
        place, sent = choice
        if isinstance(sent, _Piece):
            return sent
        return place.known.get(sent.value.string_value) or self._piece(place, sent)

    # ---- keys and values, read once

    def _place(self, key: bytes) -> _Place:
        slot, rank = _COLUMN_PLACES.get(key, (_NOWHERE, 0))
        if self._rules.allowed(key):
            slot = _METADATA if slot == _NOWHERE else _UNCLEAR
        place = _Place(slot, rank)
        if len(key) <= _VALUE_BYTES_MAX:
            if len(self._places) >= _PLACES_MAX:
                self._places.clear()
            self._places[key] = place
        return place

    def _piece(self, place: _Place, pair: KeyValue) -> _Piece:
        """What a value becomes, as it was remembered or as it is read now.

        Raises:
            _Declines: it is absent, cut, or of a kind that is not plain here.
        """
        if place.slot == _UNCLEAR:
            raise _Declines
        value = pair.value
        kind = kind_of(value)
        if kind == "int_value" and (known := place.ints.get(value.int_value)):
            return known
        piece = self._metadata_piece(pair) if place.slot == _METADATA else self._column_piece(place, pair, kind)
        if kind == "int_value":
            place.ints[value.int_value] = piece
        elif kind == "string_value" and len(value.string_value) <= _VALUE_BYTES_MAX:
            place.known[value.string_value] = piece
        else:
            return piece
        self._values += 1
        if self._values > _VALUES_MAX:
            self._forget()
        return piece

    def _forget(self) -> None:
        self._values = 0
        for place in self._places.values():
            place.known, place.ints = {}, {}

    def _metadata_piece(self, pair: KeyValue) -> _Piece:
        """One attribute's part of event_metadata; an empty text where it has none, but takes its name."""
        notes = Notes()
        found = candidates({pair.key: pair.value}, "span", self._rules.allowed, notes)
        made = event_metadata(found, [], notes=notes, is_small=True)
        named = self._rules.allowed(pair.key)
        if notes.cuts or named is None:
            raise _Declines
        piece = _Piece(to_json(made)[1:-1].decode())
        piece.name = named.key.shown
        kind = pair.value.WhichOneof("value")
        word = pair.value.string_value if kind == "string_value" else b""
        is_deep = kind in ("bytes_value", "array_value", "kvlist_value")
        piece.sayings = _Sayings((piece.name.encode(), word), None if is_deep else b"")
        return piece

    def _column_piece(self, place: _Place, pair: KeyValue, kind: ValueKind | None) -> _Piece:
        slot, name, notes = place.slot, _NAMES[place.slot], Notes()
        span = Reading(_EMPTY_SPAN, Attributes(by_key([pair]), {}, notes), self._rules)
        value = _READERS[name][1](span)
        if kind is None or notes.cuts or (slot in (_SESSION, _ENDPOINT) and kind != "string_value"):
            raise _Declines
        if slot == _CATEGORY:
            if value not in _LAYOUTS:
                raise _Declines
            return _Piece(value)
        if value is None and name in _REQUIRED:
            raise _Declines
        piece = _Piece("" if value is None else _column(name, value))
        sent = pair.value.string_value
        if slot in (_USER, _ORGANIZATION):
            for own_id in span.own_ids:
                piece.own_id = own_id.encode()
            if value is None or REPLACEMENT.encode() in piece.own_id:  # faulty, or equal to what it is not
                raise _Declines
        elif slot == _SESSION:
            piece.sayings = _Sayings((sent,))
        elif slot == _ENDPOINT:
            piece.is_excluded = value is not None and self._rules.is_excluded(value)
            piece.sayings = _Sayings((), None if b"%" in sent else sent)  # decoded, it may say any id
        return piece

    def _resource(self, raw: bytes) -> PlainResource | None:
        """None when every span under it goes the long way."""
        if len(raw) > _HALF_BYTES_MAX:
            return None
        try:
            attributes = otlp.parse_resource(raw).attributes
            if len(attributes) > self._rules.span_attributes_max:
                return None
            return self._read(attributes, is_marked=self._rules.is_marked(raw))
        except (_Declines, DecodeError):
            return None

    def _read(self, attributes: Sequence[KeyValue], *, is_marked: bool) -> PlainResource:
        chosen: list[_Choice | None] = [None] * len(_NAMES)
        chosen[_DEPLOYMENT] = _Place(_DEPLOYMENT, _LAST), self._deployment
        metadata: dict[str, _Piece] = {}
        for pair in attributes:
            place = self._place(pair.key)
            place = _Place(place.slot, place.rank + 1)
            rival = chosen[place.slot] if place.slot >= 0 else None
            if place.slot in (_METADATA, _UNCLEAR):
                _add(self._piece(place, pair), metadata)
            elif place.slot >= 0 and (rival is None or place.rank < rival[0].rank):
                chosen[place.slot] = place, self._piece(place, pair)
        text = ",".join([piece.text for piece in metadata.values() if piece.text])
        return PlainResource(is_marked, chosen, metadata, text, _together(_sayings(metadata)))


def _add(piece: _Piece, metadata: dict[str, _Piece]) -> None:
    if piece.name in metadata:
        raise _Declines
    metadata[piece.name] = piece


def _sayings(metadata: dict[str, _Piece]) -> list[_Sayings]:
    return [piece.sayings for piece in metadata.values() if piece.sayings]


def _together(sayings: list[_Sayings]) -> _Sayings:
    is_unclear = any(said.parts is None for said in sayings)
    return _Sayings(tuple(word for said in sayings for word in said.whole), None if is_unclear else b"")


def _joined(metadata: dict[str, _Piece], resource: PlainResource) -> str:
    if len(metadata) + len(resource.metadata) > KEYS_MAX or not metadata.keys().isdisjoint(resource.metadata):
        raise _Declines
    texts = [piece.text for piece in metadata.values() if piece.text]
    if resource.metadata_text:
        texts.append(resource.metadata_text)
    return ",".join(texts)


def _id(trace_id: bytes, span_id: bytes) -> str:
    """The text of `event_id`, made without the UUID."""
    if len(trace_id) != 16 or len(span_id) != 8 or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        raise _Declines
    digits = sha256(trace_id + span_id).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{_VARIANTS[digits[16]]}{digits[17:20]}-{digits[20:32]}"


_VARIANTS = {f"{digit:x}": f"{digit & 0x3 | 0x8:x}" for digit in range(16)}


def _duration(start_ns: int, end_ns: int) -> str:
    if end_ns == 0 or end_ns < start_ns:
        return ""
    return f',"duration_ms":{orjson.dumps((end_ns - start_ns) / 1_000_000).decode()}'


def _column(name: str, value: Any) -> str:
    return f',"{name}":{to_json(value).decode()}'


def _layout(model: type[ProductEvent]) -> _Layout:
    table = model.model_fields["table"].default
    columns = [(_SLOTS[name], field.is_required()) for name, field in model.model_fields.items() if name in _SLOTS]
    prefix = f'{{"schema_version":{SCHEMA_VERSION},"table":"{table}","id":"'
    return _Layout(prefix, columns, has_duration="duration_ms" in model.model_fields)


_EMPTY_SPAN = otlp.parse_span(b"")
_LAST = 99  # the rank of a default
_COLUMN_PLACES = {key: (_SLOTS[name], 2 * rank) for name, (of, _) in _READERS.items() for rank, key in enumerate(of)}
# Tables of which every column is read here; a newer one goes the long way until it is taken in.
_LAYOUTS = {
    model.model_fields["table"].default: _layout(model)
    for model in EVENT_MODELS
    if model.model_fields.keys() <= {"schema_version", "table", "id", "timestamp_us", "event_metadata", *_SLOTS}
}
_REQUIRED = {_NAMES[slot] for layout in _LAYOUTS.values() for slot, is_required in layout.columns if is_required}
