"""The receiver as a process: how it starts, tells how it is, and stops."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.kafka import KafkaBroker
from deploy.local.server import free_port
from support.otlp import features, request, span
from support.receiver import AS_SHIPPED, ROOT, Receiver, export, records_of, until

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def command(*arguments: str, stdin: bytes = b"", **settings: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "receiver", *arguments],
        input=stdin,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "200", **settings},
        cwd="/tmp",
        capture_output=True,
        timeout=30,
        check=False,
    )


async def status(channel: grpc.aio.Channel, service: str = "") -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return int(answer.status)


async def test_sigterm_under_load_loses_nothing_and_gives_no_wrong_code(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Every deploy does this to every instance."""
    receiver = Receiver(kafka.bootstrap_servers, tmp_path).start()
    accepted: set[bytes] = set()
    codes: Counter[str] = Counter()
    late: list[float | None] = []

    async def send() -> None:
        async with receiver.channel() as channel:
            while receiver.exit_code is None:
                sent = features(50)
                answer = await export(channel, request(sent))
                codes[answer.code] += 1
                if answer.code == "OK":
                    accepted.update(str(feature.id).encode() for feature in sent)
                else:  # as exporters do
                    late.append(answer.retry_s)
                    await asyncio.sleep(answer.retry_s or 1)

    try:
        await receiver.ready()
        senders = [asyncio.create_task(send()) for _ in range(16)]

        async def is_busy() -> bool:
            return codes["OK"] > 100

        await until(is_busy, 20, "load")
        assert await receiver.stop() == 0
        await asyncio.gather(*senders)
        assert set(codes) == {"OK", "UNAVAILABLE"}
        assert accepted <= {record.key for record in await records_of(kafka, receiver.topic)}
        assert any(late), "those refused while it drained were told when to come again"
    finally:
        receiver.kill()


async def test_sigterm_with_a_dead_broker_ends_within_15_s(tmp_path: Path, free_broker: KafkaBroker) -> None:
    """Else the platform kills it, in the middle of whatever it does."""
    receiver = Receiver(free_broker.bootstrap_servers, tmp_path, **AS_SHIPPED).start()
    try:
        await receiver.ready()
        async with receiver.channel() as channel:
            assert (await export(channel, request(features(1)))).code == "OK"
            free_broker.pause()
            calls = [asyncio.create_task(export(channel, request(features(100)))) for _ in range(8)]

            async def are_in_flight() -> bool:
                return await receiver.metric("receiver_inflight_bytes") > 0

            await until(are_in_flight, 5, "calls in flight")
            started_at = time.monotonic()
            receiver.signal(signal.SIGTERM)

            async def is_not_serving() -> bool:
                return await status(channel) == NOT_SERVING

            await until(is_not_serving, 1, "not ready first")
            assert not await receiver.is_ready()
            refused = await export(channel, request(features(1)))
            assert (refused.code, refused.text) == ("UNAVAILABLE", "stopping")
            assert refused.retry_s is not None
            assert {(await call).code for call in calls} == {"UNAVAILABLE"}
            assert await receiver.ended() == 0
            assert time.monotonic() - started_at < 15
    finally:
        free_broker.resume()
        receiver.kill()


@pytest.fixture
def free_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One that may be frozen."""
    with KafkaBroker(tmp_path_factory.mktemp("frozen")) as broker:
        yield broker


async def test_health_follows_readiness(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Load balancers ask over gRPC, containers with the command, Kubernetes over HTTP: all get one answer."""
    lonely, served = Receiver("127.0.0.1:1", tmp_path).start(), Receiver(kafka.bootstrap_servers, tmp_path).start()
    try:
        await served.ready()
        for receiver, expected, code in ((served, SERVING, 0), (lonely, NOT_SERVING, 1)):
            async with receiver.channel() as channel:
                for service in ("", SERVICE):
                    await until(is_status(channel, service, expected), 10, "the health service")
            environment = {"PORT": str(receiver.port), "RECEIVER_METRICS_PORT": str(receiver.metrics_port)}
            assert command("health", **environment).returncode == code
        refused = command("health", "--url", "localhost:9464")
        assert (refused.returncode, b"http" in refused.stderr, b"Traceback" in refused.stderr) == (2, True, False)
        port = served.metrics_port
        assert await served.stop() == 0
        assert command("health", RECEIVER_METRICS_PORT=str(port)).returncode == 1
    finally:
        lonely.kill()
        served.kill()


def is_status(channel: grpc.aio.Channel, service: str, expected: int) -> Callable[[], Awaitable[bool]]:
    async def is_it() -> bool:
        try:
            return await status(channel, service) == expected
        except grpc.aio.AioRpcError:
            return False

    return is_it


