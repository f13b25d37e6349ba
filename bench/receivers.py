"""requests -> acknowledged spans: ours beside the textbook's and rotel, on one Kafka, in turns."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import numpy as np
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.load import Command, Sent, call_of
from bench.report import BROKER, COLLECTOR, OURS, ROTEL, TEXTBOOK, Goal, Key, Report
from bench.servers import Servers, Started, cpu_s, forget_peak, json_of, peak_mib, resident_mib
from bench.traffic import Mix, bodies
from deploy.local.server import Server

SUITE = "receiver"
LATENCY = "latency at half load"
WARM_UP_S = 2.0  # then users and routes are known; of a hundred spans four still bring a new session
LATENCY_S = 2.0
SPANS_IN_FLIGHT = 16_384  # so that large requests are bounded by their spans and small ones by the 16 callers


@dataclass(frozen=True, slots=True)
class Case:
    mix: Mix
    spans: int
    is_gzipped: bool = False
    is_http: bool = False  # ours alone

    @property
    def name(self) -> str:
        share = {"traces": "10 % events", "new": "100 % events, every value new"}.get(self.mix, "100 % events")
        spans = "1 span" if self.spans == 1 else f"{self.spans:,} spans"
        return f"{spans}, {share}" + (", gzip" if self.is_gzipped else "") + (", HTTP" if self.is_http else "")

    @property
    def callers(self) -> int:
        return max(2, min(16, SPANS_IN_FLIGHT // self.spans))


MAIN, NEW, MOSTLY_OTHERS = Case("events", 512), Case("new", 512), Case("traces", 512)
ONE, MAIN_HTTP, ONE_HTTP = Case("events", 1), Case("events", 512, is_http=True), Case("events", 1, is_http=True)
QUICK = (MAIN, NEW, MOSTLY_OTHERS, MAIN_HTTP, ONE, ONE_HTTP)
FULL = (
    *(Case(mix, spans) for mix in ("events", "new", "traces") for spans in (512, 1, 64, 8192)),
    Case("events", 512, is_gzipped=True),
    Case("traces", 512, is_gzipped=True),
    MAIN_HTTP,
    ONE_HTTP,
)


def _key(case: Case, subject: str, metric: str) -> Key:
    return Key(SUITE, case.name, subject, metric)


def _goal(text: str, case: Case, metric: str, peer: str, bound: float, *, is_at_least: bool = False) -> Goal:
    return Goal(text, _key(case, OURS, metric), bound, is_at_least=is_at_least, against=_key(case, peer, metric))


GOALS = (
    _goal("receiver, 100 % events: spans/s, ours / textbook", MAIN, "spans/s", TEXTBOOK, 7, is_at_least=True),
    _goal("receiver, 100 % events: CPU, ours / textbook", MAIN, "us/span", TEXTBOOK, 0.12),
    _goal("receiver, 100 % events: CPU, ours / rotel", MAIN, "us/span", ROTEL, 0.5),
    _goal("receiver, every value new: spans/s, ours / textbook", NEW, "spans/s", TEXTBOOK, 5, is_at_least=True),
    _goal("receiver, every value new: CPU, ours / textbook", NEW, "us/span", TEXTBOOK, 0.15),
    Goal(
        "receiver, CPU: every value new / usual values",
        _key(NEW, OURS, "us/span"),
        1.3,
        against=_key(MAIN, OURS, "us/span"),
    ),
    _goal("receiver, 10 % events: CPU, ours / rotel", MOSTLY_OTHERS, "us/span", ROTEL, 0.65),
    _goal("receiver, 100 % events: CPU, ours / Collector", MAIN, "us/span", COLLECTOR, 1),
    _goal("receiver, one span: CPU, ours / Collector", ONE, "us/span", COLLECTOR, 1),
    Goal(
        "receiver, 512 spans: CPU, HTTP / gRPC",
        _key(MAIN_HTTP, OURS, "us/span"),
        1.0,
        against=_key(MAIN, OURS, "us/span"),
    ),
    Goal(
        "receiver, one span: CPU, HTTP / gRPC", _key(ONE_HTTP, OURS, "us/span"), 0.5, against=_key(ONE, OURS, "us/span")
    ),
    Goal(
        "receiver, half load: p99 over the broker's own, ms",
        Key(LATENCY, MAIN.name, OURS, "p99 ms"),
        100,
        against=Key(LATENCY, MAIN.name, BROKER, "p99 ms"),
        relation="difference",
    ),
    Goal("receiver at rest, MiB", Key("memory", "receiver at rest", OURS, "MiB"), 150),
)


class Peer:
    """One receiver that runs, with the topic that it alone writes."""

    def __init__(self, name: str, servers: Servers, process: Started, topic: str) -> None:
        self.name = name
        self.topic = topic
        self._servers = servers
        self._process = process

    @property
    def target(self) -> str:
        return self._process.target

    @property
    def pid(self) -> int:
        return self._process.pid

    async def measure(self, case: Case, seconds: float) -> dict[str, float]:
        """Full load for so long; CPU and rate until the last record has landed in the topic."""
        topics = self._servers.topics
        since = await topics.ends(self.topic)
        forget_peak(self.pid)
        cpu_before_s = cpu_s(self.pid)
        sent = await self.load(case, seconds=seconds)
        answered_at = time.monotonic()
        used_s = cpu_s(self.pid) - cpu_before_s
        spans, elapsed_s, lost = sent.acknowledged_spans, sent.seconds, 0
        if self.name == COLLECTOR:
            lost = spans - sum([_spans_of(record.value) for record in await topics.records(self.topic, since)])
        elif self.name == ROTEL:  # it answers before the broker does: what counts is what arrives
            elapsed_s += max(0.0, await topics.quiet(self.topic) - answered_at)
            used_s = cpu_s(self.pid) - cpu_before_s
            spans = sum(_spans_of(record.value) for record in await topics.records(self.topic, since))
            lost = sent.acknowledged_spans - spans
        elif case.mix in ("events", "new"):  # a record a span; more when one was not acknowledged in time
            lost = spans - sum((await topics.ends(self.topic)).values()) + sum(since.values())
        return {
            "spans_per_s": spans / elapsed_s,
            "us_per_span": used_s / max(1, spans) * 1e6,
            "p50_ms": sent.p50_ms,
            "p99_ms": sent.p99_ms,
            "peak_MiB": peak_mib(self.pid),
            "requests_refused": sum(sent.failed.values()),
            "spans_lost": lost,
            "sender_us_per_span": sent.sender_cpu_s / max(1, sent.acknowledged_spans) * 1e6,
        }

    async def load(self, case: Case, **more: float | str | None) -> Sent:
        command = Command(
            self._process.http_target if case.is_http else self.target,
            case.mix,
            case.spans,
            callers=case.callers,
            is_gzipped=case.is_gzipped,
            is_http=case.is_http,
            **more,  # type: ignore[arg-type]
        )
        return await self._servers.load(command)


def _spans_of(raw: bytes) -> int:
    request = ExportTraceServiceRequest.FromString(raw)
    return sum(len(scope.spans) for group in request.resource_spans for scope in group.scope_spans)


async def measure(
    servers: Servers, report: Report, *, is_quick: bool, repetitions: int, collector: Path | None
) -> None:
    """Every case, peer by peer in turns, so that all meet the same machine."""
    cases = QUICK if is_quick else FULL
    seconds = 0.5 if is_quick else 1.0  # not less: rotel's last batch comes 0.3 s late, and counts until then
    report.aim(*GOALS)
    async with AsyncExitStack() as stack:
        make: dict[str, Callable[[str], Server]] = {
            OURS: servers.receiver,
            TEXTBOOK: servers.textbook_receiver,
            ROTEL: servers.rotel,
        }
        if collector is not None:
            make[COLLECTOR] = partial(servers.collector, collector)
        peers = [await _started(servers, report, stack, name, started) for name, started in make.items()]
        await _compare_records(servers, report, *peers[:2])
        for peer in peers:
            await peer.load(MAIN, seconds=WARM_UP_S / 2 if is_quick else WARM_UP_S)
        for case in cases:
            report.say(f"receiver: {case.name}")
            for turn in range(repetitions):
                for peer in _rotated([peers[0]] if case.is_http else peers, turn):
                    report.add(SUITE, case.name, peer.name, **await peer.measure(case, seconds))
        for case in () if is_quick else (MAIN, MOSTLY_OTHERS):
            await _measure_latency(servers, report, case, peers, repetitions=repetitions)


async def _started(
    servers: Servers, report: Report, stack: AsyncExitStack, name: str, make: Callable[[str], Server]
) -> Peer:
    topic = await servers.topics.create(name)
    process = await stack.enter_async_context(servers.running(make(topic)))
    report.add("memory", "receiver at rest", name, MiB=resident_mib(process.pid))
    report.add("start", "receiver to ready", name, s=process.seconds)
    return Peer(name, servers, process, topic)


async def _measure_latency(
    servers: Servers, report: Report, case: Case, peers: Sequence[Peer], *, repetitions: int
) -> None:
    """Each at half of its own full rate, by the clock, beside a bare producer's question to the same broker."""
    report.say(f"receiver: latency, {case.name}")
    probe_topic = await servers.topics.create("probe", partitions=1)
    for turn in range(repetitions):
        for peer in _rotated(peers[:2], turn):  # rotel's answer waits for no broker
            sent = await peer.load(
                case,
                seconds=LATENCY_S,
                spans_per_second=report.median(_key(case, peer.name, "spans/s")) / 2,
                probe_brokers=servers.kafka.bootstrap_servers,
                probe_topic=probe_topic,
            )
            report.add(LATENCY, case.name, peer.name, p50_ms=sent.p50_ms, p99_ms=sent.p99_ms)
            if peer.name == OURS:
                report.add(LATENCY, case.name, BROKER, p50_ms=sent.broker_p50_ms, p99_ms=sent.broker_p99_ms)


async def _compare_records(servers: Servers, report: Report, *peers: Peer) -> None:
    """Fairness: the same request must become the same records."""
    body = bodies(MAIN.mix, MAIN.spans)[0].fresh(np.random.default_rng(), time.time_ns())
    made = []
    for peer in peers:
        since = await servers.topics.ends(peer.topic)
        async with grpc.aio.insecure_channel(peer.target) as channel:
            await call_of(channel)(body, timeout=10, wait_for_ready=True)
        records = await servers.topics.records(peer.topic, since)
        made.append({record.key: json_of(record) for record in records})
    differing = sum(made[0].get(key) != made[1].get(key) for key in made[0].keys() | made[1].keys())
    report.remark(f"records of one request that differ between ours and the textbook's: {differing} of {len(made[0])}")


def _rotated(peers: Sequence[Peer], turn: int) -> Iterator[Peer]:
    """A turn's order: none always comes first."""
    return (peers[(turn + at) % len(peers)] for at in range(len(peers)))
