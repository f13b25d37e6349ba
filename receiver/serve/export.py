"""call -> reply: Export, on one screen. Knows neither gRPC nor HTTP."""

import asyncio
import contextlib
import functools
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import structlog
from prometheus_client import Counter as Counted

from receiver import metrics, replies
from receiver.budget import Arrivals, Budget, BudgetFull
from receiver.decode import scan
from receiver.publish.publisher import Publisher
from receiver.replies import Draining, KeyRefused, Reply
from receiver.serve.auth import Keys
from receiver.serve.call import Call
from receiver.serve.observer import Observer
from receiver.serve.turns import Turns
from receiver.serve.unfinished import SLICE_S, Begun, Unfinished, key_of
from receiver.settings import ReceiverSettings
from receiver.translate.engines.engine import Engine, Translation
from shared.errors import BrokerUnavailable
from shared.logs import error_facts

log = structlog.get_logger(__name__)

# What a request holds at most for each byte of its body, until its reply: the body, protobuf's copy, and the spans cut
# out of it; its records are counted as they are made. bench/receiver_memory.py measures it.
HELD_PER_BODY_BYTE = 3  # and no request may hold more for each byte of MAX_REQUEST_BYTES, its records included
SMALL_BODY_BYTES = 4 * 1024  # counted without a turn: that takes at most half a millisecond
HELD_PER_GROUP = 300  # bytes: a group of six on the wire is a tuple, a list and a resource here
BUDGET_WAIT_S = 1.0
CALLS_MAX = 4_000  # open calls of a worker; each holds some 10 KiB besides its body
REPLY_MARGIN_S = 0.3  # our reply comes so long before the client's deadline, so that the client sees it
MIDDLING_SLICES = 10  # 50 ms, or about two thousand events
RETRY_AFTER_S = (1.0, 30.0)  # bounds; the Collector gives up when a delay leads past its 300 s


class Tally:
    """What became of a request's spans."""

    def __init__(self) -> None:
        self.ignored: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.published: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.declined: Counter[str] = Counter()
        self.replaced = 0
        self.spans = 0

    def take(self, translation: Translation) -> None:
        self.ignored, self.rejected = translation.ignored, translation.rejected
        self.faults, self.declined = translation.faults, translation.declined
        self.published = translation.published()
        self.replaced = translation.replaced


@dataclass(slots=True, eq=False)
class _Job:
    """A request that is translated and published."""

    body: bytes
    translation: Translation
    call: Call
    charge: Callable[[int], None]  # what its records hold now
    batches: frozenset[asyncio.Future[bool]] = frozenset()
    is_long: bool = False  # more than a slice: its next attempt goes on from here


