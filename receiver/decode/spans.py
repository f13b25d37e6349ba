"""request bytes -> spans, each still bytes. Pure: knows OTLP's envelope and nothing of what a span says.

Spans stay bytes so that one that is broken costs nobody but itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from receiver.decode import otlp, scan
from shared.errors import Permanent

# What a legitimate span may bring along beside itself: its group's resource and schema, its scope and schema.
_PIECES_PER_SPAN = 8
_PIECES_SPARE = 1024
_PIECE_BYTES_MIN = 2


class MalformedRequest(Permanent):
    """The bytes are no ExportTraceServiceRequest."""


class TooManySpans(Permanent):
    """More spans, or groups of spans, than a request may hold."""


class ResourceSpans(NamedTuple):
    """The spans of one resource, in the order sent, whatever their scope."""

    resource: bytes
    spans: Sequence[bytes]


def read_request(body: bytes, *, spans_max: int) -> list[ResourceSpans]:
    """The spans of an ExportTraceServiceRequest by resource, as bytes; groups without a span are left out.

    Memory is bounded before anything is made for each span or group: a body that could hold more than
    `fields_max` pieces is counted first.

    Raises:
        MalformedRequest: the bytes are no such request.
        TooManySpans: more than `spans_max` spans, or more pieces than that many spans need.
    """
    pieces_max = fields_max(spans_max)
    try:
        if len(body) > _PIECE_BYTES_MIN * pieces_max and scan.has_more_pieces(
            body, scan.REQUEST, pieces_max=pieces_max
        ):
            raise TooManySpans(f"more than {spans_max} spans")
        request = otlp.parse_request(body)
    except (scan.Unreadable, DecodeError):
        raise MalformedRequest("not an ExportTraceServiceRequest") from None
    found = []
    room = spans_max
    for group in request.resource_spans:
        scopes = group.scope_spans
        spans = [span for scope in scopes for span in scope.spans] if scopes else None
        if not spans:
            continue
        room -= len(spans)
        if room < 0:
            raise TooManySpans(f"more than {spans_max} spans")
        found.append(ResourceSpans(b"".join(group.resource), spans))
    return found


def fields_max(spans_max: int) -> int:
    """Most fields of a request that hold spans, groups of them, and what stands beside both."""
    return _PIECES_PER_SPAN * spans_max + _PIECES_SPARE


def written_plainly(groups: Sequence[ResourceSpans]) -> bytes:
    """A request of these spans without anything else: each resource and its spans, in their order."""
    return otlp.request_of((group.resource, group.spans) for group in groups)
