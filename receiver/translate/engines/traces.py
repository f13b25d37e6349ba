"""a request of the native engine -> the identities of its traces, read when a span needs them. Pure."""

from collections.abc import Callable
from typing import Any

from receiver.decode.spans import ResourceSpans
from receiver.translate.identity import SPANS_MAX, Named, Trace, Traces
from receiver.translate.rules import Rules


class TracesOnDemand(Traces):
    """The traces of a request. Each is read when one of its spans needs an id from it, which is rare."""

    def __init__(self, request: Any, rules: Rules) -> None:
        super().__init__(rules)
        self._request = request
        self._known: dict[bytes, Trace] = {}

    def of(self, trace_id: bytes) -> Trace:
        return _TraceOnDemand(lambda: self._read(trace_id))

    def _read(self, trace_id: bytes) -> Trace:
        known = self._known.get(trace_id)
        if known is None:
            traces = Traces(self._rules)
            groups = [ResourceSpans(resource, spans) for resource, spans in self._request.spans_of(trace_id)]
            if sum(len(group.spans) for group in groups) <= SPANS_MAX:
                for _ in traces.read(groups):
                    pass
            known = self._known[trace_id] = traces.of(trace_id)
            self.held_bytes += traces.held_bytes
        return known


class _TraceOnDemand(Trace):
    __slots__ = ("_read",)

    def __init__(self, read: Callable[[], Trace]) -> None:
        super().__init__()
        self._read = read

    def named(self, column: str, span_id: bytes) -> Named | None:
        return self._read().named(column, span_id)
