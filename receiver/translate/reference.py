"""spans -> events, ignored or rejected. Pure: knows what is too large or broken, knows no gRPC, Kafka or time.

Classify first, then check: a span that is no event is ignored, however broken; only an event is rejected.
"""

from pathlib import PurePath
from typing import NamedTuple

from google.protobuf.message import DecodeError

from receiver.decode import otlp, scan
from receiver.translate.attributes import AttributeMap, Attributes, Notes, by_key
from receiver.translate.memo import remembered
from receiver.translate.metadata import SAFE_WIRE_BYTES, Candidate, candidates
from receiver.translate.outcome import NOT_PRODUCT_EVENT, Ignored, IgnoreReason, Outcome, Rejected, RejectReason, Unfit
from receiver.translate.reading import Reading
from receiver.translate.rules import Rules

__all__ = [
    "IgnoreReason",
    "Ignored",
    "Outcome",
    "RejectReason",
    "Rejected",
    "Resource",
    "Rules",
    "read_resource",
    "translate",
]

# A value inside a value costs as much to parse as an attribute: about 1 us and 100 bytes.
_PIECES_MAX = 65_536
# Two bytes a piece: what is shorter parses within milliseconds, whatever it holds.
_UNSCANNED_BYTES = 64 * 1024


class Resource(NamedTuple):
    """A resource, read once for all its spans. With a `fault`, every event under it is rejected for that."""

    is_marked: bool  # it holds a deciding key: no span under it may be skipped unread
    bytes_count: int
    attributes: AttributeMap
    metadata: list[Candidate]
    fault: RejectReason | None = None


@remembered(entries=512, length_max=4096)
def read_resource(raw: bytes, rules: Rules) -> Resource:
    """Reads a resource; never raises. Senders repeat theirs with each request, so it is remembered."""
    fault: RejectReason | None = None
    attributes: AttributeMap = {}
    try:
        if _is_too_large(raw, scan.RESOURCE, rules):
            fault = "span_too_large"
        else:
            pairs = otlp.parse_resource(raw).attributes
            attributes = by_key(pairs)
            fault = "span_too_large" if len(pairs) > rules.span_attributes_max else None
    except (DecodeError, scan.Unreadable):
        fault = "malformed_resource"
    metadata = candidates(attributes, "resource", rules.allowed, Notes())
    return Resource(rules.is_marked(raw), len(raw), attributes, metadata, fault)


def translate(span: bytes, resource: Resource, rules: Rules, notes: Notes | None = None) -> Outcome:
    """What becomes of one span. Never raises, whatever the bytes. `notes` hears what is done to its values.

    A failure of ours costs this span alone: `Rejected("internal")`, whose `fault` the caller logs.
    """
    if not (resource.is_marked or rules.is_marked(span)):
        return NOT_PRODUCT_EVENT
    try:
        return _outcome(span, resource, rules, Notes() if notes is None else notes)
    except Unfit as unfit:
        return Rejected(unfit.reason)
    except Exception as error:  # noqa: BLE001  the one place where a bug costs a span and not the request
        return failed(error)


def _outcome(raw: bytes, resource: Resource, rules: Rules, notes: Notes) -> Outcome:
    try:
        if _is_too_large(raw, scan.SPAN, rules):
            raise Unfit("span_too_large")
        span = otlp.parse_span(raw)
    except (DecodeError, scan.Unreadable):
        raise Unfit("malformed_span") from None
    if resource.fault and resource.is_marked:
        raise Unfit(resource.fault)  # what decides cannot be read
    attributes = Attributes(by_key(span.attributes), resource.attributes, notes)
    reading = Reading(span, attributes, rules)
    table = reading.table()
    if isinstance(table, Ignored):
        return table
    if resource.fault:
        raise Unfit(resource.fault)
    if max(len(span.attributes), len(span.events), len(span.links)) > rules.span_attributes_max:
        raise Unfit("span_too_large")
    is_small = len(raw) + resource.bytes_count <= SAFE_WIRE_BYTES
    return reading.event(table, resource_metadata=resource.metadata, is_small=is_small)


def _is_too_large(raw: bytes, shape: scan.Shape, rules: Rules) -> bool:
    """Judged before the parse where that could cost much; what is shorter is counted after it."""
    if len(raw) > rules.span_bytes_max:
        return True
    return len(raw) > _UNSCANNED_BYTES and scan.has_more_pieces(raw, shape, pieces_max=_PIECES_MAX)


def failed(error: Exception) -> Rejected:
    """A bug's verdict on its span, with type and place: the text may repeat the span."""
    trace = error.__traceback__
    assert trace is not None  # it was raised
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    place = f"{type(error).__name__} in {code.co_name}, {PurePath(code.co_filename).name}:{trace.tb_lineno}"
    return Rejected("internal", place)
