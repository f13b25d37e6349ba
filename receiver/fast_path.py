"""span bytes -> record bytes, for a span with nothing special about it: the short way of `translate` and `wire`. Pure.

Traffic repeats itself. So each attribute is read once, by the code that reads it on the long way, and remembered by
its bytes as the piece of JSON that it becomes. Spans of one make have the same keys in the same order, so which of
their pieces go where is planned once for each such shape. Whatever is not plain is declined and goes the long way: a
value that is missing, bad or cut, a name that comes twice, an id that the span repeats elsewhere. So the answer is
either None or, byte for byte, that of the long way; tests compare the two over made-up and damaged spans.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, cast

import orjson
from google.protobuf.message import DecodeError
from pydantic_core import to_json

from receiver import otlp
from receiver import reading as keys
from receiver.attributes import REPLACEMENT, Attributes, Keys, Notes, kind_of
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
_PLANS_MAX = 2_048  # shapes, of up to so many attributes
_PLANNED_ATTRIBUTES_MAX = 128
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
_OWNERS = ("user_id", "organization_id")
_METADATA, _NOWHERE, _UNCLEAR = "event_metadata", "nowhere", "unclear"  # instead of a column


class _Declines(Exception):  # noqa: N818  a verdict, seen by nobody else
    """This span is not plain."""


@dataclass(slots=True, eq=False)
class _Place:
    """Where the values of a key go. Compared by identity: the places of a span's attributes are its shape."""

    column: str
    rank: int = 0  # of two keys for one column the lower wins
    name: str = ""  # in event_metadata; of a category, its table
    useless_values: int = 0


@dataclass(slots=True, eq=False)
class _Piece:
    """What an attribute becomes."""

    place: _Place
    # Of a column, with a comma before it; empty for NULL. Of event_metadata, with a comma behind it; empty for what is
    # left out. None: not read, as it was not needed.
    text: str | None = None
    own_id: bytes = b""  # the raw id, where it is long enough to be looked for elsewhere
    own_times: int = 0  # how often the span's attribute itself says it
    # Where the hash of an id would take its place: words that may be it, and a path that may hold it.
    words: tuple[bytes, ...] = ()
    path: bytes = b""
    is_excluded: bool = False  # of an endpoint


_place_of, _text_of = attrgetter("place"), attrgetter("text")


class _Known(dict[bytes, _Piece]):
    """Attributes by their bytes. Those that nobody had for long are forgotten first."""

    def __init__(self, read: Callable[[bytes], _Piece]) -> None:
        super().__init__()
        self.unread: dict[bytes, _Piece] = {}  # by key: of values that are not kept, or not before they are needed
        self._read = read
        self._older: dict[bytes, _Piece] = {}

    def __missing__(self, raw: bytes) -> _Piece:
        piece = self._older.get(raw)
        if piece is not None:
            return self.keep(raw, piece)
        return self.unread.get(_key_of_text(raw)) or self._read(raw)

    def keep(self, raw: bytes, piece: _Piece) -> _Piece:
        if len(raw) <= _KNOWN_BYTES_MAX:
            if len(self) >= _KNOWN_MAX // 2:
                self._older = dict(self)
                self.clear()
            self[raw] = piece
        return piece


@dataclass(slots=True, eq=False)
class PlainResource:
    """A resource as its spans begin with it. Compared by identity."""

    columns: list[_Piece]  # behind those of a span, which win where they have the same key
    metadata: str
    names: set[str]  # in event_metadata
    words: set[bytes]  # those of its pieces


class _Layout(NamedTuple):
    """A table's record: the columns that come from attributes, and whether they must be there, in wire order."""

    prefix: str
    columns: list[tuple[str, bool]]


@dataclass(slots=True, eq=False)
class _Plan:
    """What becomes of the spans of one shape. `owners`, `picked` and `endpoint` are positions among their pieces."""

    table: str
    prefix: str
    picked: list[int]  # in wire order: columns, then event_metadata
    pick: Callable[[list[_Piece]], tuple[_Piece, ...]]
    columns: int  # so many of them
    owners: list[int]  # user and organization
    is_timed: bool  # the last column is the time from start to end
    endpoint: int | None  # of what is an event only as a server's span, and only if it is not excluded


