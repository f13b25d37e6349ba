"""span bytes -> record bytes, for a span with nothing special about it: the short way of `translate` and `wire`. Pure.

Each attribute is known as the piece of JSON that it becomes. Spans of one make have the same keys in the same order, so
which of their pieces go where is planned once for each such shape. Whatever is not plain is declined and goes the long
way: a value that is missing, bad or cut, a name that comes twice, an id that the span repeats elsewhere. So the answer
is either None or, byte for byte, that of the long way; tests compare the two over made-up and damaged spans.

What is found out here, `speedups` is told, so that the next such span needs none of this.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from operator import attrgetter, itemgetter
from typing import NamedTuple, cast

import orjson
from google.protobuf.message import DecodeError

from receiver.decode import otlp
from receiver.translate import speedups
from receiver.translate.cut import Spans
from receiver.translate.memo import remembered
from receiver.translate.metadata import KEYS_MAX, SAFE_WIRE_BYTES
from receiver.translate.outcome import EXCLUDED_ENDPOINT, NOT_PRODUCT_EVENT, Ignored
from receiver.translate.pieces import (
    METADATA,
    NOWHERE,
    PLAIN_MODELS,
    READERS,
    UNCLEAR,
    Declines,
    Piece,
    Pieces,
    key_of_scalar,
)
from receiver.translate.rules import Rules
from receiver.translate.speedups import Want
from shared.events import ProductEvent
from shared.wire import Record

_PLANS_MAX = 2_048  # shapes, of up to so many attributes
_PLANNED_ATTRIBUTES_MAX = 128
_HALF_BYTES_MAX = SAFE_WIRE_BYTES // 2  # of a span, and of its resource: then event_metadata need not be measured
_PIECE_BYTES_MIN = 2  # of an attribute, a span event or a link on the wire
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)
_OWNERS = ("user_id", "organization_id")
_NOTHING_WANTED: Mapping[int, Want] = {}

_place_of, _text_of = attrgetter("place"), attrgetter("text")


@dataclass(slots=True, eq=False)
class PlainResource:
    """A resource as its spans begin with it. Compared by identity."""

    columns: list[Piece]  # behind those of a span, which win where they have the same key
    metadata: str
    names: set[str]  # in event_metadata
    words: set[bytes]  # those of its pieces
    number: int = field(default_factory=count().__next__)


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
    pick: Callable[[list[Piece]], tuple[Piece, ...]]
    columns: int  # so many of them
    owners: list[int]  # user and organization
    is_timed: bool  # the last column is the time from start to end
    endpoint: int | None  # of what is an event only as a server's span, and only if it is not excluded


class FastPath:
    """Remembers shapes; one a process. Bounded in memory, and the same whatever it has seen before."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._span_bytes_max = min(_HALF_BYTES_MAX, rules.span_bytes_max, _PIECE_BYTES_MIN * rules.span_attributes_max)
        self.pieces = Pieces(rules)
        self._plans: dict[tuple[object, ...], _Plan | Ignored | None] = {}
        self.speedups = speedups.new(span_bytes_max=self._span_bytes_max, marks=rules.deciding_keys)
        self.resource = remembered(entries=512, length_max=_HALF_BYTES_MAX)(self._resource)

    def marked(self, raws: Sequence[bytes]) -> Sequence[bytes]:
        """Those of which the bytes may hold a deciding key."""
        return self.speedups.marked(Spans.of(raws)) if self.speedups else self._rules.sifted(raws)

    def records_of(self, raws: Sequence[bytes], resource: PlainResource) -> list[Record | Ignored | None]:
        """What becomes of spans, in their order: a record, or why it is none; None where only the long way can tell.

        Raises:
            DecodeError: one of them is malformed.
        """
        made: list[Record | Ignored | None]
        if self.speedups:
            made, wants = self._by_speedups(self.speedups, Spans.of(raws), resource)
        else:
            made, wants = [None] * len(raws), _NOTHING_WANTED
        short = [at for at, one in enumerate(made) if one is None and len(raws[at]) <= self._span_bytes_max]
        if short:
            self._by_plans(raws, short, resource, made, wants)
        return made

    def _by_speedups(
        self, fast: speedups.Speedups, spans: Spans, resource: PlainResource
    ) -> tuple[list[Record | Ignored | None], Mapping[int, Want]]:
        """What it decides, once it was told the texts that it lacked; and what else it wants to be told."""
        made, wants = fast.records_of(spans, resource.number)
        read = [at for at, want in wants.items() if want.what == "texts" and self._tell_texts(spans[at], want)]
        if read:
            again, wanted = fast.records_of(spans.picked(read), resource.number)
            for at, one in zip(read, again, strict=True):
                made[at] = one
            wants |= {read[at]: want for at, want in wanted.items()}
        return made, wants

    def _by_plans(
        self,
        raws: Sequence[bytes],
        short: Sequence[int],
        resource: PlainResource,
        made: list[Record | Ignored | None],
        wants: Mapping[int, Want],
    ) -> None:
        """Fill in what plans decide. Stage by stage over all of them, which takes a fifth less than span by span."""
        spans = [otlp.parse_plain_span(raws[at]) for at in short]
        pieces = [[*map(self.pieces.known.__getitem__, span.attributes), *resource.columns] for span in spans]
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
        for at, span, of_span in zip(short, spans, pieces, strict=True):
            if at in wants:
                self._tell(wants[at], span, of_span, resource)

    def _texts(
        self, plan: _Plan, pieces: list[Piece], span: otlp.PlainSpan, raw: bytes, resource: PlainResource
    ) -> list[str] | None:
        """What the span's attributes give to its record; None when it goes the long way."""
        texts = [*map(_text_of, plan.pick(pieces))]
        if None in texts:
            try:
                for at in plan.picked:
                    if pieces[at].text is None:
                        read = span.attributes[at]
                        pieces[at] = self.pieces.known.keep(read, self.pieces.of_column(read, pieces[at].place))
            except Declines:
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

    def _plan_of(self, pieces: Sequence[Piece], resource: PlainResource) -> _Plan | Ignored | None:
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

    def _plan(self, pieces: Sequence[Piece], resource: PlainResource) -> _Plan | Ignored | None:
        chosen: dict[str, int] = {}
        names: dict[str, int] = {}
        for at, place in enumerate(piece.place for piece in pieces):
            if place.column == UNCLEAR:
                return None
            if place.column == METADATA:
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

    def _table(self, pieces: Sequence[Piece], chosen: dict[str, int]) -> str | None:
        """As `Reading.table` decides, but for the span's kind and what is excluded."""
        if "category" in chosen:
            return pieces[chosen["category"]].place.name
        if not self._rules.infer_events:
            return None
        return "feature_usage" if "feature_name" in chosen else "endpoint_usage" if "method" in chosen else None

    # ---- what speedups is told

    def _tell_texts(self, raw: bytes, want: Want) -> bool:
        """Whether these attributes of the span have texts."""
        attributes = otlp.parse_plain_span(raw).attributes
        try:
            for attribute in [attributes[at] for at in want.attributes]:
                piece = self.pieces.known[attribute]
                read = self.pieces.of_column(attribute, piece.place) if piece.text is None else piece
                self._tell_piece(attribute, read)
        except Declines:
            return False
        return True

    def _tell(self, want: Want, span: otlp.PlainSpan, pieces: Sequence[Piece], resource: PlainResource) -> None:
        if want.what == "pieces":
            for at in want.attributes:
                if not self._tell_key(span.attributes[at]) or pieces[at].text is not None:
                    self._tell_piece(span.attributes[at], pieces[at])
        elif want.what == "plan":
            self._tell_plan(pieces, len(span.attributes), resource)

    def _tell_piece(self, raw: bytes, piece: Piece) -> None:
        assert self.speedups
        is_path = piece.place.column == "endpoint" and key_of_scalar(raw)
        (self.speedups.know_path if is_path else self.speedups.know)(raw, piece)

    def _tell_key(self, raw: bytes) -> bool:
        """What becomes of an attribute's like that is not read."""
        assert self.speedups
        unread = self.pieces.known.unread.get(key_of_scalar(raw))
        if unread:
            self.speedups.know_key(raw[2 : 2 + raw[1]], unread)
        return unread is not None

    def _tell_plan(self, pieces: Sequence[Piece], attributes: int, resource: PlainResource) -> None:
        assert self.speedups
        plan = self._plan_of(pieces, resource)
        shape = resource.number, [piece.place.number for piece in pieces[:attributes]]
        if isinstance(plan, Ignored):
            self.speedups.know_ignored(*shape, plan)
        if not isinstance(plan, _Plan):
            return
        parts = [at if at < attributes else pieces[at].text or "" for at in plan.picked]
        told = speedups.Plan(
            table=plan.table,
            is_timed=plan.is_timed,
            endpoint=plan.endpoint,
            prefix=plan.prefix,
            columns=parts[: plan.columns],
            metadata=parts[plan.columns :],
            suffix=resource.metadata,
            owners=[at if at < attributes else pieces[at].own_id for at in plan.owners],
            words=[*resource.words],
        )
        self.speedups.know_plan(*shape, told)

    # ---- resources

    def _resource(self, raw: bytes) -> PlainResource | None:
        """None when every span under it goes the long way."""
        if len(raw) > _HALF_BYTES_MAX:
            return None
        try:
            attributes = otlp.parse_plain_resource(raw).attributes
            if len(attributes) > self._rules.span_attributes_max:
                return None
            return self._plain_resource(attributes)
        except (Declines, DecodeError):
            return None

    def _plain_resource(self, attributes: Iterable[bytes]) -> PlainResource:
        columns, metadata = [self.pieces.default_deployment], []
        for raw in attributes:
            piece = self.pieces.read(raw)
            column = piece.place.column
            if column == METADATA:
                metadata.append(piece)
            elif column == "category":
                columns.append(piece)
            elif column in (UNCLEAR, "endpoint"):  # a path would have to be searched with each span
                raise Declines
            elif column != NOWHERE:
                columns.append(self.pieces.of_column(raw, piece.place))
                columns[-1].own_times = 0
        names = {piece.place.name for piece in metadata}
        if len(names) < len(metadata):
            raise Declines
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


def _is_said(own_id: bytes, pieces: Iterable[Piece], resource: PlainResource) -> bool:
    return own_id in resource.words or any(own_id in piece.words or own_id in piece.path for piece in pieces)


def _id(trace_id: bytes, span_id: bytes) -> str:
    """The text of `event_id`, made without the UUID; empty when there is none."""
    if len(trace_id) != 16 or len(span_id) != 8 or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return ""
    digits = sha256(trace_id + span_id).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{_VARIANTS[digits[16]]}{digits[17:20]}-{digits[20:32]}"


_VARIANTS = {f"{digit:x}": f"{digit & 0x3 | 0x8:x}" for digit in range(16)}


def _layout(model: type[ProductEvent]) -> _Layout:
    version, table = (model.model_fields[name].default for name in ("schema_version", "table"))
    columns = [(name, field.is_required()) for name, field in model.model_fields.items() if name in READERS]
    return _Layout(f'{{"schema_version":{version},"table":"{table}","id":"', columns)


_LAYOUTS = {table: _layout(model) for table, model in PLAIN_MODELS.items()}
