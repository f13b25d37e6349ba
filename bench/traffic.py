"""a seed -> requests as a Collector forwards them, each with fresh ids, times and path numbers. Pure but for the dice.

Spans are built once and serialised; what no two spans share in real traffic is written over their bytes at each
sending, so a sender costs little and no receiver can remember a whole span.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

# All are events; all are events and no value was there before; all are of one table; one span of ten is an event.
Mix = Literal["events", "new", "endpoints", "traces"]
Value = str | int | float | bool

SEED = 20_250_101
SPANS_OF_A_CORPUS = 16_384  # so that no memory of some thousand texts holds all that differ
SPANS_OF_A_TRACE = 10
SPANS_OF_A_RESOURCE = 512  # a larger request comes from several services, as a Collector's does
USERS = 10_000
ORGANIZATIONS = 200
SESSIONS_OF_A_USER = 4
BODIES_MAX = 4096
DIGITS = 7  # of the number in a path that names one thing: /api/orders/4711000

_START_MARK = 0x7A7A_7A7A_0101_0101  # times that are written over
_END_MARK = 0x7A7A_7A7A_0202_0202
_NUMBER_MARK = "9" * DIGITS
_NEW_MARK = "~" * 24  # written over by letters that nobody has seen
_NEW_LETTERS = np.frombuffer(b"ghijklmnopqrstuv", np.uint8)
_USER_MARK, _ORGANIZATION_MARK, _SESSION_MARK = "#" * 5, "%" * 3, "?" * 32

_NOUNS = ("orders", "invoices", "projects", "documents", "reports", "teams", "members", "webhooks", "tickets", "files")
_ACTIONS = ("comments", "history", "export", "share", "attachments")
_ROUTES = [f"/api/v1/{noun}" for noun in _NOUNS]
_ROUTES += [f"/api/v1/{noun}/{{id}}" for noun in _NOUNS]
_ROUTES += [f"/api/v1/{noun}/{{id}}/{action}" for noun in _NOUNS for action in _ACTIONS]
_AGENTS = [
    f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{version}.0.0.0 Safari/537.36"
    for system in ("Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7", "X11; Linux x86_64")
    for version in range(118, 134)
]
_FEATURES = ("export", "search", "dashboard", "share_link", "bulk_edit", "api_token", "assistant", "import_csv")
_FEATURE_ACTIONS = ("created", "viewed", "updated", "deleted", "completed")
_PLANS = ("free", "pro", "enterprise")
_SERVICES = ("gateway", "accounts", "orders", "billing", "search", "documents", "notifications", "reports")
_TABLES = ("orders", "invoices", "members", "projects", "sessions", "documents")


def _texts(values: Iterable[str]) -> NDArray[np.uint8]:
    """Texts of one length as ASCII, one a line."""
    return np.array([list(value.encode()) for value in values], np.uint8)


_USER_DIGITS = _texts(f"{user:05}" for user in range(USERS))
_ORGANIZATION_DIGITS = _texts(f"{organization:03}" for organization in range(ORGANIZATIONS))
_SESSIONS = _texts(f"{random.Random(number).getrandbits(128):032x}" for number in range(USERS * SESSIONS_OF_A_USER))


def attributes_of(values: dict[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_any_value(value)) for key, value in values.items()]


def _any_value(value: Value) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)


@dataclass(frozen=True, slots=True)
class Sample:
    """One serialised span, and what is written over it."""

    raw: bytes
    duration_ns: int


class _Sampler:
    """Makes spans of one service's traffic; what repeats and what does not is told in docs/performance.md."""

    def __init__(self, seed: int, *, is_new: bool = False) -> None:
        self._dice = random.Random(seed)
        self._is_new = is_new

    def endpoint(self) -> Sample:
        """An HTTP server span of stock instrumentation, with the person that the application added."""
        dice = self._dice
        route = _ROUTES[int(len(_ROUTES) * dice.random() ** 2)]
        method = dice.choices(("GET", "POST", "PUT", "DELETE"), weights=(75, 15, 7, 3))[0]
        values: dict[str, Value] = {
            "http.request.method": method,
            "url.scheme": "https",
            "url.path": route.replace("{id}", _NUMBER_MARK),
            "http.route": route,
            "http.response.status_code": dice.choices((200, 201, 204, 400, 404, 500), weights=(80, 6, 4, 3, 5, 2))[0],
            "server.address": "app.example.com",
            "server.port": 443,
            "client.address": f"10.{dice.randrange(256)}.{dice.randrange(256)}.{dice.randrange(256)}",
            "user_agent.original": dice.choice(_AGENTS),
            "network.protocol.version": dice.choice(("1.1", "2")),
        }
        if self._is_new:  # a framework that knows no routes, and paths with names in them
            del values["http.route"]
            values |= {"url.path": f"/people/{_NEW_MARK}/{_NUMBER_MARK}", "metadata.note": _NEW_MARK}
            route = ""
        elif dice.random() < 1 / 8:  # a framework that knows no routes
            del values["http.route"]
        return self._span(f"{method} {route}".strip(), Span.SPAN_KIND_SERVER, values | self._person())

    def activity(self) -> Sample:
        event_type = self._dice.choices(("login", "logout", "session_start", "login_failed"), weights=(5, 3, 3, 1))[0]
        values: dict[str, Value] = {
            "event.category": "user_activity",
            "event.type": event_type,
            "metadata.method": self._dice.choice(("password", "passkey", "sso")),
            "metadata.plan": self._dice.choice(_PLANS),
            "metadata.attempts": self._dice.randrange(1, 4),
        }
        return self._span(f"user {event_type}", Span.SPAN_KIND_INTERNAL, self._person() | values)

    def feature(self) -> Sample:
        name = self._dice.choice(_FEATURES)
        values: dict[str, Value] = {
            "feature.name": name,
            "feature.action": self._dice.choice(_FEATURE_ACTIONS),
            "metadata.plan": self._dice.choice(_PLANS),
            "metadata.items": self._dice.randrange(500),
            "metadata.cost_usd": round(self._dice.uniform(0.0005, 0.02), 5),
            "metadata.is_trial": self._dice.random() < 0.1,
        }
        return self._span(f"feature {name}", Span.SPAN_KIND_INTERNAL, self._person() | values)

    def event(self) -> Sample:
        return self._dice.choices((self.endpoint, self.feature, self.activity), weights=(80, 15, 5))[0]()

    def other(self) -> Sample:
        """A span below an event in its trace, which is none itself and carries none of the deciding keys."""
        make = self._dice.choices((self._query, self._function, self._remote_call), weights=(5, 3, 2))[0]
        return make()

    def _query(self) -> Sample:
        table = self._dice.choice(_TABLES)
        operation = self._dice.choice(("SELECT", "INSERT", "UPDATE"))
        values: dict[str, Value] = {
            "db.system.name": "postgresql",
            "db.namespace": "app",
            "db.operation.name": operation,
            "db.collection.name": table,
            "db.query.text": f"{operation} id, name, state, updated_at FROM {table} WHERE organization_id = $1",
            "server.address": f"db-{self._dice.randrange(4)}.internal",
            "server.port": 5432,
            "db.response.returned_rows": self._dice.randrange(200),
        }
        return self._span(f"{operation} {table}", Span.SPAN_KIND_CLIENT, values)

    def _function(self) -> Sample:
        noun = self._dice.choice(_NOUNS)
        values: dict[str, Value] = {
            "code.function.name": f"app.{noun}.load_{noun}",
            "code.file.path": f"/srv/app/{noun}/loading.py",
            "code.line.number": self._dice.randrange(20, 400),
            "thread.id": self._dice.randrange(10**5, 10**6),
            "thread.name": f"worker-{self._dice.randrange(16)}",
            "app.cache.hit": self._dice.random() < 0.7,
            "app.items": self._dice.randrange(1000),
            "app.tenant.tier": self._dice.choice(_PLANS),
        }
        return self._span(f"load {noun}", Span.SPAN_KIND_INTERNAL, values)

    def _remote_call(self) -> Sample:
        service = self._dice.choice(_SERVICES)
        values: dict[str, Value] = {
            "rpc.system": "grpc",
            "rpc.service": f"example.{service}.v1.Api",
            "rpc.method": self._dice.choice(("Get", "List", "Check")),
            "rpc.grpc.status_code": 0,
            "server.address": f"{service}.internal",
            "server.port": 8443,
            "network.peer.address": f"10.0.{self._dice.randrange(256)}.{self._dice.randrange(256)}",
            "network.transport": "tcp",
        }
        return self._span(f"example.{service}.v1.Api/Get", Span.SPAN_KIND_CLIENT, values)

    def _person(self) -> dict[str, Value]:
        """Somebody, who is written over these at each sending."""
        if self._is_new:
            names = ("user.id", "organization.id", "session.id", "metadata.ticket")
            return {name: f"{name[:4]}-{_NEW_MARK}" for name in names}
        return {
            "user.id": f"user-{_USER_MARK}",
            "organization.id": f"org-{_ORGANIZATION_MARK}",
            "session.id": _SESSION_MARK,
        }

    def _span(self, name: str, kind: Span.SpanKind.ValueType, values: dict[str, Value]) -> Sample:
        span = Span(
            trace_id=b"t" * 16,
            span_id=b"s" * 8,
            parent_span_id=self._dice.randbytes(8),
            name=name,
            kind=kind,
            start_time_unix_nano=_START_MARK,
            end_time_unix_nano=_END_MARK,
            attributes=attributes_of(values),
            flags=257,
        )
        duration_ns = int(self._dice.lognormvariate(0, 0.7) * 20e6)
        return Sample(span.SerializeToString(), duration_ns)


