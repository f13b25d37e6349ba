"""The outcomes of a span: an event, ignored, or rejected with a reason. Pure."""

from dataclasses import dataclass

from receiver.translate import mapping
from shared.events import BaseEvent

IGNORE_REASONS = ("unknown_category", "not_product_event", "excluded_endpoint", "telemetry_disabled")
REJECT_REASONS = (
    "malformed_span",
    "malformed_resource",
    "invalid_trace_id",
    "invalid_span_id",
    *mapping.REJECT_REASONS,
    "span_too_large",
    "internal",
)


@dataclass(frozen=True, slots=True)
class Ignored:
    """No product event. `reason` is one of IGNORE_REASONS."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event that cannot be stored. `reason` is one of REJECT_REASONS.

    `fault`, for `internal` alone, names the type and place of a failure of ours, and none of its text.
    """

    reason: str
    fault: str = ""


Outcome = BaseEvent | Ignored | Rejected

NOT_PRODUCT_EVENT = Ignored("not_product_event")
UNKNOWN_CATEGORY = Ignored("unknown_category")
EXCLUDED_ENDPOINT = Ignored("excluded_endpoint")


class Unfit(Exception):  # noqa: N818  a verdict, not an error
    """Rejects the event that is being read. Raised where the fault is found, and caught only in `translate`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
