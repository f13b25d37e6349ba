"""Whoever reaches the port, without a key, beside an honest neighbour: the neighbour is served, memory is bounded.

The neighbour is a process of its own that makes a call of five events every 50 ms.
"""

import asyncio
import contextlib
import gzip
import resource
import signal
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.kafka import KafkaBroker
from receiver.serve.transport.connections.listener import CONNECTION_BYTES
from support import http2
from support.http2 import body_frames, connected, frame, grpc_frame, hello, open_call
from support.neighbour import beside
from support.otlp import empty_spans, features, request
from support.receiver import AS_SHIPPED, Receiver, export, until

MEBIBYTE = 1024 * 1024
SECONDS = 6.0
OK_SHARE_MIN = 0.95
P99_S_MAX = 1.0
STOP_S_MAX = 8.0
GROWTH_BYTES_MAX = 96 * MEBIBYTE
NO_WINDOW = struct.pack(">HI", 4, 0)  # SETTINGS_INITIAL_WINDOW_SIZE = 0
WATCH = "/grpc.health.v1.Health/Watch"

Flood = Callable[[int], Awaitable[None]]


@asynccontextmanager
async def started(kafka: KafkaBroker, folder: Path, **settings: Any) -> AsyncIterator[Receiver]:
    receiver = Receiver(kafka.bootstrap_servers, folder, **{**AS_SHIPPED, **settings}).start()
    try:
        await receiver.ready()
        yield receiver
    finally:
        receiver.kill()


async def over_and_over(send: Callable[[], bytes], port: int, *, every_s: float = 0.0, reads: bool = True) -> None:
    """These bytes over one connection after another, until cancelled."""
    while True:
        with contextlib.suppress(OSError):
            async with connected(port) as (reader, writer):
                writer.write(send())
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        while reads and await reader.read(65_536):
                            pass
        await asyncio.sleep(every_s)


async def held(count: int, send: Callable[[], bytes], port: int) -> None:
    """So many connections that send these bytes, never read, and are opened anew when they are ended."""

    async def hold() -> None:
        while True:
            with contextlib.suppress(OSError):
                async with connected(port) as (reader, writer):
                    writer.write(send())
                    while await reader.read(65_536):
                        pass
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(hold())
            if number % 50 == 0:
                await asyncio.sleep(0.01)


def calls(count: int, body: bytes = b"", **changed: Any) -> bytes:
    """Calls that go no further."""
    opened = (
        open_call(n, **changed) + (frame(http2.DATA, body, stream=n) if body else b"") for n in range(1, 2 * count, 2)
    )
    return b"".join(opened)


def reset_calls(count: int) -> bytes:
    return b"".join(
        open_call(n) + frame(http2.RST_STREAM, struct.pack(">I", 8), stream=n) for n in range(1, 2 * count, 2)
    )


EMPTY_GROUPS = gzip.compress(b"\x0a\x04\x12\x02\x12\x00" * 99_999)
MILLION_SPANS = gzip.compress(empty_spans(1_000_000))


async def zipped(port: int, packed: bytes, *, every_s: float) -> None:
    """Complete requests over one connection, one after another without waiting for replies."""
    while True:
        with contextlib.suppress(OSError):
            async with connected(port) as (reader, writer):
                writer.write(hello())
                for number in range(1, 400, 2):
                    writer.write(
                        open_call(number, grpc_encoding="gzip") + body_frames(grpc_frame(packed, flag=1), number)
                    )
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(every_s):
                            while await reader.read(65_536):
                                pass


@dataclass(frozen=True)
class Case:
    name: str
    flood: Flood
    growth_bytes_max: int = GROWTH_BYTES_MAX
    is_http: bool = False  # at that port; the neighbour always calls by gRPC
    ok_share_min: float = OK_SHARE_MIN


