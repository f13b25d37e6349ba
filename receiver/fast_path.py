"""span bytes -> record bytes, for a span with nothing special about it: the short way of `translate` and `wire`. Pure.

Traffic repeats itself. So each attribute is read once, by the code that reads it on the long way, and remembered by
its bytes as the piece of JSON that it becomes; a record is pieces put together. Whatever is not plain is declined
and goes the long way: a value that is missing, bad or cut, a name that comes twice, an id that the span repeats
elsewhere. So the answer is either None or, byte for byte, that of the long way; tests compare the two over made-up
and damaged spans.
"""

from collections.abc import Callable, Iterable
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
from receiver.outcome import EXCLUDED_ENDPOINT, NOT_PRODUCT_EVENT, Ignored
from receiver.reading import Reading
from receiver.rules import CATEGORY, FEATURE_NAME, METHOD_KEYS, Rules
from shared.events import EVENT_MODELS, ProductEvent
from shared.wire import Record

# So many attributes are remembered, of up to so many bytes: 40 MB if all are as long as they may be.
_KNOWN_MAX = 32_768
_KNOWN_BYTES_MAX = 256
_PLACES_MAX = 4_096  # keys
_USELESS_VALUES_MAX = 64  # of one key, remembered in order to be passed over quickly
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
    """What an attribute becomes, and where it goes."""

    __slots__ = ("is_excluded", "name", "own_id", "parts", "rank", "raw", "slot", "text", "words")

    def __init__(self, slot: int, rank: int = 0, raw: bytes = b"", text: str | None = None) -> None:
        self.slot = slot
        self.rank = rank  # of two keys for one slot the lower wins, and the span's before the resource's
        self.raw = raw
        self.text = text  # of a column with a comma before it; empty for NULL and nothing; None: not needed until now
        self.name = ""  # in event_metadata
        self.own_id = b""  # the raw id, where it is long enough to be looked for elsewhere
        # Where the hash of an id would take its place: names and texts that may be it, whole, and a text in which it
        # may stand anywhere, or None where that cannot be told. No words: nowhere.
        self.words: tuple[bytes, ...] | None = None
        self.parts: bytes | None = b""
        self.is_excluded = False  # of an endpoint


class _Place:
    """Where the values of a key go."""

    __slots__ = ("rank", "slot", "useless_values")

    def __init__(self, slot: int, rank: int) -> None:
        self.slot = slot
        self.rank = rank
        self.useless_values = 0


_Chosen = list[_Piece | None]  # by slot


class PlainResource(NamedTuple):
    """A resource as its spans begin with it."""

    is_marked: bool
    chosen: _Chosen
    metadata: dict[str, _Piece]
    together: _Piece  # its whole event_metadata


class _Layout(NamedTuple):
    """A table's record: the columns that come from attributes, and whether they must be there, in wire order."""

    prefix: str
    columns: list[tuple[int, bool]]
    has_duration: bool


