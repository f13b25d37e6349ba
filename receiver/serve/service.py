"""request -> reply: Export, and the one table of what is answered when."""

import asyncio
import contextlib
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
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
from receiver.decode.spans import MalformedRequest, TooManySpans
from receiver.publish.publisher import Publisher
from receiver.serve.auth import Keys
from receiver.serve.budget import Budget, BudgetFull, Reads, SenderStalled
from receiver.serve.course import Course
from receiver.settings import ReceiverSettings
from receiver.translate.engine import Engine, Translation
from shared.errors import BrokerUnavailable, Permanent, Transient
from shared.logs import error_facts

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
        self.declined: Counter[str] = Counter()
        self.spans = 0
        self.batches: set[asyncio.Future[bool]] = set()

    def take(self, translation: Translation) -> None:
        self.ignored, self.rejected = translation.ignored, translation.rejected
        self.faults, self.declined = translation.faults, translation.declined
        self.published = translation.published()


class TraceService:
    """OTLP's TraceService, a worker's own."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        keys: Keys,
        reads: Reads,
        budget: Budget,
        engine: Engine,
        publisher: Publisher,
        begin: Callable[[], Course] = Course,
    ) -> None:
        self._settings = settings
        self._begin = begin
        self._keys = keys
        self._reads = reads
        self._budget = budget
        self._engine = engine
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
        """Translate the whole request, then put its events into batches: nothing of it is published before that."""
        received_at_ms = time.time_ns() // 1_000_000
        translation = self._engine.open(body)
        tally.spans = translation.spans
        if not self._settings.telemetry_enabled:
            tally.ignored["telemetry_disabled"] = translation.spans
            return
        with self._budget.charging() as charge:
            await self._translate(translation, charge)
            tally.take(translation)
            if tally.published:
                tally.batches = self._publisher.append(translation, received_at_ms=received_at_ms)

    async def _translate(self, translation: Translation, charge: Callable[[int], None]) -> None:
        """Small requests overtake larger ones, and larger ones go one after another.

        Had they all a share of the loop, all would be late: each answered too late to count, and sent again.
        """
        if await self._is_done(translation, charge, slices=range(1)):
            return
        async with self._middling_turn:
            if await self._is_done(translation, charge, slices=range(MIDDLING_SLICES)):
                return
        async with self._long_turn:
            await self._is_done(translation, charge, slices=itertools.count())

    async def _is_done(self, translation: Translation, charge: Callable[[int], None], *, slices: Iterable[int]) -> bool:
        """Translate for so many slices, one of all requests' at a time."""
        for _ in slices:
            async with self._turn:
                is_done = translation.step(SLICE_S)
            charge(translation.held_bytes)
            if is_done:
                return True
            await asyncio.sleep(0)
        return False

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
        metrics.spans_received.inc(tally.spans)
        for reason, spans in tally.declined.items():
            metrics.spans_declined.labels(reason).inc(spans)
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
