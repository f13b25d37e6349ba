"""Spans of the real OpenTelemetry SDK, and the rows they must become, from the test's own description."""

import hashlib
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

RESOURCE = {"service.name": "shop", "service.version": "1.2.3", "deployment.type": "cloud", "organization.id": "acme"}


@dataclass(frozen=True)
class Sent:
    """A span, and its row: `columns` are those that the test can know beforehand."""

    span: ReadableSpan
    table: str
    id: uuid.UUID
    columns: dict[str, Any]

    def matches(self, row: Mapping[str, Any]) -> bool:
        return all(row[name] == value for name, value in self.columns.items())


class Shop:
    """An instrumented application: its spans, ready to be exported."""

    def __init__(self, seed: int, resource: Mapping[str, Any] = RESOURCE) -> None:
        self._ended: list[ReadableSpan] = []
        self._random = random.Random(seed)
        provider = TracerProvider(resource=Resource(dict(resource)), shutdown_on_exit=False)
        provider.add_span_processor(Collect(self._ended.append))
        self._tracer = provider.get_tracer("shop")

    def span(self, attributes: Mapping[str, Any], kind: SpanKind = SpanKind.INTERNAL) -> ReadableSpan:
        """One span of 12.5 ms that ends now."""
        now_ns = time.time_ns()
        started = self._tracer.start_span(
            "work", kind=kind, attributes=dict(attributes), start_time=now_ns - 12_500_000
        )
        started.end(now_ns)
        return self._ended.pop()

    def any(self) -> Sent:
        """A login, a request (by old or new names), a feature or a call of a model, at random."""
        user = f"user-{self._random.randrange(50)}"
        known = {
            "user_id": hashed(user),
            "organization_id": hashed("acme"),
            "deployment_type": "cloud",
            "service_name": "shop",
            "service_version": "1.2.3",
            "weight": 1.0,
        }
        match self._random.randrange(5):
            case 0:
                attributes = {"event.category": "user_activity", "user.id": user, "event.type": "login"}
                return sent(self.span(attributes), "user_activity", {**known, "event_type": "login"})
            case 1:
                new = {"http.request.method": "GET", "http.route": "/orders/{order}", "user.id": user}
                span = self.span({**new, "http.response.status_code": 200}, SpanKind.SERVER)
                own = {"endpoint": "/orders/{order}", "method": "GET", "status_code": 200, "duration_ms": 12.5}
                return sent(span, "endpoint_usage", {**known, **own})
            case 2:
                old = {"http.method": "post", "http.target": "/orders/1234?x=1", "enduser.id": user}
                span = self.span({**old, "http.status_code": 500}, SpanKind.SERVER)
                own = {"endpoint": "/orders/{id}", "method": "POST", "status_code": 500, "duration_ms": 12.5}
                return sent(span, "endpoint_usage", {**known, **own})
            case 3:
                call = {"gen_ai.operation.name": "chat", "gen_ai.system": "openai", "gen_ai.usage.input_tokens": 17}
                own = {"operation": "chat", "provider": "openai", "model": None, "input_tokens": 17}
                return sent(self.span({**call, "user.id": user}), "model_usage", {**known, **own})
            case _:
                attributes = {"feature.name": "export", "feature.action": "created", "user.id": user}
                return sent(
                    self.span(attributes), "feature_usage", {**known, "feature_name": "export", "action": "created"}
                )


class Collect(SpanProcessor):
    def __init__(self, keep: Callable[[ReadableSpan], None]) -> None:
        self._keep = keep

    def on_end(self, span: ReadableSpan) -> None:
        self._keep(span)


def hashed(raw: str) -> str:
    return hashlib.sha256(raw.encode()).hexdigest()[:16]


def sent(span: ReadableSpan, table: str, columns: dict[str, Any]) -> Sent:
    context = span.get_span_context()
    assert context is not None
    digest = bytearray(
        hashlib.sha256(context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big")).digest()[:16]
    )
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return Sent(span, table, uuid.UUID(bytes=bytes(digest)), columns)


def exporter(port: int, timeout_s: float = 10, **options: Any) -> OTLPSpanExporter:
    """The SDK's own OTLP/gRPC exporter, which retries as it always does."""
    return OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}", insecure=True, timeout=timeout_s, **options)


def http_exporter(port: int, timeout_s: float = 10) -> HttpSpanExporter:
    """The SDK's own OTLP/HTTP exporter."""
    return HttpSpanExporter(endpoint=f"http://127.0.0.1:{port}/v1/traces", timeout=timeout_s)


def exported(to: SpanExporter, spans: Sequence[Sent]) -> bool:
    """Whether the receiver has acknowledged the spans."""
    return to.export([sent.span for sent in spans]) is SpanExportResult.SUCCESS
