"""thirty days that never were -> spans -> the receiver: so that every chart of the demo says something at once.

Started once a database by `make run`. The days are sent from the last to the first: a history that was cut short has no
first day, and is sent again. Ids come from a fixed seed and the day, so spans that were sent before are rows already.
"""

import hashlib
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PEOPLE = 850
WEEKEND_SHARE = 0.35
SPANS_A_REQUEST = 2_500
ATTEMPTS = 20
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SHOP_RELEASE_DAY, CHECKOUT_RELEASE_DAY = 17, 14  # counted from the first; the checkout's release breaks a step
ORGANIZATIONS = ("acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "wonka", "tyrell", "cyberdyne")
MODELS = (("anthropic", "claude-sonnet-4-5"), ("openai", "gpt-5-mini"), ("mistral_ai", "mistral-small"))
PRODUCTS = ("espresso-machine", "desk-lamp", "running-shoes", "tea-sampler", "headphones")

Value = str | int | float


@dataclass(frozen=True, slots=True)
class Person:
    user_id: str
    organization_id: str
    first_day: int
    loyalty: float  # chance to come on a working day, at first
    deployment: str


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    route: str
    milliseconds: float
    status: int = 200


@dataclass(slots=True)
class Day:
    """Writes one day's spans, by service and version."""

    number: int
    starts_at: datetime
    dice: random.Random
    spans: dict[tuple[str, str], list[Span]] = field(default_factory=dict)

    def version_of(self, service: str) -> str:
        if service == "demo-shop":
            return "2.3.0" if self.number >= SHOP_RELEASE_DAY else "2.2.0"
        if service == "demo-checkout":
            return "1.8.0" if self.number >= CHECKOUT_RELEASE_DAY else "1.7.2"
        return "0.9.1"

    def write(self, service: str, at: float, milliseconds: float, attributes: dict[str, Value], kind: int = 1) -> float:
        """One span that starts so many seconds into the day; when it ends, in the same."""
        seconds = self.dice.lognormvariate(0, 0.45) * milliseconds / 1000
        start = int((self.starts_at.timestamp() + at) * 1_000_000) * 1000
        span = Span(
            trace_id=self.dice.randbytes(16),
            span_id=self.dice.randbytes(8),
            name="demo",
            kind=kind,  # type: ignore[arg-type]  # the number of an enum
            start_time_unix_nano=start,
            end_time_unix_nano=start + int(seconds * 1e9),
            attributes=[_attribute(name, value) for name, value in attributes.items()],
        )
        self.spans.setdefault((service, self.version_of(service)), []).append(span)
        return at + seconds

    def requests(self) -> Iterator[bytes]:
        for (service, version), spans in self.spans.items():
            for place in range(0, len(spans), SPANS_A_REQUEST):
                request = ExportTraceServiceRequest()
                traces = request.resource_spans.add()
                names = {"service.name": service, "service.version": version, "service.namespace": "demo"}
                traces.resource.attributes.extend(_attribute(name, value) for name, value in names.items())
                traces.scope_spans.add().spans.extend(spans[place : place + SPANS_A_REQUEST])
                yield request.SerializeToString()


def _attribute(name: str, value: Value) -> KeyValue:
    match value:
        case str():
            return KeyValue(key=name, value=AnyValue(string_value=value))
        case int():
            return KeyValue(key=name, value=AnyValue(int_value=value))
    return KeyValue(key=name, value=AnyValue(double_value=value))


def people(dice: random.Random, days: int) -> list[Person]:
    """Half of them were there from the start, the others arrive day by day."""
    return [
        Person(
            f"customer-{number}",
            ORGANIZATIONS[min(int(dice.expovariate(0.45)), len(ORGANIZATIONS) - 1)],
            -dice.randrange(25) if number <= PEOPLE * 0.45 else dice.randrange(1, days),
            dice.choice((0.12, 0.3, 0.55, 0.8)),
            "cloud" if dice.random() < 0.8 else "self-hosted",
        )
        for number in range(1, PEOPLE + 1)
    ]


def day_of(number: int, starts_at: datetime, everybody: Sequence[Person]) -> Day:
    """All that happened on a day, which is 0 for the first."""
    seed = hashlib.sha256(f"history {starts_at.date()}".encode()).digest()
    day = Day(number, starts_at, random.Random(seed))  # noqa: S311  nothing here is secret
    is_weekend = starts_at.weekday() >= 5
    for person in everybody:
        age = number - person.first_day
        chance = person.loyalty * (0.35 + 0.65 * math.exp(-age / 12)) * (WEEKEND_SHARE if is_weekend else 1)
        if age == 0 or (age > 0 and day.dice.random() < chance):
            _visit(day, person)
    return day


def _visit(day: Day, person: Person) -> None:
    """A login, some looking around, perhaps questions and a purchase."""
    dice = day.dice
    known: dict[str, Value] = {
        "user.id": person.user_id,
        "organization.id": person.organization_id,
        "session.id": f"session-{dice.randrange(10**6):06}",
        "deployment.type": person.deployment,
    }
    at = min(max(dice.gauss(13.5, 3.2), 0.2), 23.4) * 3600
    at = _request(day, "demo-shop", at, Asked("POST", "/api/login", 160), known)
    at = day.write("demo-shop", at, 1, known | {"event.category": "user_activity", "event.type": "login"})
    search_ms = 120 if day.number >= SHOP_RELEASE_DAY else 260  # the shop's release made it faster
    for _ in range(dice.randrange(3, 12)):
        at += dice.expovariate(1 / 25)
        at = _request(day, "demo-shop", at, Asked("GET", "/api/products/{product}", 40), known)
        if dice.random() < 0.5:
            at = _request(day, "demo-shop", at, Asked("GET", "/api/search", search_ms), known)
            at = _feature(day, "demo-shop", at, "product_search/searched", known)
    if dice.random() < 0.35:
        at = _ask(day, at + 20, known)
    if dice.random() < 0.45:
        at = _feature(day, "demo-shop", at + 15, "cart/added", known)
        _buy(day, at + dice.expovariate(1 / 90), known)
    if dice.random() < 0.5:
        day.write("demo-shop", at + 200, 1, known | {"event.category": "user_activity", "event.type": "logout"})
    if dice.random() < 0.06:
        _feature(day, "demo-shop", at + 30, "wish_list/shared", known)


def _buy(day: Day, at: float, known: dict[str, Value]) -> None:
    """Since its release, two of three checkouts fail: the broken step of the funnel."""
    is_broken = day.number >= CHECKOUT_RELEASE_DAY and day.dice.random() < 0.65
    status = 500 if is_broken else day.dice.choices((201, 402), weights=(94, 6))[0]
    at = _request(day, "demo-checkout", at, Asked("POST", "/api/checkout", 1900 if is_broken else 480, status), known)
    if status == 201:
        _feature(day, "demo-checkout", at, "checkout/completed", known)


def _ask(day: Day, at: float, known: dict[str, Value]) -> float:
    for _ in range(day.dice.randrange(1, 5)):
        provider, model = day.dice.choices(MODELS, weights=(5, 3, 1))[0]
        call: dict[str, Value] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": model,
            "gen_ai.usage.input_tokens": day.dice.randrange(50, 900),
            "gen_ai.usage.output_tokens": day.dice.randrange(20, 400),
        }
        if day.dice.random() < (0.09 if model == "mistral-small" else 0.01):
            call["error.type"] = "timeout"
        at = _request(day, "demo-assistant", at, Asked("POST", "/api/assistant", 1500), known)
        at = day.write("demo-assistant", at, 900, known | call, kind=3)
        at = _feature(day, "demo-assistant", at, "shopping_assistant/asked", known | {"metadata.model": model})
        at += day.dice.expovariate(1 / 40)
    return at