CASES = [
    Case(
        "paths that are no UTF-8",
        lambda port: over_and_over(lambda: hello() + calls(50, p_path="/\xff"), port, every_s=0.01),
    ),
    Case("one connection with a thousand streams", lambda port: over_and_over(lambda: hello() + calls(1000), port)),
    Case("10 connections with 100 calls without a body", lambda port: held(10, lambda: hello() + calls(100), port)),
    Case("7 bodies that stall", lambda port: held(7, lambda: hello() + calls(1, b"\0\0\x40\0\0" + bytes(9000)), port)),
    Case(
        "300 bodies that stall", lambda port: held(300, lambda: hello() + calls(1, b"\0\0\x40\0\0" + bytes(9000)), port)
    ),
    Case("1500 connections without a byte", lambda port: held(1500, lambda: b"", port)),
    Case("1500 connections with half a preface", lambda port: held(1500, lambda: http2.PREFACE[:10], port)),
    Case("pings", lambda port: over_and_over(lambda: hello() + frame(http2.PING, bytes(8)) * 20_000, port)),
    Case(
        "pings whose answers nobody reads",
        lambda port: over_and_over(
            lambda: hello() + frame(http2.PING, bytes(8)) * 20_000, port, reads=False, every_s=0.02
        ),
    ),
    Case("settings", lambda port: over_and_over(lambda: hello() + frame(http2.SETTINGS) * 20_000, port)),
    Case("calls that are reset at once", lambda port: over_and_over(lambda: hello() + reset_calls(5_000), port)),
    Case(
        "99,999 groups in 914 bytes",
        lambda port: zipped(port, EMPTY_GROUPS, every_s=0.05),
        growth_bytes_max=256 * MEBIBYTE,
    ),
    Case("a million empty spans in 2 kB", lambda port: zipped(port, MILLION_SPANS, every_s=0.05)),
    Case(
        "300 watchers without a window",
        lambda port: held(3, lambda: hello(NO_WINDOW) + calls(100, b"\0\0\0\0\0", p_path=WATCH), port),
    ),
]


def http1(*lines: str, body: bytes = b"", size: int | None = None) -> bytes:
    length = len(body) if size is None else size
    head = ["POST /v1/traces HTTP/1.1", "Host: x", f"Content-Length: {length}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def zipped_http(body: bytes, kind: str = "x-protobuf") -> bytes:
    return http1(f"Content-Type: application/{kind}", "Content-Encoding: gzip", body=gzip.compress(body))


PROTOBUF = "Content-Type: application/x-protobuf"
ARRAYS = zipped_http(b'{"a":[' + b"[]," * 390_000 + b"[]]}", "json")
JSON_SPANS = zipped_http(b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 99_000 + b"{}]}]}]}", "json")
BOMB = zipped_http(bytes(200 * MEBIBYTE))
GROUPS_HTTP = zipped_http(b"\x0a\x04\x12\x02\x12\x00" * 99_999)

CASES += [
    Case(
        "HTTP: 300 bodies that stall",
        lambda port: held(300, lambda: http1(PROTOBUF, body=bytes(9000), size=4 * MEBIBYTE), port),
        is_http=True,
    ),
    Case("HTTP: 1500 connections without a byte", lambda port: held(1500, lambda: b"", port), is_http=True),
    Case("HTTP: 1500 half heads", lambda port: held(1500, lambda: b"POST /v1/traces HTTP/1.1\r\n", port), is_http=True),
    Case(
        "HTTP: headers of megabytes",
        lambda port: held(50, lambda: b"POST / HTTP/1.1\r\n" + (b"x: " + b"y" * 65_000 + b"\r\n") * 98, port),
        is_http=True,
    ),
    Case(
        "HTTP: bodies of 60 MiB that are never sent",
        lambda port: held(200, lambda: http1(PROTOBUF, body=bytes(100_000), size=60 * MEBIBYTE), port),
        is_http=True,
    ),
    Case(
        "HTTP: bombs of 200 MiB",
        lambda port: over_and_over(lambda: BOMB, port, every_s=0.1),
        128 * MEBIBYTE,
        is_http=True,
    ),
    Case(
        "HTTP: JSON of arrays",
        lambda port: over_and_over(lambda: ARRAYS, port, every_s=0.1),
        192 * MEBIBYTE,
        is_http=True,
    ),
    Case(
        "HTTP: 99,000 empty spans in JSON",
        lambda port: over_and_over(lambda: JSON_SPANS, port, every_s=0.1),
        192 * MEBIBYTE,
        is_http=True,
    ),
    Case(
        "HTTP: 99,999 groups",
        lambda port: over_and_over(lambda: GROUPS_HTTP, port, every_s=0.05),
        256 * MEBIBYTE,
        is_http=True,
    ),
    Case(
        "HTTP: pipelined requests nobody waits for",
        lambda port: over_and_over(lambda: http1(PROTOBUF) * 2_000, port, reads=False, every_s=0.02),
        is_http=True,
    ),
]


# Of these another one is much like it, and runs each time.
LONG = {
    "10 connections with 100 calls without a body",
    "7 bodies that stall",
    "1500 connections with half a preface",
    "pings",
    "settings",
    "a million empty spans in 2 kB",
    "HTTP: 300 bodies that stall",
    "HTTP: 1500 connections without a byte",
    "HTTP: 1500 half heads",
    "HTTP: bodies of 60 MiB that are never sent",
    "HTTP: JSON of arrays",
    "HTTP: 99,999 groups",
}
assert not LONG - {case.name for case in CASES}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.long] if case.name in LONG else []) for case in CASES],
    ids=lambda case: case.name.replace(" ", "-").replace(":", ""),
)
async def test_a_neighbour_is_served_beside_a_flood(kafka: KafkaBroker, tmp_path: Path, case: Case) -> None:
    """New connections too, within 3 s; and a stop ends below 8 s while the flood goes on."""
    async with started(kafka, tmp_path) as receiver:
        await check(receiver, case, SECONDS)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES[:1] + CASES[7:8], ids=["paths", "pings"])
