"""one span's attributes -> the columns of its event, as the mapping says. Pure: names no attribute.

A text column holds the first attribute that is present, after the rules of privacy, truncated to the column.
"""

import re
from math import isfinite
from typing import Any, assert_never
from uuid import UUID

from receiver.decode import otlp
from receiver.translate import mapping
from receiver.translate.attributes import Attributes, BadId, Found, decoded, raw_id_of, text_of, without_nul
from receiver.translate.endpoint import endpoint_of, route_named_by
from receiver.translate.identity import Named, Trace
from receiver.translate.mapping import Column, Constant, Form, Key, Kind, Setting, Table, When
from receiver.translate.metadata import Candidate, candidates, event_metadata
from receiver.translate.outcome import EXCLUDED_ENDPOINT, NOT_PRODUCT_EVENT, UNKNOWN_CATEGORY, Ignored, Unfit
from receiver.translate.redaction.own_ids import OwnIds
from receiver.translate.redaction.privacy import clean, has_card
from receiver.translate.routes import has_parameter
from receiver.translate.rules import Rules
from receiver.translate.sampling import weight_of
from shared.events import BaseEvent, event_id

_TABLES = {table.name: table for table in mapping.TABLES}
_NS_PER_MS = 1_000_000
_NS_PER_US = 1_000
_HTTP_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_INTEGER = re.compile(r"0*+([0-9]{1,19})", re.ASCII)
_NUMERIC = re.compile(r"[+-]?(?:[0-9]{1,64}(?:\.[0-9]{0,64})?|\.[0-9]{1,64})(?:[eE][+-]?[0-9]{1,4})?")


