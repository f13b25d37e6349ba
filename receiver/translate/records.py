"""the spans of a request -> records, ignored or rejected, in steps that leave room for other requests. Pure."""

from collections.abc import Iterator, Sequence

from receiver.decode.spans import ResourceSpans
from receiver.translate.identity import Traces
from receiver.translate.outcome import Ignored, Rejected
from receiver.translate.reference import Resource, failed, read_resource, translate
from receiver.translate.rules import Rules
from shared import wire

Answer = wire.Record | Ignored | Rejected

# A step: a few milliseconds at most, but for a span that takes long alone.
_SPANS_A_STEP = 32
_BYTES_A_STEP = 16 * 1024


class Records:
    """The engine in Python: the reference, span by span."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def traces(self) -> Traces:
        """Of one request: to be read before its spans are translated."""
        return Traces(self._rules)

    def sifted(self, group: ResourceSpans) -> ResourceSpans:
        """Without spans of which the bytes alone show that they are no product event."""
        has_deciding_key = self._rules.has_deciding_key
        if has_deciding_key(group.resource):
            return group
        return ResourceSpans(group.resource, [span for span in group.spans if has_deciding_key(span)])

    def of(self, group: ResourceSpans, traces: Traces | None = None) -> Iterator[list[Answer]]:
        """One answer a span, in their order: a list a step. Never raises, whatever the bytes."""
        if not group.spans:
            return
        resource = read_resource(group.resource, self._rules)
        for spans in _steps(group.spans):
            yield [self._answer(span, resource, traces) for span in spans]

    def _answer(self, span: bytes, resource: Resource, traces: Traces | None) -> Answer:
        try:
            outcome = translate(span, resource, self._rules, traces=traces)
            return outcome if isinstance(outcome, Ignored | Rejected) else wire.encode(outcome)
        except Exception as error:  # noqa: BLE001  a bug of ours costs this span and no other
            return failed(error)


def _steps(spans: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """A few spans, or one that is large."""
    step: list[bytes] = []
    size = 0
    for span in spans:
        if step and (len(step) >= _SPANS_A_STEP or size + len(span) > _BYTES_A_STEP):
            yield step
            step, size = [], 0
        step.append(span)
        size += len(span)
    yield step
