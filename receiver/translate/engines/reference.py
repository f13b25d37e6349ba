"""spans -> events, ignored or rejected. Pure: knows what is too large or malformed; knows no gRPC, Kafka or time.

A span is classified before it is checked: a malformed span that is no event is ignored, and only an event is rejected.
"""

from pathlib import PurePath
from typing import NamedTuple

from google.protobuf.message import DecodeError

from receiver.decode import otlp, scan
from receiver.translate.attributes import AttributeMap, Attributes, Notes, by_key
from receiver.translate.engines.reading import Reading
from receiver.translate.identity import NOBODY, Traces
from receiver.translate.metadata import Candidate, candidates
from receiver.translate.outcome import NOT_PRODUCT_EVENT, Ignored, Outcome, Rejected, Unfit
from receiver.translate.rules import Rules


class Resource(NamedTuple):
    """A resource, read once for all its spans. When it has a `fault`, every event under it is rejected for it."""

    has_deciding_key: bool  # no span under it may be skipped unread
    attributes: AttributeMap
    metadata: list[Candidate]
    fault: str | None = None


def read_resource(raw: bytes, rules: Rules) -> Resource:
    """Reads a resource; never raises."""
    fault: str | None = None
    attributes: AttributeMap = {}
    try:
        if scan.is_too_large(raw, scan.RESOURCE, bytes_max=rules.span_bytes_max):
            fault = "span_too_large"
        else:
            pairs = otlp.parse_resource(raw).attributes
            attributes = by_key(pairs)
            fault = "span_too_large" if len(pairs) > rules.span_attributes_max else None
    except (DecodeError, scan.Unreadable):
        fault = "malformed_resource"
    metadata = candidates(attributes, "resource", rules.allowed, Notes())
    return Resource(rules.has_deciding_key(raw), attributes, metadata, fault)


def translate(
    span: bytes, resource: Resource, rules: Rules, *, traces: Traces | None = None, notes: Notes | None = None
) -> Outcome:
    """Translate one span. Never raises, whatever the bytes. `notes` collects what is done to the span's values.

    `traces` are the traces of the span's request. A bug of ours rejects this span alone, as `Rejected("internal")`; the
    caller logs its `fault`.
    """
    if not (resource.has_deciding_key or rules.has_deciding_key(span)):
        return NOT_PRODUCT_EVENT
    try:
        return _outcome(span, resource, rules, traces, Notes() if notes is None else notes)
    except Unfit as unfit:
        return Rejected(unfit.reason)
    except Exception as error:  # noqa: BLE001  the one place where a bug costs a span and not the request
        return failed(error)


def _outcome(raw: bytes, resource: Resource, rules: Rules, traces: Traces | None, notes: Notes) -> Outcome:
    try:
        if scan.is_too_large(raw, scan.SPAN, bytes_max=rules.span_bytes_max):
            raise Unfit("span_too_large")
        span = otlp.parse_span(raw)
    except (DecodeError, scan.Unreadable):
        raise Unfit("malformed_span") from None
    if resource.fault and resource.has_deciding_key:
        raise Unfit(resource.fault)  # what decides cannot be read
    attributes = Attributes(by_key(span.attributes), resource.attributes, notes)
    reading = Reading(span, attributes, rules, traces.of(span.trace_id) if traces else NOBODY)
    table = reading.table()
    if isinstance(table, Ignored):
        return table
    if resource.fault:
        raise Unfit(resource.fault)
    if max(len(span.attributes), len(span.events), len(span.links)) > rules.span_attributes_max:
        raise Unfit("span_too_large")
    return reading.event(table, resource_metadata=resource.metadata)


def failed(error: Exception) -> Rejected:
    """The outcome of a span that hit a bug: the error's type and place, without its text, which may repeat the span."""
    trace = error.__traceback__
    assert trace is not None  # it was raised
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    place = f"{type(error).__name__} in {code.co_name}, {PurePath(code.co_filename).name}:{trace.tb_lineno}"
    return Rejected("internal", place)
