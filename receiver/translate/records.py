"""spans -> records, ignored or rejected: by the short way where it is sure, else by the long one. Pure."""

from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError

from receiver.decode.spans import ResourceSpans
from receiver.translate.cut import sizes_of
from receiver.translate.fast_path import FastPath
from receiver.translate.outcome import Ignored, Rejected
from receiver.translate.reference import failed, read_resource, translate
from receiver.translate.rules import Rules
from shared import wire

Answer = wire.Record | Ignored | Rejected

# A step: about a millisecond, and 50 if every attribute in it is new.
_SPANS_A_STEP = 64
_BYTES_A_STEP = 48 * 1024
_LONG_SPANS_A_STEP = 4


class Records:
    """One a process, for it remembers what repeats."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._fast = FastPath(rules)

    def sifted(self, group: ResourceSpans) -> ResourceSpans:
        """Without spans of which the bytes alone show that they are no product event."""
        if self._rules.is_marked(group.resource):
            return group
        return ResourceSpans(group.resource, self._fast.marked(group.spans))

    def of(self, group: ResourceSpans) -> Iterator[list[Answer]]:
        """One answer a span, in their order: a list a step. Never raises, whatever the bytes."""
        for spans in _steps(group.spans):
            answers: list[Answer] = []
            for span, made in zip(spans, self._by_short_way(spans, group.resource), strict=True):
                if made is not None:
                    answers.append(made)
                    continue
                yield answers
                answers = [self._by_long_way(span, group.resource)]  # one may take as long as a thousand others
                yield answers
                answers = []
            yield answers

    def _by_short_way(self, spans: Sequence[bytes], resource: bytes) -> Sequence[Answer | None]:
        """None for those that must go the long way."""
        try:
            plain = self._fast.resource(resource)
            return [None] * len(spans) if plain is None else self._fast.records_of(spans, plain)
        except Exception as error:  # noqa: BLE001  one of them is malformed, or a bug of ours costs it and no other
            if len(spans) == 1:
                return [None if isinstance(error, DecodeError) else failed(error)]
            middle = len(spans) // 2
            return [
                *self._by_short_way(spans[:middle], resource),
                *self._by_short_way(spans[middle:], resource),
            ]

    def _by_long_way(self, span: bytes, resource: bytes) -> Answer:
        try:
            outcome = translate(span, read_resource(resource, self._rules), self._rules)
            return outcome if isinstance(outcome, Ignored | Rejected) else wire.encode(outcome)
        except Exception as error:  # noqa: BLE001  as above
            return failed(error)


def _steps(spans: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(spans), _SPANS_A_STEP):
        step = spans[start : start + _SPANS_A_STEP]
        if sum(sizes_of(step)) <= _BYTES_A_STEP:
            yield step
        else:
            for at in range(0, len(step), _LONG_SPANS_A_STEP):
                yield step[at : at + _LONG_SPANS_A_STEP]
