"""spans -> records, ignored or rejected: by the short way where it is sure, else by the long one. Pure."""

from collections.abc import Iterator

from receiver.fast_path import FastPath
from receiver.outcome import Ignored, Rejected
from receiver.rules import Rules
from receiver.spans import ResourceSpans
from receiver.translate import failed, read_resource, translate
from shared import wire


class Records:
    """One a process, for it remembers what repeats."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._fast = FastPath(rules)
        self.took_long = False  # the last span: one may cost as much as a thousand others

    def sifted(self, group: ResourceSpans) -> ResourceSpans:
        """Without spans of which the bytes alone show that they are no product event."""
        if self._rules.is_marked(group.resource):
            return group
        return ResourceSpans(group.resource, self._rules.sifted(group.spans))

    def of(self, group: ResourceSpans) -> Iterator[wire.Record | Ignored | Rejected]:
        """One answer a span, in their order. Never raises, whatever the bytes."""
        resource = None
        try:
            plain = self._fast.resource(group.resource)
        except Exception as error:  # noqa: BLE001  a bug of ours costs these spans and not the request
            yield from [failed(error)] * len(group.spans)
            return
        for span in group.spans:
            made: wire.Record | Ignored | Rejected | None = None
            try:
                if plain is not None:
                    made = self._fast.record_of(span, plain)
                self.took_long = made is None
                if made is None:
                    resource = resource or read_resource(group.resource, self._rules)
                    outcome = translate(span, resource, self._rules)
                    made = outcome if isinstance(outcome, Ignored | Rejected) else wire.encode(outcome)
            except Exception as error:  # noqa: BLE001  as above, this span
                made = failed(error)
            yield made