def _request(day: Day, service: str, at: float, asked: Asked, known: dict[str, Value]) -> float:
    attributes: dict[str, Value] = {
        "http.request.method": asked.method,
        "http.route": asked.route,
        "http.response.status_code": asked.status,
    }
    return day.write(service, at, asked.milliseconds, known | attributes, kind=2)


def _feature(day: Day, service: str, at: float, use: str, known: dict[str, Value]) -> float:
    """`use` is feature/action."""
    name, _, action = use.partition("/")
    return day.write(service, at, 3, known | {"feature.name": name, "feature.action": action})


def send(endpoint: str, headers: tuple[tuple[str, str | bytes], ...], *, days: int) -> int:
    """Every day from the last to the first; how many spans were acknowledged."""
    now = datetime.now(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    everybody = people(random.Random("people"), days)  # noqa: S311  nothing here is secret
    count = 0
    with (
        grpc.insecure_channel(endpoint, options=[("grpc.enable_http_proxy", 0)]) as channel,
        ThreadPoolExecutor(1) as sender,
    ):
        export = channel.unary_unary(EXPORT, lambda body: body, ExportTraceServiceResponse.FromString)
        under_way = []
        for number in reversed(range(days)):
            day = day_of(number, today - timedelta(days=days - 1 - number), everybody)
            for spans in day.spans.values():
                spans[:] = [span for span in spans if span.start_time_unix_nano < now.timestamp() * 1e9]
                count += len(spans)
            under_way += [sender.submit(_export, export, body, headers) for body in day.requests()]
        for one in under_way:
            one.result()
    return count


def _export(
    export: "grpc.UnaryUnaryMultiCallable[bytes, ExportTraceServiceResponse]",
    body: bytes,
    headers: tuple[tuple[str, str | bytes], ...],
) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            export(body, timeout=10, metadata=headers)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or attempt == ATTEMPTS:
                raise
            time.sleep(0.5)
        else:
            return


def main() -> None:
    """The argument: days. Endpoint and key are where an SDK looks for them. Prints how many spans were sent."""
    headers = [
        pair.split("=", 1) for pair in os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",") if "=" in pair
    ]
    endpoint = os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"].removeprefix("http://")
    print(send(endpoint, tuple((name, value) for name, value in headers), days=int(sys.argv[1])))


if __name__ == "__main__":
    main()
