"""Every metric of the receiver: name with unit, labels from closed sets, a sentence."""

from collections.abc import Iterable
from itertools import product
from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from receiver.budget import Holder
from receiver.replies import CAUSES, CODES, FINAL_CAUSES
from receiver.translate.engines.native import DECLINED
from receiver.translate.outcome import IGNORE_REASONS, REJECT_REASONS
from shared.events import TABLES

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 3.5, 5, 10)

BATCH_OUTCOMES = ("acknowledged", "failed", "expired")

ConnectionEnd = Literal["silent", "stalled", "full", "protocol"]
HTTP_REFUSALS = ("400", "404", "405", "415", "431")
SIGNALS = ("metrics", "logs")
TRANSPORTS = ("grpc", "http")

requests = Counter(
    "receiver_requests", "Answered Export calls, by the gRPC name of the reply's code", ["code", "transport"]
)
request_seconds = Histogram(
    "receiver_request_seconds", "Time from the start of an Export call to its reply", ["transport"], buckets=SECONDS
)
refusals = Counter("receiver_refusals", "Export calls answered UNAVAILABLE, by cause", ["cause"])
requests_refused = Counter(
    "receiver_requests_refused", "Export calls refused for good, by cause: their senders drop the spans", ["cause"]
)
requests_unfinished = Counter(
    "receiver_requests_unfinished",
    "Export calls whose deadline passed before a long request was done; the next attempt continues it",
)
spans_received = Counter("receiver_spans_received", "Spans in requests that could be parsed")
spans_ignored = Counter("receiver_spans_ignored", "Spans that are no product event", ["reason"])
spans_declined = Counter(
    "receiver_spans_declined", "Spans that the native engine left to the slower reference, by reason", ["reason"]
)
engine_info = Gauge(
    "receiver_engine_info", "1 for the engine that translates spans", ["engine"], multiprocess_mode="livemax"
)
endpoints_replaced = Counter(
    "receiver_endpoints_replaced",
    "Events stored with `{other}` in their endpoint, because their service has too many endpoints",
)
spans_rejected = Counter("receiver_spans_rejected", "Spans that are product events but cannot be stored", ["reason"])
events_published = Counter(
    "receiver_events_published", "Events in requests whose records Kafka acknowledged", ["table"]
)
publish_seconds = Histogram(
    "receiver_publish_seconds", "Time from a batch's first record to its acknowledgement", buckets=SECONDS
)
batches = Counter("receiver_batches", "Batches of records, by outcome", ["outcome"])
inflight_bytes = Gauge(
    "receiver_inflight_bytes", "Memory that requests hold, as the budget counts it", multiprocess_mode="livesum"
)
inflight_limit_bytes = Gauge(
    "receiver_inflight_limit_bytes",
    "Limit of the memory budget: MAX_INFLIGHT_BYTES for each worker",
    multiprocess_mode="livesum",
)
held_bytes = Gauge(
    "receiver_held_bytes", "Memory that the budget counts, by holder", ["holder"], multiprocess_mode="livesum"
)
arriving_bytes = Gauge(
    "receiver_arriving_bytes", "Bytes of bodies that are not complete yet", multiprocess_mode="livesum"
)
reads_waiting = Gauge(
    "receiver_reads_waiting", "Calls that wait for memory before they read on", multiprocess_mode="livesum"
)
calls_open = Gauge("receiver_calls_open", "Export calls that are not answered yet", multiprocess_mode="livesum")
connections = Gauge("receiver_connections", "Open connections of clients", ["transport"], multiprocess_mode="livesum")
http_refused = Counter("receiver_http_refused", "OTLP/HTTP requests refused before Export, by status", ["status"])
unsupported_items = Counter(
    "receiver_unsupported_items", "Requests with metrics or logs, which are dropped, by signal", ["signal"]
)
connections_ended = Counter(
    "receiver_connections_ended", "Connections that the receiver ended, by reason", ["transport", "reason"]
)
wrong_doors = Counter(
    "receiver_wrong_door", "Connections whose client used the wrong protocol for the port", ["transport"]
)

ready = Gauge("receiver_ready", "1 while /readyz answers 200", multiprocess_mode="livemin")

_LABELS: tuple[tuple[Counter | Gauge | Histogram, *tuple[Iterable[str], ...]], ...] = (
    (requests, CODES, TRANSPORTS),
    (request_seconds, TRANSPORTS),
    (refusals, CAUSES),
    (requests_refused, FINAL_CAUSES),
    (spans_ignored, IGNORE_REASONS),
    (spans_declined, DECLINED),
    (spans_rejected, REJECT_REASONS),
    (events_published, TABLES),
    (batches, BATCH_OUTCOMES),
    (held_bytes, get_args(Holder)),
    (http_refused, HTTP_REFUSALS),
    (unsupported_items, SIGNALS),
    (connections_ended, TRANSPORTS, get_args(ConnectionEnd)),
    (wrong_doors, TRANSPORTS),
)
for _metric, *_sets in _LABELS:  # so that a rate sees the first event of every label
    for _values in product(*_sets):
        _metric.labels(*_values)
