"""the spans of a request -> the ids of each trace, for spans that carry no id of their own. Pure.

For each shared column: the value of the nearest ancestor in the request that has one, else the only value that the
trace's spans in the request have. Spans of other requests are not seen. A trace of more than SPANS_MAX spans in one
request is not read.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from receiver.decode import otlp, scan
from receiver.decode.spans import ResourceSpans
from receiver.translate.attributes import AttributeMap, Attributes, BadId, Found, Notes, by_key, raw_id_of, text_of
from receiver.translate.mapping import SHARED_COLUMNS, Column, HashedId
from receiver.translate.rules import Rules

SPANS_MAX = 2_000  # of a trace in one request: reading more would delay other requests
_SPANS_A_STEP = 64
_PLACE_BYTES = 512  # a span in its trace: two ids, a tuple, an entry, now and then a value
_COUNT_BYTES = 128  # a trace id and its count


class Named(NamedTuple):
    """A raw value of a shared column, and the span that names it."""

    raw: str
    span_id: bytes
    key: bytes


Values = Mapping[str, Named]  # by column
NOTHING: Values = {}


class _Place(NamedTuple):
    """One span in its trace."""

    parent: bytes
    named: Values


class Trace:
    """The spans of one trace in one request."""

    __slots__ = ("_nearest", "_only", "_places")

    def __init__(self) -> None:
        self._places: dict[bytes, _Place] = {}
        self._nearest: dict[tuple[str, bytes], Named | None] = {}
        self._only: dict[str, dict[str, Named]] = {}

    def add(self, link: otlp.Link, named: Values) -> None:
        """Add a span and the values that it names. When the same span comes twice, the first one counts."""
        if link.span_id in self._places:
            return
        self._places[link.span_id] = _Place(link.parent_span_id, named)
        for column, value in named.items():
            values = self._only.setdefault(column, {})
            if len(values) < 2:  # with two values already, the column has no only value
                values.setdefault(value.raw, value)

    def named(self, column: str, span_id: bytes) -> Named | None:
        """The value for a span that has none itself; None when the trace has none, or two different ones."""
        place = self._places.get(span_id)
        nearest = self._ancestor(column, place.parent) if place else None
        if nearest is not None:
            return nearest
        values = self._only.get(column, {})
        return next(iter(values.values())) if len(values) == 1 else None

    def _ancestor(self, column: str, span_id: bytes) -> Named | None:
        """The value of that span or of its nearest ancestor. Each span is visited once, however deep the trace is."""
        walked: list[bytes] = []
        found: Named | None = None
        while (place := self._places.get(span_id)) is not None:
            if (column, span_id) in self._nearest:
                found = self._nearest[column, span_id]
                break
            self._nearest[column, span_id] = None  # a span that is its own ancestor has none
            walked.append(span_id)
            if column in place.named:
                found = place.named[column]
                break
            span_id = place.parent
        for each in walked:
            self._nearest[column, each] = found
        return found


NOBODY = Trace()


class Traces:
    """The traces of a request in which a span has an id."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._traces: dict[bytes, Trace] = {}
        self.held_bytes = 0

    def of(self, trace_id: bytes) -> Trace:
        return self._traces.get(trace_id, NOBODY)

    def read(self, groups: Sequence[ResourceSpans]) -> Iterator[None]:
        """Reads the request, in steps of a few milliseconds at most. Never raises, whatever the bytes."""
        if not self._rules.identity_by_trace:
            return
        spans_of: Counter[bytes] = Counter()
        for spans in _steps(groups):
            spans_of.update(map(_trace_id_of, spans))
            self.held_bytes = len(spans_of) * _COUNT_BYTES
            yield
        named: dict[tuple[bytes, bytes], Values] = {}
        for group in groups:
            resource = self._resource(group.resource) if self._rules.has_shared_key(group.resource) else {}
            for spans in _steps([group]):
                for raw in spans:
                    if (resource or self._rules.has_shared_key(raw)) and 1 < spans_of[_trace_id_of(raw)] <= SPANS_MAX:
                        self._name(raw, resource, named)
                yield
        self._traces = {trace_id: Trace() for trace_id, _ in named}
        self.held_bytes += len(named) * _PLACE_BYTES
        for spans in _steps(groups if named else []):
            for raw in spans:
                self._place(raw, named)
            yield

    def _resource(self, raw: bytes) -> AttributeMap:
        try:
            if scan.is_too_large(raw, scan.RESOURCE, bytes_max=self._rules.span_bytes_max):
                return {}
            return by_key(otlp.parse_resource(raw).attributes)
        except (DecodeError, scan.Unreadable):
            return {}

    def _name(self, raw: bytes, resource: AttributeMap, named: dict[tuple[bytes, bytes], Values]) -> None:
        try:
            if scan.is_too_large(raw, scan.SPAN, bytes_max=self._rules.span_bytes_max):
                return
            span = otlp.parse_span(raw)
        except (DecodeError, scan.Unreadable):
            return
        values = _values_of(Attributes(by_key(span.attributes), resource, Notes()), span.span_id)
        if values:
            named.setdefault((span.trace_id, span.span_id), values)

    def _place(self, raw: bytes, named: dict[tuple[bytes, bytes], Values]) -> None:
        try:
            link = otlp.parse_link(raw)
        except DecodeError:
            return
        trace = self._traces.get(link.trace_id)
        if trace is not None:
            trace.add(link, named.get((link.trace_id, link.span_id), NOTHING))
            self.held_bytes += _PLACE_BYTES


def _trace_id_of(raw: bytes) -> bytes:
    """The trace id; empty when the bytes are no span."""
    try:
        return otlp.parse_link(raw).trace_id
    except DecodeError:
        return b""


def _steps(groups: Sequence[ResourceSpans]) -> Iterator[Sequence[bytes]]:
    for group in groups:
        for start in range(0, len(group.spans), _SPANS_A_STEP):
            yield group.spans[start : start + _SPANS_A_STEP]


def _values_of(attributes: Attributes, span_id: bytes) -> Values:
    """The shared values of one span. A value of a type that does not fit is left out."""
    values: dict[str, Named] = {}
    for column in SHARED_COLUMNS:
        found = attributes.first(column.key_names, column.name)
        raw = None if found is None else raw_text_of(column, found)
        if found is not None and raw is not None:
            values[column.name] = Named(raw, span_id, found.key)
    return values


def raw_text_of(column: Column, found: Found) -> str | None:
    """The value of a shared column as sent; None when its type does not fit."""
    if not isinstance(column.read, HashedId):
        return text_of(found)
    try:
        return raw_id_of(found)
    except BadId:
        return None