class Reading:
    """Reads one span: which table it belongs to, then its columns."""

    __slots__ = ("_attributes", "_kept", "_notes", "_own_ids", "_rules", "_span", "_trace")

    def __init__(self, span: otlp.Span, attributes: Attributes, rules: Rules, trace: Trace) -> None:
        self._span = span
        self._attributes = attributes
        self._rules = rules
        self._trace = trace
        self._notes = attributes.notes
        self._kept: dict[str, str | None] = {}  # columns that were read to judge an exclusion
        self._own_ids = self._notes.own_ids = OwnIds(rules.hashed)
        for found in attributes.all_of(mapping.ID_KEYS):
            if found.kind != "bool_value":
                self._own_ids.add(text_of(found) or "")
        for column in mapping.ID_COLUMNS:
            if named := self._named_by_trace(column):
                self._own_ids.add(named.raw)

    # ---- which table

    def table(self) -> Table | Ignored:
        """The table that `event.category` names, else the first table with a condition that holds."""
        category = self._attributes.first((mapping.CATEGORY,), "table")
        if category is not None:
            return _TABLES.get(text_of(category) or "", UNKNOWN_CATEGORY)
        if self._rules.infer_events:
            for table in mapping.TABLES:
                if any(self._holds(when, "table") for when in table.inferred_when):
                    return EXCLUDED_ENDPOINT if self._is_excluded(table) else table
        return NOT_PRODUCT_EVENT

    def _holds(self, when: When, place: str = "") -> bool:
        if when.is_server and self._span.kind != otlp.SPAN_KIND_SERVER:
            return False
        if any(self._attributes.first((key,), "") is None for key in when.all_of):
            return False
        found = self._attributes.first(when.any_of, "")
        if found is None or (when.values and text_of(found) not in when.values):
            return False
        if place:
            self._attributes.first(when.any_of, place)  # a condition that holds is noted for `explain`
        return True

    def _is_excluded(self, table: Table) -> bool:
        if not table.excluded_by:
            return False
        column = mapping.BY_NAME[table.excluded_by]
        value = self._kept[column.name] = self._value(table, column)
        return value is not None and self._rules.is_excluded(value)

    # ---- the event

    def event(self, table: Table, *, resource_metadata: list[Candidate]) -> BaseEvent:
        """Read the span as an event of `table`.

        Raises:
            Unfit: a required value is missing or has a type that does not fit.
        """
        columns: dict[str, Any] = {}
        missing = table.missing
        for column in table.columns:
            if isinstance(column.read, mapping.Metadata):
                continue  # last: it names what was cut of the others
            value = self._kept[column.name] if column.name in self._kept else self._value(table, column)
            if value is None and column.name in missing:
                raise Unfit(missing[column.name])
            columns[column.name] = value
        metadata = event_metadata(
            candidates(self._attributes.span, "span", self._rules.allowed, self._notes),
            resource_metadata,
            notes=self._notes,
        )
        return table.event(**columns, event_metadata=metadata)

    def _value(self, table: Table, column: Column) -> Any:
        value = self._read(table, column)
        if value is not None or column.otherwise is None:
            return value
        match column.otherwise:
            case Setting(name):
                self._notes.source(column.name, f"setting {name.upper()}")
                return getattr(self._rules, name)
            case Constant(text, when):
                if not any(map(self._holds, when)):
                    return None
                self._notes.source(column.name, "no attribute that was sent")
                return text
            case _:
                assert_never(column.otherwise)

    def _read(self, table: Table, column: Column) -> Any:  # noqa: PLR0911  a kind each
        match column.read:
            case mapping.EventId():
                return self._event_id()
            case mapping.TraceId():
                return UUID(bytes=self._span.trace_id)
            case mapping.StartTime():
                self._notes.source("timestamp", "start_time_unix_nano")
                return self._span.start_time_unix_nano // _NS_PER_US
            case mapping.SamplingWeight():
                return weight_of(self._span.trace_state)
            case mapping.HashedId():
                return self._id(column)
            case mapping.PathTemplate(is_named_by_span=is_named_by_span):
                return self._path(table, column, is_named_by_span=is_named_by_span)
            case mapping.Integer(minimum, maximum):
                return self._number(_integer(self._first(column), minimum, maximum))
            case mapping.Duration():
                return self._duration(column)
            case kind:
                return self._text(table, column, kind)

    def _event_id(self) -> UUID:
        trace_id, span_id = self._span.trace_id, self._span.span_id
        if len(trace_id) != 16 or not any(trace_id):
            raise Unfit("invalid_trace_id")
        if len(span_id) != 8 or not any(span_id):
            raise Unfit("invalid_span_id")
        return event_id(trace_id, span_id)

    # ---- ids

    def _id(self, column: Column) -> str | None:
        found = self._first(column)
        if found is None:
            named = self._named_by_trace(column)
            return None if named is None else self._rules.hashed(self._noted_source(column, named))
        try:
            return self._rules.hashed(raw_id_of(found))
        except BadId:
            raise Unfit(column.bad or "") from None

    def _named_by_trace(self, column: Column) -> Named | None:
        """The value that the span's trace gives a shared column, for a span without its own."""
        if not column.is_shared_by_trace or self._attributes.first(column.key_names, "") is not None:
            return None
        return self._trace.named(column.name, self._span.span_id)

    def _noted_source(self, column: Column, named: Named) -> str:
        self._notes.source(column.name, f"span {named.span_id.hex()}", named.key)
        return named.raw

    # ---- numbers

    def _number(self, number: float | None) -> Any:
        """None for a number that equals an own id or is a card number, else the number."""
        if number is None or self._own_ids.hash_of_number(number) is not None or has_card(number):
            return None
        return number

    def _duration(self, column: Column) -> float | None:
        sent: float | None = self._number(_duration_ms(self._first(column)))
        if sent is not None:
            return sent
        start_ns, end_ns = self._span.start_time_unix_nano, self._span.end_time_unix_nano
        if end_ns == 0 or end_ns < start_ns:  # 0: the sender did not say
            return None
        self._notes.source(column.name, "end_time_unix_nano - start_time_unix_nano")
        return (end_ns - start_ns) / _NS_PER_MS

    # ---- texts

    def _text(self, table: Table, column: Column, kind: Kind) -> str | None:
        text = self._raw_text(column)
        if text is None or (isinstance(kind, mapping.Token) and not _HTTP_TOKEN.fullmatch(text)):
            return None
        hashed = self._own_ids.hash_of(text)
        if hashed is not None:
            self._notes.redacted(column.name, "own_id")
            return self._truncated(table, column, hashed)
        cleaned = clean(text, "none" if isinstance(kind, mapping.Text) and kind.is_version else "all")
        if cleaned.rule:
            self._notes.redacted(column.name, cleaned.rule)
            if isinstance(kind, mapping.SessionText):
                return self._truncated(table, column, self._rules.hashed(text))
        elif isinstance(kind, mapping.Token):
            return self._truncated(table, column, text.upper())
        if cleaned.lost_query:
            self._notes.cut(column.name, "query")
        return self._truncated(table, column, without_nul(cleaned.text))

    def _raw_text(self, column: Column) -> str | None:
        found = self._first(column)
        if found is None:
            named = self._named_by_trace(column)
            return None if named is None else self._noted_source(column, named)
        return self._text_of(column, found)

    def _path(self, table: Table, column: Column, *, is_named_by_span: bool) -> str | None:
        routes = [key.name for key in column.keys if key.form is Form.ROUTE]
        if is_named_by_span and self._attributes.first(tuple(routes), "") is None and (route := self._named_route()):
            self._notes.source(column.name, "the span's name")
            self._notes.is_raw_path = not has_parameter(route)
            return self._template(table, column, route, Form.ROUTE)
        found = self._first(column)
        text = None if found is None else self._text_of(column, found)
        if found is None or text is None:
            return None
        key = _key_of(column, found)
        self._notes.is_raw_path = key.form in (Form.PATH, Form.TARGET, Form.URL)
        if key.form is Form.CALL and "/" not in text:
            service = text_of(self._attributes.first((key.behind,), ""))
            text = text if service is None else f"{service}/{text}"
        return self._template(table, column, text, key.form or Form.PATH)

    def _named_route(self) -> str | None:
        if self._span.kind != otlp.SPAN_KIND_SERVER:
            return None
        return route_named_by(decoded(self._span.name), own_ids=self._own_ids)

    def _template(self, table: Table, column: Column, text: str, form: Form) -> str:
        return self._truncated(table, column, without_nul(endpoint_of(text, form, own_ids=self._own_ids)))

    def _truncated(self, table: Table, column: Column, text: str) -> str:
        chars_max = table.chars_max[column.name]
        if len(text) <= chars_max:
            return text
        self._notes.cut(column.name, "length")
        return text[:chars_max]

    # ---- attributes

    def _first(self, column: Column) -> Found | None:
        return self._attributes.first(column.key_names, column.name)

    def _text_of(self, column: Column, found: Found) -> str | None:
        """The attribute's text, or the text that the mapping stores instead of it."""
        key, text = _key_of(column, found), text_of(found)
        if key.renames:
            return dict(key.renames).get(text or "")
        if key.stands_for is not None and text == key.stands_for[0]:
            original = self._attributes.first((key.stands_for[1],), "")
            if original is not None:
                return text_of(self._attributes.first((key.stands_for[1],), column.name))
        return text


def _key_of(column: Column, found: Found) -> Key:
    return next(key for key in column.keys if key.name == found.key)


def _integer(found: Found | None, minimum: int, maximum: int) -> int | None:
    if found is None:
        return None
    if found.kind == "int_value":
        number = found.value.int_value
    elif found.kind == "string_value" and (digits := _INTEGER.fullmatch(decoded(found.value.string_value))):
        number = int(digits[1])
    else:
        return None
    return number if minimum <= number <= maximum else None


def _duration_ms(found: Found | None) -> float | None:
    """A finite number or a numeric string of 0 or more; else None."""
    if found is None:
        return None
    match found.kind:
        case "int_value":
            number = float(found.value.int_value)
        case "double_value":
            number = found.value.double_value
        case "string_value" if _NUMERIC.fullmatch(text := decoded(found.value.string_value)):
            number = float(text)
        case _:
            return None
    return number + 0.0 if isfinite(number) and number >= 0 else None  # + 0.0: -0.0 is 0.0