class Export:
    """OTLP's Export of traces, a worker's own."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        keys: Keys,
        arrivals: Arrivals,
        budget: Budget,
        turns: Turns,
        engine: Engine,
        publisher: Publisher,
        begin: Callable[[str], Observer] = Observer,
    ) -> None:
        self._settings = settings
        self._begin = begin
        self._keys = keys
        self._arrivals = arrivals
        self._budget = budget
        self._engine = engine
        self._publisher = publisher
        self.unfinished = Unfinished(budget, turns, held_max=HELD_PER_BODY_BYTE * settings.max_request_bytes)
        self._turns = turns
        self._middling_turns = Turns()
        self._long_turns = Turns()
        self._idle = asyncio.Event()
        self._idle.set()
        self.calls = 0
        self._is_draining = False
        self._failing_since: float | None = None

    async def answer(self, call: Call) -> Reply:
        """Answer one call. OK means: every in-sync replica has every event of this request. Any other reply refuses it.

        When something fails before that, the client keeps its spans, and gets a code upon which it sends them again,
        unless that cannot help. Records that were published already are then published twice, and stored once.
        """
        started_at = time.monotonic()
        tally = Tally()
        observer = self._begin(call.transport)
        reply = Reply(replies.CANCELLED, 0)
        self._enter()
        try:
            async with asyncio.timeout(self._reply_within_s(call)):
                self._admit(call)
                async with self._received(call) as (body, begun):  # nothing was read before this line
                    observer.received(body)
                    await self._publish(body, begun, tally, call, observer)
            reply = replies.success(tally.rejected)  # from here on the events are durable, and only this says so
        except Exception as error:  # noqa: BLE001  the table decides; what is not in it gets an id and a log line
            reply = self._refusal(error)
        finally:
            self._leave(reply.code, call.transport, started_at, tally)
            observer.answered(reply.code, tally)
        return reply

    def is_known(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a call has a valid key, or needs none. For calls that are not Export."""
        return self._keys.accept(headers)

    @property
    def remembered_bytes(self) -> int:
        return self._engine.remembered_bytes

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls, and return when those in flight are answered or the time is over."""
        self._is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    def _reply_within_s(self, call: Call) -> float:
        own_s = self._settings.publish_timeout_ms / 1000
        client_s = call.remaining_s()
        return own_s if client_s is None else max(0.0, min(own_s, client_s - REPLY_MARGIN_S))

    def _admit(self, call: Call) -> None:
        if not self._keys.accept(call.headers):
            raise KeyRefused
        if self._is_draining:
            raise Draining
        if self.calls > CALLS_MAX:
            raise BudgetFull("too many calls")

    @contextlib.asynccontextmanager
    async def _received(self, call: Call) -> AsyncIterator[tuple[bytes, Begun | None]]:
        """The body, once there is room for it, and the progress of an earlier attempt with the same bytes.

        The end of the block releases the body's bytes.
        """
        with self._arrivals.arriving(call.peer, call.give_way) as arrival:
            body = await call.read(arrival)
            arrival.is_complete = True
            begun = await self.unfinished.take(body)
            if begun is None:
                groups = scan.groups_in(body) if len(body) <= SMALL_BODY_BYTES else await self._groups_in(body, call)
                held_bytes = HELD_PER_BODY_BYTE * len(body) + HELD_PER_GROUP * groups
                await self._budget.reserve(held_bytes, wait_s=BUDGET_WAIT_S, counted=arrival.bytes)
            else:
                held_bytes = len(body)  # counted until now as unfinished
                self._budget.charge(held_bytes)
        try:
            yield body, begun
        finally:
            self._budget.release(held_bytes)

    async def _groups_in(self, body: bytes, call: Call) -> int:
        async with self._turns.turn(call.peer):
            return scan.groups_in(body)

    async def _publish(self, body: bytes, begun: Begun | None, tally: Tally, call: Call, observer: Observer) -> None:
        """Translate the whole request, then publish it: nothing of it is in a batch before that.

        Returns when every batch is acknowledged.
        """
        received_at_ms = time.time_ns() // 1_000_000
        is_long = begun is not None
        if begun is None:
            async with self._turns.turn(call.peer):
                begun = Begun(self._engine.open(body))
        tally.spans = begun.translation.spans
        if not self._settings.telemetry_enabled:
            tally.ignored["telemetry_disabled"] = tally.spans
            return
        with self._budget.charging() as charge:
            job = _Job(body, begun.translation, call, charge, begun.batches, is_long)
            await self._translate(job)
            tally.take(job.translation)
            if tally.published and not job.batches:
                job.batches = frozenset(self._publisher.append(job.translation, received_at_ms=received_at_ms))
            observer.translated()
            if job.is_long:
                await self._acknowledged(job)
                return
        batches = job.batches
        del job, begun  # the records are in the batches, and count as theirs
        await self._publisher.acknowledged(batches)

    async def _acknowledged(self, job: "_Job") -> None:
        try:
            await self._publisher.acknowledged(job.batches)
        except asyncio.CancelledError:  # they may be acknowledged yet: the next attempt waits for the same ones
            await self._keep(job)
            raise
        except BrokerUnavailable:  # the next attempt publishes again
            job.batches = frozenset()
            await self._keep(job)
            raise

    async def _translate(self, job: "_Job") -> None:
        """Translate a request. Small requests overtake larger ones, and larger ones are translated one after another.

        If all large requests shared the loop, each would be answered too late, and all would be sent again.
        """
        try:
            if await self._is_done(job, slices=range(1)):
                return
            job.is_long = True
            async with self._middling_turns.turn(job.call.peer):
                if await self._is_done(job, slices=range(MIDDLING_SLICES)):
                    return
            async with self._long_turns.turn(job.call.peer):
                await self._is_done(job, slices=itertools.count())
        except asyncio.CancelledError:  # the time is over, or the sender left: it comes again
            if job.is_long:  # or an earlier attempt's work would be lost in the first slice of this one
                await self._keep(job)
            raise

    async def _keep(self, job: "_Job") -> None:
        """Keep the translation, and continue it, for the sender's next attempt."""
        metrics.requests_unfinished.inc()
        self.unfinished.keep(await key_of(job.body), len(job.body), Begun(job.translation, job.batches))

    async def _is_done(self, job: "_Job", *, slices: Iterable[int]) -> bool:
        """Translate for at most so many slices, each in a turn of its own; return whether the translation is done."""
        for _ in slices:
            async with self._turns.turn(job.call.peer):
                is_done = job.translation.step(SLICE_S)
            job.charge(job.translation.held_bytes)
            self.unfinished.check(len(job.body), job.translation)
            if is_done:
                return True
            await asyncio.sleep(0)
        return False

    def _refusal(self, error: Exception) -> Reply:
        told = replies.told_of(error)
        text = told.text if told else replies.UNEXPECTED.text
        if told is None:
            told = replies.UNEXPECTED
            error_id = secrets.token_hex(8)
            log.error("request_failed", error_id=error_id, **error_facts(error))
            text = f"{text} {error_id}"
        if told.is_final:
            metrics.requests_refused.labels(told.cause).inc()
            return Reply(told.code, told.status, text)
        metrics.refusals.labels(told.cause).inc()
        return Reply(told.code, told.status, text, retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> float:
        """Seconds until the sender should try again: jittered, and longer the longer requests have been failing."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        first_s, last_s = RETRY_AFTER_S
        return random.uniform(first_s, min(last_s, 2 * first_s + now - self._failing_since))  # noqa: S311

    def _enter(self) -> None:
        self.calls += 1
        self._idle.clear()

    def _leave(self, code: str, transport: str, started_at: float, tally: Tally) -> None:
        self.calls -= 1
        if not self.calls:
            self._idle.set()
        for fault, spans in tally.faults.items():
            log.error("spans_untranslatable", fault=fault, spans=spans)
        _requests(code, transport).inc()
        metrics.spans_received.inc(tally.spans)
        for reason, spans in tally.declined.items():
            _labelled(metrics.spans_declined, reason).inc(spans)
        _request_seconds(transport).observe(time.monotonic() - started_at)
        if code == replies.OK:
            self._failing_since = None
            metrics.endpoints_replaced.inc(tally.replaced)
            for counter, counts in (
                (metrics.spans_ignored, tally.ignored),
                (metrics.spans_rejected, tally.rejected),
                (metrics.events_published, tally.published),
            ):
                for label, count in counts.items():
                    _labelled(counter, label).inc(count)


# `labels` takes its lock and its time for each call; all sets are closed.
@functools.cache
def _labelled(counter: Counted, label: str) -> Counted:
    return counter.labels(label)


_requests = functools.cache(metrics.requests.labels)
_request_seconds = functools.cache(metrics.request_seconds.labels)