class Body:
    """One request, to be sent any number of times and each time with spans that nobody has seen."""

    def __init__(self, groups: Sequence[tuple[bytes, Sequence[Sample]]], *, spans_of_a_trace: int) -> None:
        """Groups of (resource, spans)."""
        raw, samples_at = _joined(groups)
        samples = [sample for _, group in groups for sample in group]
        self.spans = len(samples)
        self._bytes = np.frombuffer(raw, np.uint8).copy()
        self._trace_of = np.arange(self.spans) // spans_of_a_trace
        self._traces = int(self._trace_of[-1]) + 1
        self._durations_ns = np.array([sample.duration_ns for sample in samples], np.uint64)
        numbers = _marked(samples, samples_at, _NUMBER_MARK)
        self._numbers = len(numbers)
        users = _marked(samples, samples_at, _USER_MARK)
        self._people = len(users)
        starts = np.array(samples_at, np.int64)
        self._places = np.concatenate(
            [
                _places(starts + 2, 16),  # 0A 10 and the trace id open a span, 12 08 and the span id follow
                _places(starts + 20, 8),
                _places(starts + _offsets(samples, _START_MARK), 8),
                _places(starts + _offsets(samples, _END_MARK), 8),
                _places(numbers, DIGITS),
                _places(users, len(_USER_MARK)),
                _places(_marked(samples, samples_at, _ORGANIZATION_MARK), len(_ORGANIZATION_MARK)),
                _places(_marked(samples, samples_at, _SESSION_MARK), len(_SESSION_MARK)),
            ]
        )
        self._new_places = _places(_all_marked(samples, samples_at, _NEW_MARK), len(_NEW_MARK))

    def fresh(self, dice: np.random.Generator, now_ns: int) -> bytes:
        """The request with new ids, spans that start now, other people, and other numbers in the paths."""
        random_ = np.frombuffer(dice.bytes(16 * self._traces + 8 * self.spans + DIGITS * self._numbers), np.uint8)
        trace_ids, span_ids, digits = np.split(random_, (16 * self._traces, 16 * self._traces + 8 * self.spans))
        starts = np.full(self.spans, now_ns, np.uint64)
        # Few people do much and many a little; each belongs to one organization and has a few sessions.
        people = (USERS * dice.random(self._people) ** 2).astype(np.int64)
        sessions = people * SESSIONS_OF_A_USER + dice.integers(0, SESSIONS_OF_A_USER, self._people)
        self._bytes[self._places] = np.concatenate(
            [
                trace_ids.reshape(-1, 16)[self._trace_of].ravel(),
                span_ids,
                starts.view(np.uint8),
                (starts + self._durations_ns).view(np.uint8),
                digits % 10 + ord("0"),
                _USER_DIGITS[people].ravel(),
                _ORGANIZATION_DIGITS[people % ORGANIZATIONS].ravel(),
                _SESSIONS[sessions].ravel(),
            ]
        )
        self._bytes[self._new_places] = _NEW_LETTERS[np.frombuffer(dice.bytes(len(self._new_places)), np.uint8) & 15]
        return self._bytes.tobytes()


