"""request -> reply: Export, and the one table of what is answered when."""

import asyncio
import contextlib
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTracePartialSuccess as Partial
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse as Response

from receiver import metrics
from receiver.decode.spans import MalformedRequest, ResourceSpans, TooManySpans, read_request
from receiver.publish.publisher import Publisher
from receiver.serve.auth import Keys
from receiver.serve.budget import Budget, BudgetFull, Reads, SenderStalled
from receiver.serve.course import Course
from receiver.settings import ReceiverSettings
from receiver.translate.outcome import Ignored, Rejected
from receiver.translate.records import Answer, Records
from shared.errors import BrokerUnavailable, Permanent, Transient
from shared.logs import error_facts
from shared.wire import Record

log = structlog.get_logger(__name__)

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
EXPORT = f"/{SERVICE}/Export"

# What a request holds at most for each byte of its body, until its reply: the body, protobuf's copy, and the spans cut
# out of it; its records are counted as they are made. bench/receiver_memory.py measures it.
HELD_PER_BODY_BYTE = 3
BUDGET_WAIT_S = 1.0
REPLY_MARGIN_S = 0.3  # so that our reply and not the client's own deadline is what the client sees
CANCEL_WITHIN_S = 0.05
SLICE_S = 0.005  # what any request may wait for in each round
SPANS_SIFTED = 512  # at once: below a millisecond
MIDDLING_SLICES = 10  # 50 ms, or about two thousand events
RETRY_AFTER_S = (1.0, 30.0)  # bounds; the Collector gives up when a delay leads past its 300 s

Context = grpc.aio.ServicerContext[Any, Any]


class KeyRefused(Permanent):
    """The call shows no key of ours."""


class NoBody(Permanent):
    """The call ended without a request."""


class Draining(Transient):
    """The process is about to stop."""


REPLIES: dict[type[Exception], tuple[grpc.StatusCode, str, str]] = {
    # outcome: code, text, cause in receiver_refusals_total
    KeyRefused: (grpc.StatusCode.UNAUTHENTICATED, "API key missing or wrong", ""),
    NoBody: (grpc.StatusCode.INVALID_ARGUMENT, "no request was sent", ""),
    MalformedRequest: (grpc.StatusCode.INVALID_ARGUMENT, "not an ExportTraceServiceRequest", ""),
    TooManySpans: (grpc.StatusCode.INVALID_ARGUMENT, "more spans than MAX_SPANS_PER_REQUEST", ""),
    SenderStalled: (grpc.StatusCode.UNAVAILABLE, "the request arrived too slowly", "arriving"),
    BudgetFull: (grpc.StatusCode.UNAVAILABLE, "too much in flight", "budget"),
    BrokerUnavailable: (grpc.StatusCode.UNAVAILABLE, "the broker did not acknowledge", "broker"),
    TimeoutError: (grpc.StatusCode.UNAVAILABLE, "no time left", "deadline"),
    Draining: (grpc.StatusCode.UNAVAILABLE, "stopping", "draining"),
}
UNEXPECTED = (grpc.StatusCode.UNAVAILABLE, "unexpected error", "unexpected")


class Tally:
    """What became of a request's spans."""

    def __init__(self) -> None:
        self.ignored: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.published: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.batches: set[asyncio.Future[bool]] = set()