async def test_a_neighbour_is_served_beside_a_minute_of_packets(kafka: KafkaBroker, tmp_path: Path, case: Case) -> None:
    """What adds up shows only after a while."""
    async with started(kafka, tmp_path) as receiver:
        await check(receiver, case, 60.0)


@pytest.mark.long
async def test_a_neighbour_is_served_beside_ten_thousand_connections(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Browsers keep theirs open. As many as the limit of open files leaves room for."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    count = min(10_000, (files - 512) // 2)
    kept = Case(
        "connections that have asked once",
        lambda port: held(count, lambda: http1(PROTOBUF), port),
        growth_bytes_max=count * CONNECTION_BYTES + GROWTH_BYTES_MAX,
        is_http=True,
    )
    async with started(kafka, tmp_path, MAX_CONNECTIONS=count) as receiver:

        async def are_open() -> bool:
            return await receiver.metric("receiver_connections", transport="http") >= 0.95 * count

        await check(receiver, kept, SECONDS, are_there=lambda: until(are_open, 120, f"{count} connections"))


async def check(
    receiver: Receiver, case: Case, seconds: float, *, are_there: Callable[[], Awaitable[object]] | None = None
) -> None:
    """The neighbour calls for so long, once the flood is there."""
    async with receiver.channel() as channel:
        for _ in range(20):
            assert (await export(channel, request(features(200)))).code == "OK"
    before = receiver.resident_bytes()
    flood = asyncio.ensure_future(case.flood(receiver.http_port if case.is_http else receiver.port))
    if are_there is not None:
        await are_there()
    with beside(receiver.port) as neighbour:
        await asyncio.wait({flood}, timeout=seconds)
        growth = receiver.resident_bytes() - before
    service = neighbour.service
    told = (case.name, service, growth // MEBIBYTE)
    assert not flood.done(), flood
    stopped_at = time.monotonic()
    assert await receiver.stop() == 0
    stop_s = time.monotonic() - stopped_at
    flood.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await flood
    assert service.ok_share >= case.ok_share_min, told
    assert service.p99_s < P99_S_MAX, told
    assert set(service.newcomers) == {"OK"}, told
    assert growth < case.growth_bytes_max, told
    assert stop_s < STOP_S_MAX, stop_s
    assert not receiver.log_lines("call_failed") + receiver.log_lines("connection_failed"), told


async def test_a_watcher_that_reads_nothing_freezes_neither_health_nor_gauges(
    kafka: KafkaBroker, tmp_path: Path
) -> None:
    """A health service that waits for one watcher tells all others what was true before."""
    async with (
        started(kafka, tmp_path) as receiver,
        connected(receiver.port) as (_, writer),
        receiver.channel() as channel,
    ):
        writer.write(hello(NO_WINDOW) + calls(100, b"\0\0\0\0\0", p_path=WATCH))
        await writer.drain()
        health = health_pb2_grpc.HealthStub(channel)

        async def is_serving() -> bool:
            return bool((await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 1)

        await until(is_serving, 5, "serving")
        seen = health.Watch(health_pb2.HealthCheckRequest())
        assert isinstance(seen, grpc.aio.UnaryStreamCall)
        assert (await seen.read()).status == 1
        stopped_at = time.monotonic()
        receiver.signal(signal.SIGTERM)
        assert (await asyncio.wait_for(seen.read(), 3)).status == 2
        assert await receiver.ended(STOP_S_MAX) == 0
        assert time.monotonic() - stopped_at < STOP_S_MAX