def _places(starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return (starts[:, None] + np.arange(length)).ravel()


def _marked(samples: Sequence[Sample], samples_at: Sequence[int], mark: str) -> NDArray[np.int64]:
    """Where the mark stands in the request, for those spans that have it."""
    found = [
        at + offset
        for at, sample in zip(samples_at, samples, strict=True)
        if (offset := sample.raw.find(mark.encode())) >= 0
    ]
    return np.array(found, np.int64)


def _all_marked(samples: Sequence[Sample], samples_at: Sequence[int], mark: str) -> NDArray[np.int64]:
    """Where the mark stands in the request, as often as a span has it."""
    found = [
        at + match.start()
        for at, sample in zip(samples_at, samples, strict=True)
        for match in re.finditer(re.escape(mark).encode(), sample.raw)
    ]
    return np.array(found, np.int64)


def _offsets(samples: Sequence[Sample], mark: int) -> NDArray[np.int64]:
    return np.array([sample.raw.index(mark.to_bytes(8, "little")) for sample in samples], np.int64)


@cache
def bodies(mix: Mix, spans: int) -> list[Body]:
    """Requests of so many spans, cut from one corpus: to be sent one after the other, and around again."""
    corpus = _corpus(mix)
    of_a_trace = SPANS_OF_A_TRACE if mix == "traces" else 1
    made = []
    for number in range(min(BODIES_MAX, len(corpus) // spans)):
        chosen = corpus[number * spans :][:spans]
        groups = [
            (_resource(number + at), chosen[at : at + SPANS_OF_A_RESOURCE])
            for at in range(0, spans, SPANS_OF_A_RESOURCE)
        ]
        made.append(Body(groups, spans_of_a_trace=of_a_trace))
    return made


@cache
def _corpus(mix: Mix) -> list[Sample]:
    sampler, new = _Sampler(SEED), _Sampler(SEED, is_new=True)
    makers: dict[Mix, Callable[[int], Sample]] = {
        "events": lambda _: sampler.event(),
        "new": lambda _: new.event(),
        "endpoints": lambda _: sampler.endpoint(),
        "traces": lambda number: sampler.other() if number % SPANS_OF_A_TRACE else sampler.event(),
    }
    return [makers[mix](number) for number in range(SPANS_OF_A_CORPUS)]


@cache
def _resource(number: int) -> bytes:
    service = _SERVICES[number % len(_SERVICES)]
    values: dict[str, Value] = {
        "service.name": service,
        "service.version": "2.14.1",
        "service.namespace": "shop",
        "service.instance.id": f"{service}-7c9d4b6f5-{number % 3}",
        "deployment.environment.name": "production",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": "1.38.0",
        "host.name": f"node-{number % 12}",
        "k8s.pod.name": f"{service}-7c9d4b6f5-{number % 3}",
    }
    return Resource(attributes=attributes_of(values)).SerializeToString()


_SCOPE = InstrumentationScope(name="opentelemetry.instrumentation.asgi", version="0.59b0").SerializeToString()


def _joined(groups: Sequence[tuple[bytes, Sequence[Sample]]]) -> tuple[bytes, list[int]]:
    """An ExportTraceServiceRequest, and where in it each span's own bytes begin."""
    body = bytearray()
    places = []
    for resource, samples in groups:
        spans = [_field_head(2, len(sample.raw)) + sample.raw for sample in samples]
        scope_spans = _field_head(1, len(_SCOPE)) + _SCOPE
        spans_bytes = len(scope_spans) + sum(map(len, spans))
        group_head = _field_head(1, len(resource)) + resource + _field_head(2, spans_bytes)
        body += _field_head(1, len(group_head) + spans_bytes) + group_head + scope_spans
        for span, sample in zip(spans, samples, strict=True):
            body += span
            places.append(len(body) - len(sample.raw))
    return bytes(body), places


def _field_head(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    head = bytearray([number << 3 | 2])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)