class TraceService:
    """OTLP's TraceService, a worker's own."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        keys: Keys,
        reads: Reads,
        budget: Budget,
        records: Records,
        publisher: Publisher,
        begin: Callable[[], Course] = Course,
    ) -> None:
        self._settings = settings
        self._begin = begin
        self._keys = keys
        self._reads = reads
        self._budget = budget
        self._records = records
        self._publisher = publisher
        self._turn = asyncio.Lock()
        self._middling_turn = asyncio.Lock()
        self._long_turn = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._calls = 0
        self._is_draining = False
        self._trouble_since: float | None = None

    async def export(self, _: object, context: Context) -> bytes:
        """Export, as grpc calls it."""
        answer = await self._answer(context)
        if not isinstance(answer, bytes):
            # Raises what keeps this frame alive until garbage is collected, so no body may be in it: 40 refused
            # requests of 10 MiB held 400 MiB.
            await context.abort_with_status(answer)
        return answer

    async def _answer(self, context: Context) -> bytes | grpc.Status:
        """A reply, which means: every in-sync replica has every event of this request. Else a refusal.

        Whatever goes wrong before leaves the client with its spans, and with a code upon which it sends them
        again unless that is of no use. What was published until then is published twice, and stored once.
        """
        started_at = time.monotonic()
        tally = Tally()
        course = self._begin()
        code = "CANCELLED"
        self._enter()
        try:
            async with asyncio.timeout(self._reply_within_s(context)):
                self._admit(context)
                async with self._received(context) as body:  # nothing was read before this line
                    course.read(body)
                    await self._publish(body, tally)
                    course.translated()
                    await self._publisher.acknowledged(tally.batches)
            reply = _success(tally)  # from here on the events are durable, and only this says so
            code = "OK"
            return reply
        except Exception as error:  # noqa: BLE001  the table decides; what is not in it gets an id and a log line
            refusal = self._refusal(error)
            code = refusal.code.name
            return refusal
        finally:
            self._leave(code, started_at, tally)
            course.ended(code, tally)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls, and return when those in flight are answered or the time is over."""
        self._is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    def _reply_within_s(self, context: Context) -> float:
        own_s = self._settings.publish_timeout_ms / 1000
        client_s = context.time_remaining()
        return own_s if client_s is None else max(0.0, min(own_s, client_s - REPLY_MARGIN_S))

    def _admit(self, context: Context) -> None:
        if not self._keys.accept(context.invocation_metadata() or ()):
            raise KeyRefused
        if self._is_draining:
            raise Draining

    @contextlib.asynccontextmanager
    async def _received(self, context: Context) -> AsyncIterator[bytes]:
        """The body, once there is room for it; its bytes are given back at the end of the block."""
        async with self._reads.turn():
            body = await self._reads.read(_body(context))
            held_bytes = HELD_PER_BODY_BYTE * len(body)
            await self._budget.reserve(held_bytes, wait_s=BUDGET_WAIT_S)
        try:
            yield body
        finally:
            self._budget.release(held_bytes)

    async def _publish(self, body: bytes, tally: Tally) -> None:
        """Put every event into a batch. Small requests overtake larger ones, and larger ones go one after another.

        Had they all a share of the loop, all would be late: each answered too late to count, and sent again.
        """
        work = self._work(body, tally)
        if await self._is_done(work, slices=range(1)):
            return
        async with self._middling_turn:
            if await self._is_done(work, slices=range(MIDDLING_SLICES)):
                return
        async with self._long_turn:
            await self._is_done(work, slices=itertools.count())

    async def _is_done(self, work: Iterator[None], *, slices: Iterable[int]) -> bool:
        """Work for so many slices, one of all requests' at a time."""
        for _ in slices:
            async with self._turn:
                if _is_done_after_slice(work):
                    return True
            await asyncio.sleep(0)
        return False

    def _work(self, body: bytes, tally: Tally) -> Iterator[None]:
        """A few spans a step, or one that takes long."""
        received_at_ms = time.time_ns() // 1_000_000
        groups = read_request(body, spans_max=self._settings.max_spans_per_request)
        traces = self._records.traces()
        yield from traces.read(groups)
        for group in groups:
            metrics.spans_received.inc(len(group.spans))
            if not self._settings.telemetry_enabled:
                tally.ignored["telemetry_disabled"] += len(group.spans)
                continue
            for start in range(0, len(group.spans), SPANS_SIFTED):
                part = ResourceSpans(group.resource, group.spans[start : start + SPANS_SIFTED])
                sifted = self._records.sifted(part)
                tally.ignored["not_product_event"] += len(part.spans) - len(sifted.spans)
                for answers in self._records.of(sifted, traces):
                    self._settle(answers, tally, received_at_ms)
                    yield
                yield

    def _settle(self, answers: Sequence[Answer], tally: Tally, received_at_ms: int) -> None:
        records = []
        for answer in answers:
            match answer:
                case Record():
                    records.append(answer)
                case Ignored(reason):
                    tally.ignored[reason] += 1
                case Rejected(reason, fault):
                    tally.rejected[reason] += 1
                    if fault:  # a bug of ours: it costs this span and none of its neighbours
                        tally.faults[fault] += 1
        if records:
            placed = self._publisher.append(records, received_at_ms=received_at_ms)
            tally.batches |= placed.batches
            tally.published.update(placed.tables)
            if placed.too_large:
                tally.rejected["span_too_large"] += placed.too_large

    def _refusal(self, error: Exception) -> grpc.Status:
        known = next((REPLIES[kind] for kind in type(error).__mro__ if kind in REPLIES), None)
        code, text, cause = known or UNEXPECTED
        if known is None:
            error_id = secrets.token_hex(8)
            log.error("request_failed", error_id=error_id, **error_facts(error))
            text = f"{text} {error_id}"
        details = []
        if code is grpc.StatusCode.UNAVAILABLE:
            metrics.refusals.labels(cause).inc()
            details.append(AnyMessage())
            details[0].Pack(RetryInfo(retry_delay=_duration(self._retry_after_s())))
        status: grpc.Status = rpc_status.to_status(Status(code=code.value[0], message=text, details=details))
        return status

    def _retry_after_s(self) -> float:
        """Jittered, and the longer the trouble lasts, the later."""
        now = time.monotonic()
        self._trouble_since = self._trouble_since or now
        first_s, last_s = RETRY_AFTER_S
        return random.uniform(first_s, min(last_s, 2 * first_s + now - self._trouble_since))  # noqa: S311

    def _enter(self) -> None:
        self._calls += 1
        self._idle.clear()

    def _leave(self, code: str, started_at: float, tally: Tally) -> None:
        self._calls -= 1
        if not self._calls:
            self._idle.set()
        for fault, spans in tally.faults.items():
            log.error("spans_untranslatable", fault=fault, spans=spans)
        metrics.requests.labels(code).inc()
        metrics.request_seconds.observe(time.monotonic() - started_at)
        if code == "OK":
            self._trouble_since = None
            for counter, counts in (
                (metrics.spans_ignored, tally.ignored),
                (metrics.spans_rejected, tally.rejected),
                (metrics.events_published, tally.published),
            ):
                for label, count in counts.items():
                    counter.labels(label).inc(count)


