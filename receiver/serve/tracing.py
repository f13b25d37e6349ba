"""an Export -> a span about it, to TRACING_ENDPOINT. Imported only when that is set: needs the extra `tracing`.

There is no automatic instrumentation: this module makes the spans itself, after the reply, so the exporter's own calls
make no spans. A request that carries spans of a receiver about itself makes no spans either. Otherwise such spans would
circulate for ever, through a Collector or a load balancer.
"""

import ipaddress
import random
import socket
import threading
import time
from importlib.metadata import version
from urllib.parse import urlsplit

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context

from receiver.serve.observer import Fates, Observer
from receiver.settings import ReceiverSettings
from shared.errors import WrongSetting

log = structlog.get_logger(__name__)

EXPORT_EVERY_MS = 1_000
EXPORT_TIMEOUT_MS = 3_000
SPANS_MAX = 2_048  # spans that wait to be sent; more are dropped
STOP_S = 0.5  # to send what waits; the whole process stops within 15 s
MARK = b"telemetry-receiver/about-itself"


class Tracing:
    """Makes a Observer for each request, and sends what is sampled from a thread of the SDK's."""

    def __init__(self, settings: ReceiverSettings) -> None:
        """Raises WrongSetting when the spans would come back to this receiver."""
        endpoint = urlsplit(settings.tracing_endpoint)
        if _is_ours(endpoint.hostname or "", endpoint.port or 4317, settings):
            raise WrongSetting("TRACING_ENDPOINT: that is this receiver itself; name another OTLP/gRPC endpoint")
        resource = {
            "service.name": "telemetry-receiver",
            "service.version": version("telemetry-processor"),
            "telemetry.origin": MARK.decode(),
        }
        self._provider = TracerProvider(
            resource=Resource.create(resource),
            sampler=ALWAYS_ON,  # `begin` has sampled already; other requests make no span at all
            shutdown_on_exit=False,
        )
        # Credentials and headers are the SDK's own variables: OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE, _HEADERS.
        exporter = OTLPSpanExporter(
            endpoint=settings.tracing_endpoint,
            insecure=endpoint.scheme == "http",
            timeout=EXPORT_TIMEOUT_MS / 1000,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=SPANS_MAX, schedule_delay_millis=EXPORT_EVERY_MS)
        )
        self._tracer = self._provider.get_tracer("receiver")
        self._sample_ratio = settings.tracing_sample_ratio
        log.info("tracing_started", endpoint=endpoint.netloc, sample_ratio=settings.tracing_sample_ratio)

    def begin(self, transport: str) -> Observer:
        """Begin a request's Observer. The sampling decision is ours and does not depend on the sender."""
        is_sampled = random.random() < self._sample_ratio  # noqa: S311  not a secret
        return _TracingObserver(self._tracer, transport) if is_sampled else Observer(transport)

    def stop(self) -> None:
        """Send the waiting spans, for at most half a second."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True, name="tracing-stop")
        thread.start()
        thread.join(STOP_S)


class _TracingObserver(Observer):
    def __init__(self, tracer: Tracer, transport: str) -> None:
        super().__init__(transport)
        self._tracer = tracer
        self._transport = transport
        self._began_at_ns = time.time_ns()
        self._passed: list[tuple[str, int]] = []  # a stage, and when it ended
        self._bytes = 0
        self._is_about_us = False

    def received(self, body: bytes) -> None:
        self._bytes = len(body)
        self._is_about_us = MARK in body
        self._passed.append(("read", time.time_ns()))

    def translated(self) -> None:
        self._passed.append(("translate", time.time_ns()))

    def answered(self, code: str, fates: Fates) -> None:
        if self._is_about_us:
            return
        ended_at_ns = time.time_ns()
        span = self._tracer.start_span(
            "Export", context=Context(), kind=SpanKind.SERVER, start_time=self._began_at_ns, record_exception=False
        )
        events = fates.published.total()
        span.set_attributes(
            {
                **_PROTOCOLS[self._transport],
                "rpc.method": "opentelemetry.proto.collector.trace.v1.TraceService/Export",
                "rpc.response.status_code": code,
                "telemetry.request.bytes": self._bytes,
                "telemetry.request.spans": events + fates.ignored.total() + fates.rejected.total(),
                "telemetry.request.events": events,
                "telemetry.request.rejected": fates.rejected.total(),
            }
        )
        if code != "OK":
            span.set_status(StatusCode.ERROR)
        context = set_span_in_context(span, Context())
        began_at_ns = self._began_at_ns
        stages = [*self._passed, (_STAGES[len(self._passed)], ended_at_ns)]  # the last one is where it ended
        for name, at_ns in stages:
            child = self._tracer.start_span(name, context=context, start_time=began_at_ns)
            child.end(at_ns)
            began_at_ns = at_ns
        span.end(ended_at_ns)


_PROTOCOLS = {"grpc": {"rpc.system.name": "grpc"}, "http": {"network.protocol.name": "http"}}
_STAGES = ("read", "translate", "publish")


def _is_ours(host: str, port: int, settings: ReceiverSettings) -> bool:
    """Whether a connection to this address would reach our own socket. A name that cannot be resolved does not."""
    if port != settings.port:
        return False
    listening = _addresses(settings.host)
    is_any = any(ipaddress.ip_address(address).is_unspecified for address in listening)
    return any(_is_local(address) if is_any else address in listening for address in _addresses(host))


def _addresses(host: str) -> set[str]:
    try:
        return {str(found[4][0]).partition("%")[0] for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def _is_local(address: str) -> bool:
    """Only an address of this machine can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