async def test_reflection_and_other_methods_are_not_served(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Nothing that nobody needs is open to everybody."""
    receiver = Receiver("127.0.0.1:1", tmp_path).start()
    try:
        async with receiver.channel() as channel:
            await until(is_status(channel, "", NOT_SERVING), 10, "alive")
            for method in (
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
            ):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await channel.unary_unary(method)(b"", timeout=5)
                assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        receiver.kill()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"PORT": "many"}, "PORT"),
        ({"PORT": "99999"}, "PORT"),
        ({"MAX_REQUEST_BYTES": "-1"}, "MAX_REQUEST_BYTES"),
        ({"TLS_CERT_FILE": "/nowhere"}, "TLS_KEY_FILE"),
        ({"TLS_CERT_FILE": "/nowhere", "TLS_KEY_FILE": "/nowhere"}, "TLS_CERT_FILE"),
        ({"ID_HASH_KEY": "short-secret"}, "ID_HASH_KEY"),
        ({"ID_HASHING": "rot13"}, "ID_HASHING"),
        ({"API_KEYS": " , "}, "API_KEYS"),
        ({"API_KEYS": "long-enough,one"}, "API_KEYS"),
    ],
)
def test_a_bad_setting_stops_the_start_and_is_named(settings: dict[str, str], named: str) -> None:
    """A typo is found at the deploy and not in the data; a secret is not repeated."""
    done = command(**settings)
    assert done.returncode == 2
    assert named.encode() in done.stderr
    assert b"short-secret" not in done.stderr
    assert b"Traceback" not in done.stderr


async def test_a_taken_port_is_named(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Two receivers on one port would share its calls at random."""
    first = Receiver("127.0.0.1:1", tmp_path).start()
    try:
        async with first.channel() as channel:
            await until(is_status(channel, "", NOT_SERVING), 10, "alive")
        taken = {"PORT": first.port, "HTTP_PORT": first.http_port, "RECEIVER_METRICS_PORT": first.metrics_port}
        for name, port in taken.items():
            ports = {other: str(port if other == name else free_port()) for other in taken}
            done = await asyncio.to_thread(command, HOST="127.0.0.1", METRICS_HOST="127.0.0.1", **ports)
            assert done.returncode == 2
            assert f"{name}:".encode() in done.stderr
    finally:
        first.kill()


async def test_secrets_are_in_no_log(tmp_path: Path) -> None:
    """The line of settings is the first thing that people paste into a ticket."""
    secrets = {"API_KEYS": "key-in-a-list", "OTEL_API_KEY": "one-more-key", "ID_HASH_KEY": "h" * 40}
    receiver = Receiver("127.0.0.1:1", tmp_path, **secrets).start()
    try:

        async def has_started() -> bool:
            return bool(receiver.log_lines("receiver_started"))

        await until(has_started, 10, "the start")
        (settings,) = receiver.log_lines("settings_loaded")
        assert settings["MAX_SPANS_PER_REQUEST"] == "100000"
        for secret in secrets.values():
            assert secret not in receiver.log_text()
        assert not receiver.log_lines("ids_unkeyed")
    finally:
        receiver.kill()


def test_explain_tells_what_becomes_of_each_span() -> None:
    """The first question of everybody whose rows are missing."""
    (event,) = features(1, user="someone@example.org")
    spans = [event.span(), span(b"\1" * 16, b"\2" * 8, {"db.system": "redis"})]
    done = command("explain", "--json", "-", stdin=request(spans))
    assert done.returncode == 0
    told = json.loads(done.stdout)["spans"]
    assert [(each["outcome"], each["reason"], each["table"]) for each in told] == [
        ("event", None, "feature_usage"),
        ("ignored", "not_product_event", None),
    ]
    assert told[0]["columns"]["id"] == str(event.id)
    assert told[0]["columns"]["user_id"] == event.value()["user_id"]
    assert b"someone" not in done.stdout
    readable = command("explain", "-", stdin=request(spans))
    assert readable.returncode == 0
    assert b"feature_usage" in readable.stdout
    assert b"someone" not in readable.stdout
    rejected = command("explain", "-", stdin=request([span(b"short", b"\2" * 8, {"feature.name": "export"})]))
    assert rejected.returncode == 1
    assert b"invalid_trace_id" in rejected.stdout
    assert command("explain", "-", stdin=b"\xff\xff").returncode == 2
    assert command("explain", "/nowhere").returncode == 2


def test_explain_whose_reader_leaves_ends_without_a_word() -> None:
    """`explain | head` says neither that a span was rejected nor that something broke."""
    reader, writer = os.pipe()
    os.close(reader)
    explain = [sys.executable, "-m", "receiver", "explain", str(ROOT / "docs/example-spans.json")]
    done = subprocess.run(explain, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, timeout=30, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_names_every_command() -> None:
    """What can be done is found out without the README."""
    told = command("--help").stdout
    for name in (b"run", b"explain", b"health"):
        assert name in told
