"""request bytes -> spans, each still bytes. Pure: knows OTLP's envelope and nothing of what a span says.

Spans stay bytes so that one that is broken costs nobody but itself.
"""

from collections.abc import Generator, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from receiver.decode import otlp, scan
from shared.errors import Permanent

# A span may stand alone in its scope, and its scope in its group: that makes the group, its resource and schema, the
# scope's spans, scope and schema, and the span.
_PIECES_PER_SPAN = 7
_PIECES_SPARE = 1024
_PIECE_BYTES_MIN = 2
_GROUPS_A_STEP = 1_000  # 3 ms


class MalformedRequest(Permanent):
    """The bytes are no ExportTraceServiceRequest."""


class TooManySpans(Permanent):
    """More spans, or groups of spans, than a request may hold."""


class ResourceSpans(NamedTuple):
    """The spans of one resource, in the order sent, whatever their scope."""

    resource: bytes
    spans: Sequence[bytes]


def read_request(body: bytes, *, spans_max: int) -> list[ResourceSpans]:
    """What `reading` returns, at one go."""
    steps = reading(body, spans_max=spans_max)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            groups: list[ResourceSpans] = end.value
            return groups


def reading(body: bytes, *, spans_max: int) -> Generator[None, None, list[ResourceSpans]]:
    """The spans of an ExportTraceServiceRequest by resource, as bytes; groups without a span are left out.

    In steps of a few milliseconds. Memory is bounded before anything is made for each span or group: a body that
    could hold more than 7 x `spans_max` + 1024 pieces is counted first.

    Raises:
        MalformedRequest: the bytes are no such request.
        TooManySpans: more than `spans_max` spans, or more pieces than that many spans need.
    """
    pieces_max = _pieces_max(spans_max)
    try:
        if len(body) > _PIECE_BYTES_MIN * pieces_max and (
            yield from scan.counting(body, scan.REQUEST, pieces_max=pieces_max)
        ):
            raise TooManySpans(f"more than {spans_max} spans")
        request = otlp.parse_request(body)
    except (scan.Unreadable, DecodeError):
        raise MalformedRequest("not an ExportTraceServiceRequest") from None
    found = []
    room = spans_max
    for number, group in enumerate(request.resource_spans, 1):
        if number % _GROUPS_A_STEP == 0:
            yield
        scopes = group.scope_spans
        spans = [span for scope in scopes for span in scope.spans] if scopes else None
        if not spans:
            continue
        room -= len(spans)
        if room < 0:
            raise TooManySpans(f"more than {spans_max} spans")
        found.append(ResourceSpans(b"".join(group.resource), spans))
    return found


def _pieces_max(spans_max: int) -> int:
    return _PIECES_PER_SPAN * spans_max + _PIECES_SPARE
