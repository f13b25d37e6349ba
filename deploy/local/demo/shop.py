"""simulated users -> spans, through a stock OpenTelemetry SDK: a small web shop with an assistant in it.

Started as a child process by `make run`; the exporter reads OTEL_EXPORTER_OTLP_ENDPOINT.
"""

import random
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, use_span
from opentelemetry.util.types import AttributeValue

_EXPORT_EVERY_MS = 500  # rows appear as one watches; the SDK's own default is 5 s
_DICE = random.Random()  # noqa: S311  nothing here is secret

_MODELS = {"claude-sonnet-4-5": "anthropic", "gpt-5-mini": "openai", "mistral-small": "mistral_ai"}
_PRODUCTS = ("espresso-machine", "desk-lamp", "running-shoes", "tea-sampler", "headphones")


@dataclass(slots=True)
class Customer:
    user_id: str
    organization_id: str
    plan: str
    session_id: str | None = None  # None: logged out

    def attributes(self) -> dict[str, AttributeValue]:
        """What an application puts on every span of a known user."""
        known: dict[str, AttributeValue] = {"user.id": self.user_id, "organization.id": self.organization_id}
        return known | ({"session.id": self.session_id} if self.session_id else {})


class Shop:
    """Sends the spans of one step of one customer at a time and says how many they were."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._sent_spans = 0

    def step(self, customer: Customer) -> int:
        """Spans sent, 1 to 5."""
        self._sent_spans = 0
        if customer.session_id is None:
            self._log_in(customer)
        else:
            steps = (self._browse, self._search, self._old_orders, self._check_out, self._ask, self._log_out)
            chosen = _DICE.choices(steps, weights=(34, 20, 12, 8, 20, 6))[0]
            chosen(customer)
        return self._sent_spans

    def _log_in(self, customer: Customer) -> None:
        is_right_password = _DICE.random() > 0.1
        with self._request("POST", "/api/login", 200 if is_right_password else 401, milliseconds=160):
            self._span("verify password", {"db.system.name": "postgresql"}, milliseconds=60)
            if is_right_password:
                customer.session_id = f"session-{_DICE.randrange(10**6):06}"
            outcome = "login" if is_right_password else "login_failed"
            self._user_activity(customer, outcome, {"metadata.method": _DICE.choice(("password", "passkey"))})

    def _log_out(self, customer: Customer) -> None:
        with self._request("POST", "/api/logout", 204, customer):
            self._user_activity(customer, "logout", {})
        customer.session_id = None

    def _browse(self, customer: Customer) -> None:
        product = _DICE.choice(_PRODUCTS)
        with self._request("GET", "/api/products/{product}", 200, customer, {"url.path": f"/api/products/{product}"}):
            self._span("SELECT products", {"db.system.name": "postgresql"}, milliseconds=4)

    def _search(self, customer: Customer) -> None:
        with self._request("GET", "/api/search", 200, customer):
            found: dict[str, AttributeValue] = {
                "metadata.results": _DICE.randrange(40),
                "metadata.filters": ["in_stock", "price"],
            }
            self._feature(customer, "product_search", "searched", found)

    def _old_orders(self, customer: Customer) -> None:
        """The part of the shop that was never moved to the new attribute names."""
        order = _DICE.randrange(1000, 9999)
        status = _DICE.choices((200, 404, 500), weights=(90, 7, 3))[0]
        old_names: dict[str, AttributeValue] = {
            "http.method": "GET",
            "http.target": f"/orders/{order}?page=1",
            "http.status_code": status,
        }
        self._span(f"GET /orders/{order}", customer.attributes() | old_names, kind=SpanKind.SERVER, milliseconds=35)

    def _check_out(self, customer: Customer) -> None:
        status = _DICE.choices((201, 402, 503), weights=(90, 7, 3))[0]
        with self._request("POST", "/api/checkout", status, customer, milliseconds=500):
            self._span("charge card", {"peer.service": "payments"}, kind=SpanKind.CLIENT, milliseconds=180)
            if status == 201:
                basket: dict[str, AttributeValue] = {
                    "metadata.items": _DICE.randrange(1, 6),
                    "metadata.plan": customer.plan,
                }
                self._feature(customer, "checkout", "completed", basket)

    def _ask(self, customer: Customer) -> None:
        with self._request("POST", "/api/assistant", 200, customer, milliseconds=2500):
            model, prompt_tokens = _DICE.choice([*_MODELS]), _DICE.randrange(50, 900)
            call: dict[str, AttributeValue] = {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": _MODELS[model],
                "gen_ai.request.model": model,
                "gen_ai.usage.input_tokens": prompt_tokens,
                "gen_ai.usage.output_tokens": _DICE.randrange(20, 400),
            }
            self._span(f"chat {model}", call, kind=SpanKind.CLIENT, milliseconds=900)
            answer: dict[str, AttributeValue] = {
                "metadata.model": model,
                "metadata.prompt_tokens": prompt_tokens,
                "metadata.streaming": _DICE.random() < 0.8,
                "metadata.cost_usd": round(_DICE.uniform(0.0005, 0.02), 5),
            }
            self._feature(customer, "shopping_assistant", "asked", answer)

    def _user_activity(self, customer: Customer, event_type: str, more: Mapping[str, AttributeValue]) -> None:
        marked = {"event.category": "user_activity", "event.type": event_type}
        self._span(f"user {event_type}", customer.attributes() | marked | dict(more), milliseconds=1)

    def _feature(self, customer: Customer, name: str, action: str, metadata: Mapping[str, AttributeValue]) -> None:
        marked = {"feature.name": name, "feature.action": action}
        self._span(f"feature {name}", customer.attributes() | marked | dict(metadata), milliseconds=2)

    @contextmanager
    def _request(
        self,
        method: str,
        route: str,
        status: int,
        customer: Customer | None = None,
        more: Mapping[str, AttributeValue] | None = None,
        *,
        milliseconds: float = 40,
    ) -> Iterator[None]:
        """The server span as an instrumented web framework makes it; spans made inside become its children."""
        attributes: dict[str, AttributeValue] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "server.address": "shop.example",
        }
        known = customer.attributes() if customer else {}
        end_ns = time.time_ns()
        span = self._tracer.start_span(
            f"{method} {route}",
            kind=SpanKind.SERVER,
            attributes=attributes | known | dict(more or {}),
            start_time=end_ns - _latency_ns(milliseconds),
        )
        with use_span(span):
            yield
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)
        self._sent_spans += 1

    def _span(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        milliseconds: float,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        end_ns = time.time_ns()
        start_ns = end_ns - _latency_ns(milliseconds)
        self._tracer.start_span(name, kind=kind, attributes=attributes, start_time=start_ns).end(end_ns)
        self._sent_spans += 1


def _latency_ns(median_milliseconds: float) -> int:
    """Log-normal, as latencies are: most near the median, a few several times as long."""
    return int(_DICE.lognormvariate(0, 0.5) * median_milliseconds * 1e6)


def main(spans_per_second: float) -> None:
    """Send until SIGTERM, then flush what is buffered: for 2 s at most."""
    resource = Resource.create(
        {
            "service.name": "demo-shop",
            "service.version": "2.3.0",
            "service.namespace": "demo",
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_EVERY_MS))
    shop = Shop(provider.get_tracer("demo-shop"))
    customers = [
        Customer(f"customer-{number}", _DICE.choice(("acme", "globex", "initech")), _DICE.choice(("free", "pro")))
        for number in range(1, 25)
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    next_step_at = time.monotonic()
    try:
        while True:
            next_step_at += shop.step(_DICE.choice(customers)) / spans_per_second
            time.sleep(max(0.0, next_step_at - time.monotonic()))
    finally:
        provider.force_flush(2000)
        provider.shutdown()


if __name__ == "__main__":
    main(float(sys.argv[1]))
