"""An Export's outcome -> its reply. One table, which gRPC and HTTP both read. Pure."""

from collections import Counter
from dataclasses import dataclass

from google.rpc.code_pb2 import Code

from receiver.budget import BudgetFull, SenderStalled
from receiver.decode.spans import MalformedRequest, TooManySpans
from shared.errors import BrokerUnavailable, Permanent, Transient

OK = "OK"
CANCELLED = "CANCELLED"  # the caller left, so no reply is sent
UNAVAILABLE = "UNAVAILABLE"


class KeyRefused(Permanent):
    """The call has no API key, or a wrong one."""


class NoBody(Permanent):
    """The call ended before its body was complete."""


class TooLarge(Permanent):
    """The body is above MAX_REQUEST_BYTES, before or after decompression."""


class TooMuchToHold(Permanent):
    """The request and its records take more memory than one request may."""


class UnknownEncoding(Permanent):
    """The body is compressed in a way that this receiver does not know."""


class BadEncoding(Permanent):
    """The body does not decompress."""


class Draining(Transient):
    """The process is about to stop."""


@dataclass(frozen=True, slots=True)
class Told:
    """One line of the table. UNAVAILABLE comes with a time after which to send again; any other code is final."""

    code: str  # gRPC's name; also the label of receiver_requests_total
    status: int  # HTTP's
    text: str
    cause: str  # label of receiver_refusals_total, or of receiver_requests_refused_total

    @property
    def is_final(self) -> bool:
        return self.code != UNAVAILABLE


REPLIES: dict[type[Exception], Told] = {
    KeyRefused: Told("UNAUTHENTICATED", 401, "API key missing or wrong", "key"),
    NoBody: Told("INVALID_ARGUMENT", 400, "no request was sent", "no_body"),
    BadEncoding: Told("INVALID_ARGUMENT", 400, "the body does not decompress", "encoding"),
    MalformedRequest: Told("INVALID_ARGUMENT", 400, "not an ExportTraceServiceRequest", "malformed"),
    TooManySpans: Told("INVALID_ARGUMENT", 400, "more spans than MAX_SPANS_PER_REQUEST", "spans"),
    TooLarge: Told("RESOURCE_EXHAUSTED", 413, "larger than MAX_REQUEST_BYTES", "size"),
    TooMuchToHold: Told("RESOURCE_EXHAUSTED", 413, "its records take more than 3 x MAX_REQUEST_BYTES", "records"),
    UnknownEncoding: Told("UNIMPLEMENTED", 415, "unknown compression: send gzip, deflate, zstd or none", "encoding"),
    SenderStalled: Told(UNAVAILABLE, 503, "the request arrived too slowly", "arriving"),
    BudgetFull: Told(UNAVAILABLE, 503, "too much in flight", "budget"),
    BrokerUnavailable: Told(UNAVAILABLE, 503, "the broker did not acknowledge", "broker"),
    TimeoutError: Told(UNAVAILABLE, 503, "no time left", "deadline"),
    Draining: Told(UNAVAILABLE, 503, "stopping", "draining"),
}
UNEXPECTED = Told(UNAVAILABLE, 503, "unexpected error", "unexpected")
CODES = (OK, CANCELLED, *dict.fromkeys(told.code for told in REPLIES.values()))
CAUSES = tuple(told.cause for told in (*REPLIES.values(), UNEXPECTED) if not told.is_final)
FINAL_CAUSES = tuple(dict.fromkeys(told.cause for told in REPLIES.values() if told.is_final))


def told_of(error: Exception) -> Told | None:
    """The table's line for the error's class or its nearest base class; None when there is none."""
    return next((REPLIES[kind] for kind in type(error).__mro__ if kind in REPLIES), None)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply before a transport encodes it. For OK, `text` is the message of partial_success."""

    code: str
    status: int
    text: str = ""
    rejected: int = 0
    retry_after_s: float | None = None

    @property
    def code_number(self) -> int:
        return int(Code.Value(self.code))


def success(rejected: "Counter[str]") -> Reply:
    """Partial success is set only when a span was rejected: a client must not send that request again."""
    if not rejected:
        return Reply(OK, 200)
    count = rejected.total()
    reasons = ", ".join(f"{reason}={spans}" for reason, spans in rejected.most_common())
    return Reply(OK, 200, f"rejected {count} span{'s' if count > 1 else ''}: {reasons}", rejected=count)
