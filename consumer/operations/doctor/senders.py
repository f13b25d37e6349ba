"""a receiver's metrics -> what its senders do wrong. Pure: for doctor, which reads them over HTTP.

Counts are since the receiver's start, and each finding gives them: its cause may be gone already.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

REJECTED_SHARE_MAX = 0.01  # of product events, as in the alert TelemetrySpansRejected
REFUSED_SHARE_MAX = 0.05  # of requests, as in the alert TelemetryReceiverRefusing

EXPLAIN = "to see why, save one of their requests and run: python -m receiver explain FILE"

# A code upon which an exporter drops its spans for good: one is too many.
DROPPED = {
    "UNAUTHENTICATED": "no key, or an old one: set OTEL_EXPORTER_OTLP_HEADERS=x-api-key=... there, or API_KEYS here",
    "INVALID_ARGUMENT": "no OTLP traces, or more spans than MAX_SPANS_PER_REQUEST: correct the exporter there",
    "RESOURCE_EXHAUSTED": "send smaller batches there, or raise MAX_REQUEST_BYTES here",
    "UNIMPLEMENTED": "set OTEL_EXPORTER_OTLP_COMPRESSION=gzip there, or none",
}
# By the port that was spoken to.
WRONG_DOORS = {
    "grpc": (
        "used another protocol than gRPC on PORT",
        "OTLP/HTTP is on HTTP_PORT: change the endpoint there, or set OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
    ),
    "http": (
        "used gRPC on HTTP_PORT, or TLS although none is set",
        "OTLP/gRPC is on PORT: change the endpoint there, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
    ),
}
REJECTED = {
    "malformed_span": "the spans are no valid protobuf: check the exporter, and proxies between it and the receiver",
    "malformed_resource": "the resources are no valid protobuf: check the exporter, and proxies behind it",
    "invalid_trace_id": "a trace id needs 16 bytes that are not all zero: correct the exporter there",
    "invalid_span_id": "a span id needs 8 bytes that are not all zero: correct the exporter there",
    "span_too_large": "send smaller attributes there, or raise MAX_SPAN_BYTES here",
    "internal": "a bug of the receiver: see spans_untranslatable in its log",
}
IGNORED = {
    "not_product_event": "no span has event.category or an attribute that makes it an event: see docs/mapping.md",
    "unknown_category": "event.category names no table of this release",
    "excluded_endpoint": "ENDPOINT_EXCLUDE names every endpoint that is called",
    "telemetry_disabled": "TELEMETRY_ENABLED is false",
}


def remedy_of(reason: str) -> str:
    """What a sender should change. Reasons of columns are made of the column's name: missing_..., invalid_..."""
    if reason in REJECTED:
        return REJECTED[reason]
    kind, _, column = reason.partition("_")
    if kind == "missing":
        return f"set an attribute that fills {column}: see docs/mapping.md"
    if kind == "invalid":
        return f"attributes that fill {column} are text or whole numbers, in UTF-8: see docs/mapping.md"
    return "see send-your-spans.md"


class Mistake(NamedTuple):
    check: str
    detail: str
    remedy: str


def mistakes(metrics_text: str) -> Iterator[Mistake]:
    """What the counters of one receiver tell of those who send to it.

    Raises:
        ValueError: the text is no exposition of metrics, or not a receiver's.
    """
    samples = [sample for family in text_string_to_metric_families(metrics_text) for sample in family.samples]

    def counted(name: str, label: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for sample in samples:
            if sample.name == name and sample.value:
                found[sample.labels.get(label, "")] += int(sample.value)
        return found

    if not any(sample.name == "receiver_requests_total" for sample in samples):
        raise ValueError("no metrics of a receiver")
    yield from _of_requests(counted)
    yield from _of_spans(counted)


def _of_requests(counted: Callable[[str, str], Counter[str]]) -> Iterator[Mistake]:
    requests = counted("receiver_requests_total", "code")
    total = requests.total()
    if not total:
        yield Mistake(
            "senders",
            "no request has come since the receiver started",
            "set OTEL_EXPORTER_OTLP_ENDPOINT there: to HTTP_PORT for OTLP/HTTP, which is the default, or PORT for gRPC",
        )
    elif not counted("receiver_spans_received_total", "").total() and requests["OK"]:
        yield Mistake(
            "senders", f"{requests['OK']} requests have come, without a span", "check samplers and filters there"
        )
    for transport, count in counted("receiver_wrong_door_total", "transport").items():
        yield Mistake(
            "senders_wrong_door", f"{count} connections {WRONG_DOORS[transport][0]}", WRONG_DOORS[transport][1]
        )
    for code, remedy in DROPPED.items():
        if count := requests[code]:
            yield Mistake("senders_refused", f"{count} of {total} requests were answered {code}", remedy)
    if requests["UNAVAILABLE"] > REFUSED_SHARE_MAX * total:
        [(cause, _)] = counted("receiver_refusals_total", "cause").most_common(1) or [("", 0)]
        yield Mistake(
            "senders_put_off",
            f"{requests['UNAVAILABLE']} of {total} requests were refused with UNAVAILABLE, mostly for {cause}",
            "see TelemetryReceiverRefusing in docs/operations.md",
        )
    if requests["CANCELLED"] > REFUSED_SHARE_MAX * total:
        yield Mistake(
            "senders_left",
            f"{requests['CANCELLED']} of {total} calls ended before their answer",
            "set their timeout to 5 s or more, and keep requests below MAX_REQUEST_BYTES",
        )


def _of_spans(counted: Callable[[str, str], Counter[str]]) -> Iterator[Mistake]:
    published = counted("receiver_events_published_total", "table").total()
    rejected = counted("receiver_spans_rejected_total", "reason")
    ignored = counted("receiver_spans_ignored_total", "reason")
    for reason, count in rejected.most_common():
        if count > REJECTED_SHARE_MAX * (published + rejected.total()) or reason == "internal":
            yield Mistake(
                "spans_rejected",
                f"{count} of {published + rejected.total()} events were rejected: {reason}",
                f"{remedy_of(reason)}; {EXPLAIN}",
            )
    if ignored and not published and not rejected:
        [(reason, count)] = ignored.most_common(1)
        yield Mistake(
            "spans_ignored",
            f"every span was ignored, {count} of {ignored.total()} as {reason}",
            f"{IGNORED.get(reason, 'see send-your-spans.md')}; {EXPLAIN}",
        )