class FastPath:
    """Remembers attributes and shapes; one a process. Bounded in memory, and the same whatever it has seen before."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._span_bytes_max = min(_HALF_BYTES_MAX, rules.span_bytes_max, _PIECE_BYTES_MIN * rules.span_attributes_max)
        self._known = _Known(self._unknown)
        self._places: dict[bytes, _Place] = {}
        self._plans: dict[tuple[object, ...], _Plan | Ignored | None] = {}
        text = _column("deployment_type", rules.deployment_type)
        self._deployment = _Piece(_Place("deployment_type", rank=_LAST), text=text)
        self.resource = remembered(entries=512, length_max=_HALF_BYTES_MAX)(self._resource)

    def records_of(self, raws: Sequence[bytes], resource: PlainResource) -> list[Record | Ignored | None]:
        """What becomes of spans, in their order: a record, or why it is none; None where only the long way can tell.

        Goes stage by stage over all of them, which takes a fifth less than span by span.

        Raises:
            DecodeError: one of them is malformed.
        """
        made: list[Record | Ignored | None] = [None] * len(raws)
        short = [at for at, raw in enumerate(raws) if len(raw) <= self._span_bytes_max]
        spans = [otlp.parse_plain_span(raws[at]) for at in short]
        pieces = [[*map(self._known.__getitem__, span.attributes), *resource.columns] for span in spans]
        planned = []
        for at, span, of_span in zip(short, spans, pieces, strict=True):
            plan = self._plan_of(of_span, resource)
            if not isinstance(plan, _Plan):
                made[at] = plan
            elif plan.endpoint is not None and span.kind != otlp.SPAN_KIND_SERVER:
                made[at] = NOT_PRODUCT_EVENT
            elif (texts := self._texts(plan, of_span, span, raws[at], resource)) is None:
                continue
            elif plan.endpoint is not None and of_span[plan.endpoint].is_excluded:
                made[at] = EXCLUDED_ENDPOINT
            else:
                planned.append((at, plan, span, texts))
        for (at, *_), record in zip(planned, _records(planned, resource), strict=True):
            made[at] = record
        return made

    def _texts(
        self, plan: _Plan, pieces: list[_Piece], span: otlp.PlainSpan, raw: bytes, resource: PlainResource
    ) -> list[str] | None:
        """What the span's attributes give to its record; None when it goes the long way."""
        texts = [*map(_text_of, plan.pick(pieces))]
        if None in texts:
            try:
                for at in plan.picked:
                    if pieces[at].text is None:
                        read = span.attributes[at]
                        pieces[at] = self._known.keep(read, self._column_piece(read, pieces[at].place))
            except _Declines:
                return None
            texts = [*map(_text_of, plan.pick(pieces))]
        for at in plan.owners:
            own_id = pieces[at].own_id
            if (
                own_id
                and (own_id in resource.words or raw.count(own_id) > pieces[at].own_times)
                and _is_said(own_id, plan.pick(pieces), resource)
            ):
                return None
        return cast("list[str]", texts)

    # ---- shapes, planned once

    def _plan_of(self, pieces: Sequence[_Piece], resource: PlainResource) -> _Plan | Ignored | None:
        """None when spans of this shape go the long way."""
        shape = (resource, *map(_place_of, pieces))
        try:
            return self._plans[shape]
        except KeyError:
            plan = self._plan(pieces, resource)
        if len(pieces) <= _PLANNED_ATTRIBUTES_MAX:
            if len(self._plans) >= _PLANS_MAX:
                self._plans.clear()
            self._plans[shape] = plan
        return plan

    def _plan(self, pieces: Sequence[_Piece], resource: PlainResource) -> _Plan | Ignored | None:
        chosen: dict[str, int] = {}
        names: dict[str, int] = {}
        for at, place in enumerate(piece.place for piece in pieces):
            if place.column == _UNCLEAR:
                return None
            if place.column == _METADATA:
                if place.name in names or place.name in resource.names:
                    return None
                names[place.name] = at
            elif place.column not in chosen or place.rank < pieces[chosen[place.column]].place.rank:
                chosen[place.column] = at
        if len(names) + len(resource.names) > KEYS_MAX:
            return None
        table = self._table(pieces, chosen)
        if table is None:
            return NOT_PRODUCT_EVENT
        layout = _LAYOUTS[table]
        if any(is_required and name not in chosen for name, is_required in layout.columns):
            return None
        columns = [chosen[name] for name, _ in layout.columns if name in chosen]
        is_inferred_request = table == "endpoint_usage" and "category" not in chosen
        picked = [*columns, *names.values()]  # two and more, so that itemgetter gives a tuple
        return _Plan(
            table=table,
            prefix=layout.prefix,
            picked=picked,
            pick=itemgetter(*picked),
            columns=len(columns),
            owners=[chosen[name] for name in _OWNERS if name in chosen],
            is_timed=("duration_ms", False) in layout.columns and "duration_ms" not in chosen,
            endpoint=chosen["endpoint"] if is_inferred_request else None,
        )

    def _table(self, pieces: Sequence[_Piece], chosen: dict[str, int]) -> str | None:
        """As `Reading.table` decides, but for the span's kind and what is excluded."""
        if "category" in chosen:
            return pieces[chosen["category"]].place.name
        if not self._rules.infer_events:
            return None
        return "feature_usage" if "feature_name" in chosen else "endpoint_usage" if "method" in chosen else None

    # ---- attributes, read once

    def _unknown(self, raw: bytes) -> _Piece:
        """Raises DecodeError when the attribute, and so the whole span, is malformed."""
        key = _key_of_text(raw) or _pair(raw).key
        place = self._places.get(key) or self._place(key)
        if place.column == _METADATA:
            return self._known.keep(raw, self._metadata_piece(raw, place))
        if place.column == "category":
            return self._known.keep(raw, self._category_piece(raw))
        if place.column != _NOWHERE:
            piece = _Piece(place)
        elif place.useless_values < _USELESS_VALUES_MAX:
            place.useless_values += 1
            return self._known.keep(raw, _USELESS)
        else:
            piece = _USELESS
        if key and key in self._places:  # no key stands for all attributes that are not simple
            self._known.unread[key] = piece
        return piece

    def _place(self, key: bytes) -> _Place:
        of_column, named = _COLUMN_PLACES.get(key), self._rules.allowed(key)
        if named is None:
            place = of_column or _Place(_NOWHERE)
        else:
            place = _Place(_UNCLEAR if of_column else _METADATA, name=named.key.shown)
        if len(key) <= _KNOWN_BYTES_MAX:
            if len(self._places) >= _PLACES_MAX:
                self._places.clear()
                self._known.unread.clear()
            self._places[key] = place
        return place

    def _category_piece(self, raw: bytes) -> _Piece:
        category = self._reading(_pair(raw), Notes()).category()
        return _Piece(_CATEGORY_PLACES[category]) if category in _CATEGORY_PLACES else _UNCLEAR_PIECE

    def _metadata_piece(self, raw: bytes, place: _Place) -> _Piece:
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
        return _Piece(place, text, words=(name, pair.value.string_value))

    def _column_piece(self, raw: bytes, place: _Place) -> _Piece:
        """The piece of an attribute that gives a column, with its text.

        Raises:
            _Declines: the value is absent, cut, or of a kind that is not plain here.
        """
        pair, notes, piece, column = _pair(raw), Notes(), _Piece(place), place.column
        span = self._reading(pair, notes)
        value, kind, said = _READERS[column][1](span), kind_of(pair.value), pair.value.string_value
        if kind is None or notes.cuts or (value is None and column in _NEEDED):
            raise _Declines
        if column in _OWNERS:
            piece.own_id = "".join(span.own_ids).encode()
            if REPLACEMENT.encode() in piece.own_id:  # equal to what it is not
                raise _Declines
            piece.own_times = raw.count(piece.own_id)
        elif column in ("session_id", "endpoint"):
            if kind != "string_value" or (column == "endpoint" and b"%" in said):  # decoded, it may say any id
                raise _Declines
            piece.words, piece.path = ((said,), b"") if column == "session_id" else ((), said)
            piece.is_excluded = column == "endpoint" and self._rules.is_excluded(value)
        piece.text = "" if value is None else _column(column, value)
        return piece

    def _reading(self, pair: otlp.KeyValue, notes: Notes) -> Reading:
        return Reading(_EMPTY_SPAN, Attributes({pair.key: pair.value}, {}, notes), self._rules)

    def _resource(self, raw: bytes) -> PlainResource | None:
        """None when every span under it goes the long way."""
        if len(raw) > _HALF_BYTES_MAX:
            return None
        try:
            attributes = otlp.parse_plain_resource(raw).attributes
            if len(attributes) > self._rules.span_attributes_max:
                return None
            return self._plain_resource(attributes)
        except (_Declines, DecodeError):
            return None

    def _plain_resource(self, attributes: Iterable[bytes]) -> PlainResource:
        columns, metadata = [self._deployment], []
        for raw in attributes:
            piece = self._unknown(raw)
            column = piece.place.column
            if column == _METADATA:
                metadata.append(piece)
            elif column == "category":
                columns.append(piece)
            elif column in (_UNCLEAR, "endpoint"):  # a path would have to be searched with each span
                raise _Declines
            elif column != _NOWHERE:
                columns.append(self._column_piece(raw, piece.place))
                columns[-1].own_times = 0
        names = {piece.place.name for piece in metadata}
        if len(names) < len(metadata):
            raise _Declines
        return PlainResource(
            columns=columns,
            metadata="".join([piece.text or "" for piece in metadata]).removesuffix(","),
            names=names,
            words={word for piece in (*columns, *metadata) for word in piece.words},
        )


