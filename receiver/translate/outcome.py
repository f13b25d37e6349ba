"""What may become of a span: an event, ignored, or rejected with a reason. Pure."""

from dataclasses import dataclass
from typing import Literal

from shared.events import ProductEvent

IgnoreReason = Literal["unknown_category", "not_product_event", "excluded_endpoint", "telemetry_disabled"]
RejectReason = Literal[
    "malformed_span",
    "malformed_resource",
    "invalid_trace_id",
    "invalid_span_id",
    "missing_user_id",
    "invalid_user_id",
    "invalid_organization_id",
    "missing_event_type",
    "missing_endpoint",
    "missing_feature_name",
    "invalid_timestamp",
    "span_too_large",
    "internal",
]


@dataclass(frozen=True, slots=True)
class Ignored:
    """No product event."""

    reason: IgnoreReason


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event that cannot be stored.

    `fault`, for `internal` alone, names the type and place of a failure of ours, and none of its text.
    """

    reason: RejectReason
    fault: str = ""


Outcome = ProductEvent | Ignored | Rejected

NOT_PRODUCT_EVENT = Ignored("not_product_event")
EXCLUDED_ENDPOINT = Ignored("excluded_endpoint")


class Unfit(Exception):  # noqa: N818  a verdict, not an error
    """This event is rejected. Raised where it is found, caught in `translate`, seen by nobody else."""

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason)
        self.reason: RejectReason = reason
