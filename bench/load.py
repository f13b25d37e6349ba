"""commands on standard input -> load on a receiver -> figures on standard output, one line of JSON each.

A process of its own, and cheap: bodies are built before, and sent and answered as bytes. It lives for the whole run,
so that no measurement waits for its start.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import grpc
import numpy as np
import psutil
import uvloop
from aiokafka import AIOKafkaProducer

from bench.traffic import Body, Mix, bodies

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SUCCESSES = (b"", b"\n\0")  # a Collector sets an empty partial_success
CALL_TIMEOUT_S = 30.0
PROBE_EVERY_S = 0.02
PROBE_BYTES = b"x" * 500


Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Command:
    """What to send. Exactly one of `seconds` and `total_spans` ends it; no new request starts after that.

    Without `spans_per_second` each caller sends its next request upon the answer to its last one. With it requests
    start by the clock, answered or not, and latency counts from when one was due.
    """

    target: str
    mix: Mix
    spans: int
    callers: int = 16
    connections: int = 8
    is_gzipped: bool = False
    is_http: bool = False  # OTLP/HTTP, protobuf; a connection serves one caller at a time
    seconds: float | None = None
    total_spans: int | None = None
    spans_per_second: float | None = None
    probe_brokers: str | None = None  # ask a broker, meanwhile, how long a bare acknowledgement takes
    probe_topic: str = ""


@dataclass(slots=True)
class Sent:
    """What came of a command. Seconds last until the last answer, so all that was sent is accounted for."""

    requests: int = 0
    acknowledged_spans: int = 0
    body_bytes: int = 0
    seconds: float = 0.0
    sender_cpu_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    broker_p50_ms: float = 0.0
    broker_p99_ms: float = 0.0
    failed: dict[str, int] = field(default_factory=dict)


class Load:
    """One command, carried out."""

    def __init__(self, command: Command, calls: list[Call]) -> None:
        self._command = command
        self._calls = calls
        self._dice = np.random.default_rng()  # seeded by the system: no id is ever sent twice
        self._pool = bodies(command.mix, command.spans)
        self._compression = grpc.Compression.Gzip if command.is_gzipped else grpc.Compression.NoCompression
        self._latencies_s: list[float] = []
        self._failed: Counter[str] = Counter()
        self._sent = Sent()

    async def run(self) -> Sent:
        own = psutil.Process()
        started_at, cpu_s = time.monotonic(), _cpu_s(own)
        if self._command.spans_per_second is None:
            turns = self._turns(started_at)
            await asyncio.gather(*(self._call_in_turn(turns, number) for number in range(self._command.callers)))
        else:
            await self._call_by_the_clock(started_at, self._command.spans / self._command.spans_per_second)
        self._sent.seconds = time.monotonic() - started_at
        self._sent.sender_cpu_s = _cpu_s(own) - cpu_s
        self._sent.failed = dict(self._failed)
        self._sent.p50_ms, self._sent.p99_ms = percentiles_ms(self._latencies_s)
        return self._sent

    def _turns(self, started_at: float) -> Iterator[Body]:
        """The requests of all callers, until the time or the spans are over."""
        command, number = self._command, 0
        while True:
            if command.seconds is not None and time.monotonic() - started_at >= command.seconds:
                return
            if command.total_spans is not None and number * command.spans >= command.total_spans:
                return
            yield self._pool[number % len(self._pool)]
            number += 1

    async def _call_in_turn(self, turns: Iterator[Body], caller: int) -> None:
        for body in turns:
            await self._call(body, caller, time.monotonic())

    async def _call_by_the_clock(self, started_at: float, every_s: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, body in enumerate(self._turns(started_at)):
                due_at = started_at + number * every_s
                await asyncio.sleep(max(0.0, due_at - time.monotonic()))
                tasks.create_task(self._call(body, number, due_at))

    async def _call(self, body: Body, caller: int, due_at: float) -> None:
        raw = body.fresh(self._dice, time.time_ns())
        call = self._calls[caller % len(self._calls)]
        self._sent.requests += 1
        try:
            reply: bytes = await call(raw, timeout=CALL_TIMEOUT_S, compression=self._compression)
        except grpc.aio.AioRpcError as error:
            self._failed[error.code().name] += 1
            return
        except HttpRefused as error:
            self._failed[str(error)] += 1
            return
        if reply not in SUCCESSES:  # partial success: some were rejected, and none should be
            self._failed["PARTIAL"] += 1
            return
        self._latencies_s.append(time.monotonic() - due_at)
        self._sent.acknowledged_spans += body.spans
        self._sent.body_bytes += len(raw)


async def carry_out(command: Command) -> Sent:
    async with AsyncExitStack() as stack:
        if command.is_http:
            made = [HttpConnection(command.target) for _ in range(command.callers)]
            calls: list[Any] = [await stack.enter_async_context(each) for each in made]
        else:
            channels = [await stack.enter_async_context(_channel(command.target)) for _ in range(command.connections)]
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
            calls = [call_of(channel) for channel in channels]
        load = Load(command, calls)
        probe = await stack.enter_async_context(_Probe(command)) if command.probe_brokers else None
        sent = await load.run()
        if probe:
            sent.broker_p50_ms, sent.broker_p99_ms = percentiles_ms(probe.latencies_s)
        return sent


class HttpRefused(Exception):  # noqa: N818  what the request is
    """A status other than 200."""


class HttpConnection:
    """POST /v1/traces over one connection, as cheap as a sender can be."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._host, self._port = host, int(port)

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def __call__(self, raw: bytes, *, timeout: float, compression: object) -> bytes:  # noqa: ASYNC109, ARG002
        """The reply's body. Raises HttpRefused."""
        kind = b"host: x\r\ncontent-type: application/x-protobuf\r\n"
        self._writer.write(b"POST /v1/traces HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b" % (kind, len(raw), raw))
        async with asyncio.timeout(timeout):
            told = await self._reader.readuntil(b"\r\n\r\n")
            size = int(told.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await self._reader.readexactly(size)
        if not told.startswith(b"HTTP/1.1 200"):
            raise HttpRefused(told[9:12].decode())
        return body


def call_of(channel: grpc.aio.Channel) -> Call:
    """Export, with request and reply as bytes."""
    call: Call = channel.unary_unary(EXPORT)
    return call


def _channel(target: str) -> grpc.aio.Channel:
    """A connection of its own, as each Collector has one."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    return grpc.aio.insecure_channel(target, options=options)


class _Probe:
    """A bare producer beside the load: how long a broker takes to acknowledge one record on this machine, now."""

    def __init__(self, command: Command) -> None:
        self.latencies_s: list[float] = []
        self._topic = command.probe_topic
        self._producer = AIOKafkaProducer(bootstrap_servers=command.probe_brokers, acks="all", linger_ms=0)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._producer.start()
        await self._producer.send_and_wait(self._topic, PROBE_BYTES)
        self._task = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._producer.stop()

    async def _ask(self) -> None:
        while True:
            started_at = time.monotonic()
            await self._producer.send_and_wait(self._topic, PROBE_BYTES)
            self.latencies_s.append(time.monotonic() - started_at)
            await asyncio.sleep(PROBE_EVERY_S)


def percentiles_ms(latencies_s: list[float]) -> tuple[float, float]:
    """p50 and p99; zeros when there is none."""
    if not latencies_s:
        return 0.0, 0.0
    half, most = np.percentile(latencies_s, [50, 99])
    return float(half) * 1000, float(most) * 1000


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def main() -> None:
    """Until standard input ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        sent = await carry_out(Command(**json.loads(line)))
        print(json.dumps(asdict(sent)), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