def _records(
    planned: Sequence[tuple[int, _Plan, otlp.PlainSpan, list[str]]], resource: PlainResource
) -> Iterator[Record | None]:
    """None for a span that has no proper id."""
    times = [(span.start_time_unix_nano, span.end_time_unix_nano) for _, _, span, _ in planned]
    ids = [_id(span.trace_id, span.span_id) for _, _, span, _ in planned]
    durations_ms = [(end - start) / 1_000_000 if 0 < end >= start else None for start, end in times]
    durations = orjson.dumps(durations_ms).decode()[1:-1].split(",") if planned else []
    for (_, plan, _, texts), id_, (start_ns, _), duration in zip(planned, ids, times, durations, strict=True):
        if not id_:
            yield None
            continue
        duration_text = f',"duration_ms":{duration}' if plan.is_timed and duration != "null" else ""
        texts.insert(plan.columns, f'{duration_text},"event_metadata":{{')
        fields = "".join(texts)
        if not resource.metadata:
            fields = fields.removesuffix(",")
        value = f'{plan.prefix}{id_}","timestamp_us":{start_ns // 1000}{fields}{resource.metadata}}}}}'
        yield Record(plan.table, id_.encode(), value.encode())


def _is_said(own_id: bytes, pieces: Iterable[_Piece], resource: PlainResource) -> bool:
    return own_id in resource.words or any(own_id in piece.words or own_id in piece.path for piece in pieces)