class FastPath:
    """Remembers attributes; one a process. Bounded in memory, and the same whatever it has seen before."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._span_bytes_max = min(_HALF_BYTES_MAX, rules.span_bytes_max, _PIECE_BYTES_MIN * rules.span_attributes_max)
        self._known: dict[bytes, _Piece] = {}
        self._places: dict[bytes, _Place] = {}
        text = _column("deployment_type", rules.deployment_type)
        self._deployment = _Piece(_DEPLOYMENT, rank=_LAST, text=text)
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
        span = otlp.parse_plain_span(raw)
        chosen = resource.chosen.copy()
        metadata: dict[str, _Piece] = {}
        known = self._known.get
        for attribute in span.attributes:
            piece = known(attribute) or self._unknown(attribute)
            slot = piece.slot
            if slot >= 0:
                rival = chosen[slot]
                if rival is None or piece.rank < rival.rank:
                    chosen[slot] = piece
            elif slot != _NOWHERE:
                _add(piece, metadata)
        table = self._table(span, chosen)
        if isinstance(table, Ignored):
            return table
        layout = _LAYOUTS[table]
        columns = self._columns(layout, chosen, [resource.together, *metadata.values()])
        start_ns = span.start_time_unix_nano
        if layout.has_duration and (chosen[_DURATION] is None or not columns[-1]):
            columns.append(_duration(start_ns, span.end_time_unix_nano))
        id_ = _id(span.trace_id, span.span_id)
        metadata_text = _joined(metadata, resource) if metadata else resource.together.text
        value = (
            f'{layout.prefix}{id_}","timestamp_us":{start_ns // 1000}{"".join(columns)}'
            f',"event_metadata":{{{metadata_text}}}}}'
        )
        return Record(table, id_.encode(), value.encode())

    def _table(self, span: otlp.PlainSpan, chosen: _Chosen) -> str | Ignored:
        """As `Reading.table` decides."""
        category = chosen[_CATEGORY]
        if category is not None:
            return category.text or self._text(category)
        if not self._rules.infer_events:
            return NOT_PRODUCT_EVENT
        if chosen[_FEATURE] is not None:
            return "feature_usage"
        method = chosen[_METHOD]
        if method is None or span.kind != otlp.SPAN_KIND_SERVER:
            return NOT_PRODUCT_EVENT
        endpoint = chosen[_ENDPOINT]
        for piece in (method, endpoint):
            if piece is not None and piece.text is None:
                self._text(piece)
        if endpoint is None or not endpoint.is_excluded:
            return "endpoint_usage"
        if self._may_name_owner(endpoint, chosen):
            raise _Declines  # `/health` of the user `health` is `/{id}`
        return EXCLUDED_ENDPOINT

    def _may_name_owner(self, endpoint: _Piece, chosen: _Chosen) -> bool:
        for owner in (chosen[_USER], chosen[_ORGANIZATION]):
            if owner is not None and owner.text is None:
                self._text(owner)
            if owner is not None and owner.own_id and (endpoint.parts is None or owner.own_id in endpoint.parts):
                return True
        return False

    def _columns(self, layout: _Layout, chosen: _Chosen, sayers: list[_Piece]) -> list[str]:
        """The table's columns; declines when a raw id of the span's may stand elsewhere in it too."""
        columns, owners = [], []
        for slot, is_required in layout.columns:
            piece = chosen[slot]
            if piece is not None:
                text = piece.text
                columns.append(self._text(piece) if text is None else text)
                if piece.own_id:
                    owners.append(piece)
                elif piece.words is not None:
                    sayers.append(piece)
            elif is_required:
                raise _Declines
        for owner in owners:
            own_id = owner.own_id
            for piece in sayers:
                if own_id in (piece.words or ()) or piece.parts is None or own_id in piece.parts:
                    raise _Declines
        return columns

    # ---- attributes, read once

    def _unknown(self, raw: bytes) -> _Piece:
        """Raises DecodeError when the attribute, and so the whole span, is malformed."""
        key = _key_of_text(raw) or _pair(raw).key
        place = self._places.get(key) or self._place(key)
        if place.slot >= 0:
            return _Piece(place.slot, place.rank, raw)  # remembered when its text is needed
        if place.slot == _METADATA:
            return self._remembered(raw, self._metadata_piece(raw))
        if place.slot == _UNCLEAR:
            raise _Declines
        if place.useless_values < _USELESS_VALUES_MAX:
            place.useless_values += 1
            self._remembered(raw, _USELESS)
        return _USELESS

    def _place(self, key: bytes) -> _Place:
        slot, rank = _COLUMN_PLACES.get(key, (_NOWHERE, 0))
        if self._rules.allowed(key):
            slot = _METADATA if slot == _NOWHERE else _UNCLEAR
        place = _Place(slot, rank)
        if len(key) <= _KNOWN_BYTES_MAX:
            if len(self._places) >= _PLACES_MAX:
                self._places.clear()
            self._places[key] = place
        return place

    def _remembered(self, raw: bytes, piece: _Piece) -> _Piece:
        if len(raw) <= _KNOWN_BYTES_MAX:
            if len(self._known) >= _KNOWN_MAX:
                self._known = {}
                self._places = {}
            self._known[raw] = piece
        return piece

    def _metadata_piece(self, raw: bytes) -> _Piece:
        """One attribute's part of event_metadata; an empty text where it has none, but takes its name."""
        pair, notes = _pair(raw), Notes()
        found = candidates({pair.key: pair.value}, "span", self._rules.allowed, notes)
        made = event_metadata(found, [], notes=notes, is_small=True)
        named = self._rules.allowed(pair.key)
        if notes.cuts or named is None:
            raise _Declines
        piece = _Piece(_METADATA, text=to_json(made)[1:-1].decode())
        piece.name = named.key.shown
        kind = pair.value.WhichOneof("value")
        piece.words = (piece.name.encode(), pair.value.string_value)
        piece.parts = None if kind in ("bytes_value", "array_value", "kvlist_value") else b""
        return piece

    def _text(self, piece: _Piece) -> str:
        """The column's text, now that it is needed; of a category, its table.

        Raises:
            _Declines: the value is absent, cut, or of a kind that is not plain here.
        """
        self._read(piece)
        self._remembered(piece.raw, piece)
        assert piece.text is not None
        return piece.text

    def _read(self, piece: _Piece) -> None:
        pair, notes = _pair(piece.raw), Notes()
        slot, name, kind = piece.slot, _NAMES[piece.slot], kind_of(pair.value)
        span = Reading(_EMPTY_SPAN, Attributes(by_key([pair]), {}, notes), self._rules)
        value = _READERS[name][1](span)
        if kind is None or notes.cuts or (slot in (_SESSION, _ENDPOINT) and kind != "string_value"):
            raise _Declines
        if value is None and name in _REQUIRED:
            raise _Declines
        if slot == _CATEGORY:
            if value not in _LAYOUTS:
                raise _Declines
            piece.text = value
            return
        if slot in (_USER, _ORGANIZATION):
            for own_id in span.own_ids:
                piece.own_id = own_id.encode()
            if value is None or REPLACEMENT.encode() in piece.own_id:  # faulty, or equal to what it is not
                raise _Declines
        elif slot == _SESSION:
            piece.words = (pair.value.string_value,)
        elif slot == _ENDPOINT:
            piece.is_excluded = self._rules.is_excluded(value)
            piece.words, path = (), pair.value.string_value
            piece.parts = None if b"%" in path else path  # decoded, it may say any id
        piece.text = "" if value is None else _column(name, value)

    def _resource(self, raw: bytes) -> PlainResource | None:
        """None when every span under it goes the long way."""
        if len(raw) > _HALF_BYTES_MAX:
            return None
        try:
            attributes = otlp.parse_plain_resource(raw).attributes
            if len(attributes) > self._rules.span_attributes_max:
                return None
            return self._plain(attributes, is_marked=self._rules.is_marked(raw))
        except (_Declines, DecodeError):
            return None

    def _plain(self, attributes: Iterable[bytes], *, is_marked: bool) -> PlainResource:
        chosen: _Chosen = [None] * len(_NAMES)
        chosen[_DEPLOYMENT] = self._deployment
        metadata: dict[str, _Piece] = {}
        for attribute in attributes:
            piece = self._unknown(attribute)
            if piece.slot == _METADATA:
                _add(piece, metadata)
            elif piece.slot >= 0:
                piece.rank += 1
                self._read(piece)
                rival = chosen[piece.slot]
                if rival is None or piece.rank < rival.rank:
                    chosen[piece.slot] = piece
        pieces = metadata.values()
        together = _Piece(_METADATA, text=",".join([piece.text for piece in pieces if piece.text]))
        together.words = tuple(word for piece in pieces for word in piece.words or ())
        together.parts = None if any(piece.parts is None for piece in pieces) else b""
        return PlainResource(is_marked, chosen, metadata, together)