async def _body(context: Context) -> bytes:
    """The one request of the call; what comes after it is not looked at, as in any unary call."""
    received = await context.read()
    if received is grpc.aio.EOF:
        # A body over the limit and a caller who left look the same; grpc cancels those calls right afterwards.
        await asyncio.sleep(CANCEL_WITHIN_S)
        raise NoBody
    body: bytes = received
    return body


def _is_done_after_slice(work: Iterator[None]) -> bool:
    ends_at = time.monotonic() + SLICE_S
    return all(time.monotonic() < ends_at for _ in work)


def _success(tally: Tally) -> bytes:
    """Partial success is set only when something was rejected: a client must not send that again."""
    if not tally.rejected:
        return Response().SerializeToString()
    count = tally.rejected.total()
    reasons = ", ".join(f"{reason}={spans}" for reason, spans in tally.rejected.most_common())
    message = f"rejected {count} span{'s' if count > 1 else ''}: {reasons}"
    return Response(partial_success=Partial(rejected_spans=count, error_message=message)).SerializeToString()


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(int(seconds * 1000))
    return duration


class Method(grpc.GenericRpcHandler):
    """Serves Export as a stream of one request: on the wire it is the same, and here the body waits until asked for."""

    def __init__(self, service: TraceService) -> None:
        self._export: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(service.export)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        return self._export if handler_call_details.method == EXPORT else None