def _key_of_text(raw: bytes) -> bytes:
    """The key of a well-formed attribute of text, with lengths of one byte; empty for any other."""
    if len(raw) < 2 or raw[0] != 0x0A:
        return b""
    value_at = raw[1] + 2
    size = len(raw) - value_at - 2
    if value_at < 0x80 and 2 <= size < 0x80 and raw.startswith(_TEXT_HEADS[size], value_at):
        return raw[2:value_at]
    return b""


_TEXT_HEADS = [bytes((0x12, size, 0x0A, max(0, size - 2))) for size in range(0x80)]


def _pair(raw: bytes) -> otlp.KeyValue:
    """Read as part of a span, so that nesting counts as it does there."""
    size, length = len(raw), bytearray(b"\x4a")
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return otlp.parse_span(bytes([*length, size]) + raw).attributes[0]


def _id(trace_id: bytes, span_id: bytes) -> str:
    """The text of `event_id`, made without the UUID; empty when there is none."""
    if len(trace_id) != 16 or len(span_id) != 8 or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return ""
    digits = sha256(trace_id + span_id).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{_VARIANTS[digits[16]]}{digits[17:20]}-{digits[20:32]}"


_VARIANTS = {f"{digit:x}": f"{digit & 0x3 | 0x8:x}" for digit in range(16)}


def _column(name: str, value: Any) -> str:
    return f',"{name}":{to_json(value).decode()}'


def _layout(model: type[ProductEvent]) -> _Layout:
    version, table = (model.model_fields[name].default for name in ("schema_version", "table"))
    columns = [(name, field.is_required()) for name, field in model.model_fields.items() if name in _READERS]
    return _Layout(f'{{"schema_version":{version},"table":"{table}","id":"', columns)


_USELESS, _UNCLEAR_PIECE = _Piece(_Place(_NOWHERE)), _Piece(_Place(_UNCLEAR))
_EMPTY_SPAN = otlp.parse_span(b"")
_LAST = 99  # the rank of a default
_COLUMN_PLACES = {key: _Place(name, rank) for name, (of, _) in _READERS.items() for rank, key in enumerate(of)}
# Tables of which every column is read here; a newer one goes the long way until it is taken in.
_LAYOUTS = {
    model.model_fields["table"].default: _layout(model)
    for model in EVENT_MODELS
    if model.model_fields.keys() <= {"schema_version", "table", "id", "timestamp_us", "event_metadata", *_READERS}
}
_CATEGORY_PLACES = {table: _Place("category", name=table) for table in _LAYOUTS}
# Where no value is not NULL, but a span that is no event, or a duration from start to end.
_NEEDED = {"user_id", "organization_id", "duration_ms"} | {
    name for layout in _LAYOUTS.values() for name, is_required in layout.columns if is_required
}