def _add(piece: _Piece, metadata: dict[str, _Piece]) -> None:
    if piece.name in metadata:
        raise _Declines
    metadata[piece.name] = piece


def _key_of_text(raw: bytes) -> bytes:
    """The key of a well-formed attribute of text, with lengths of one byte; empty for any other."""
    try:
        value_at = raw[1] + 2
        size = len(raw) - value_at - 2
        if (
            raw[0] == 0x0A
            and value_at < 0x80
            and raw[value_at] == 0x12
            and raw[value_at + 1] == size < 0x80
            and raw[value_at + 2] == 0x0A
            and raw[value_at + 3] == size - 2
        ):
            return raw[2:value_at]
    except IndexError:
        pass
    return b""


def _pair(raw: bytes) -> otlp.KeyValue:
    """Read as part of a span, so that nesting counts as it does there."""
    size, length = len(raw), bytearray(b"\x4a")
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return otlp.parse_span(bytes([*length, size]) + raw).attributes[0]


def _joined(metadata: dict[str, _Piece], resource: PlainResource) -> str:
    if len(metadata) + len(resource.metadata) > KEYS_MAX or not metadata.keys().isdisjoint(resource.metadata):
        raise _Declines
    texts = [piece.text for piece in metadata.values() if piece.text]
    if resource.together.text:
        texts.append(resource.together.text)
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
    version, table = (model.model_fields[name].default for name in ("schema_version", "table"))
    columns = [(_SLOTS[name], field.is_required()) for name, field in model.model_fields.items() if name in _SLOTS]
    prefix = f'{{"schema_version":{version},"table":"{table}","id":"'
    return _Layout(prefix, columns, has_duration="duration_ms" in model.model_fields)


_USELESS = _Piece(_NOWHERE)
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
