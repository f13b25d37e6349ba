"""request bytes -> spans, each still bytes. Pure: knows OTLP's envelope, and no field of a span.

A span stays bytes, so that a malformed span is rejected alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from receiver.decode import otlp, scan
from shared.errors import Permanent

# Fields that may come with a span: resource and schema of its group, scope and schema of its scope.
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

    Memory is bounded before anything is allocated for a span or group: the fields of a body that could hold more than
    `fields_max` are counted first.

    Raises:
        MalformedRequest: the bytes are no ExportTraceServiceRequest.
        TooManySpans: more than `spans_max` spans, or more fields than that many spans need.
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
    """The most fields that a request of `spans_max` spans may have: spans, groups, and the fields beside them."""
    return _PIECES_PER_SPAN * spans_max + _PIECES_SPARE


def written_plainly(groups: Sequence[ResourceSpans]) -> bytes:
    """Encode a request of only these resources and spans, in their order."""
    return otlp.request_of((group.resource, group.spans) for group in groups)
