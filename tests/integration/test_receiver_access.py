"""Who may call, and over what: keys, certificates, and their rotation while calls go on."""

import asyncio
import http.client
import shutil
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.kafka import KafkaBroker
from support.otlp import empty_spans, features, request, span
from support.receiver import Receiver, export, until

# What is answered without the broker: its answers are not what is asked about here.
NO_EVENT = request([span(b"\1" * 16, b"\2" * 8, {"db.system": "redis"})])
KEY, OTHER, THIRD = "k-first-9a61", "k-second-77b0", "k-third-c2f4"


@asynccontextmanager
async def started(kafka: KafkaBroker, folder: Path, **settings: Any) -> AsyncIterator[Receiver]:
    receiver = Receiver(kafka.bootstrap_servers, folder, **settings).start()
    try:
        await receiver.ready()
        yield receiver
    finally:
        receiver.kill()


async def code_of(channel: grpc.aio.Channel, *metadata: tuple[str, str]) -> str:
    return (await export(channel, request(features(1)), metadata=metadata)).code


async def test_keys_open_the_door_and_nothing_else_does(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Both headers that exporters can send, several keys at once, and health checks without any."""
    async with started(kafka, tmp_path, API_KEYS=f"{KEY}, {OTHER}", OTEL_API_KEY=THIRD) as receiver:
        async with receiver.channel() as channel:
            for key in (KEY, OTHER, THIRD):
                assert await code_of(channel, ("x-api-key", key)) == "OK"
                assert await code_of(channel, ("authorization", f"Bearer {key}")) == "OK"
            assert await code_of(channel, ("authorization", f"bearer {KEY}")) == "OK"
            for wrong in ("", "k-first", KEY + "x", KEY.upper()):
                assert await code_of(channel, ("authorization", f"Bearer {wrong}")) == "UNAUTHENTICATED"
            assert await code_of(channel, ("x-api-key", KEY[:-1])) == "UNAUTHENTICATED"
            assert await code_of(channel, ("authorization", KEY)) == "UNAUTHENTICATED"
            assert await code_of(channel) == "UNAUTHENTICATED"
            health = health_pb2_grpc.HealthStub(channel)

            async def is_serving() -> bool:
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

            await until(is_serving, 5, "serving")
        assert await receiver.metric("receiver_requests_total", code="UNAUTHENTICATED") >= 3
        for secret in (KEY, OTHER, THIRD):
            assert secret not in receiver.log_text()


async def test_a_refused_caller_costs_no_parse(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Eight million spans without a key: seconds of CPU and gigabytes, if anybody looked at them."""
    hostile = empty_spans(8 * 1024 * 1024 - 16)
    async with started(kafka, tmp_path, API_KEYS=KEY) as receiver, receiver.channel() as channel:
        assert await code_of(channel, ("x-api-key", KEY)) == "OK"
        process = psutil.Process(receiver.pid)
        cpu_before, resident_before = sum(process.cpu_times()[:2]), receiver.resident_bytes()
        for compression in (None, grpc.Compression.Gzip):
            for _ in range(5):
                assert (await export(channel, hostile, compression=compression)).code == "UNAUTHENTICATED"
        assert sum(process.cpu_times()[:2]) - cpu_before < 0.5
        assert receiver.resident_bytes() - resident_before < 16 * 1024 * 1024


async def test_the_file_of_keys_is_read_again_when_it_changes(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Rotation: add the new key, move the senders, take the old one away; no restart, nobody refused."""
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n")

    def replace(text: str) -> None:
        (tmp_path / "fresh").write_text(text)
        (tmp_path / "fresh").replace(file)

    async with started(kafka, tmp_path, API_KEYS_FILE=file) as receiver, receiver.channel() as channel:

        async def is_open(key: str) -> bool:
            return await code_of(channel, ("x-api-key", key)) == "OK"

        async def is_shut(key: str) -> bool:
            return not await is_open(key)

        assert await is_open(KEY)
        assert await is_shut(OTHER)
        replace(f"{KEY}\n{OTHER}\n")
        await until(lambda: is_open(OTHER), 5, "the new key")
        assert await is_open(KEY)
        replace(f"{OTHER}\n")
        await until(lambda: is_shut(KEY), 5, "the old key shut")
        for broken in ("", None):
            if broken is None:
                file.unlink()
            else:
                replace(broken)
            warnings = len(receiver.log_lines("keys_kept"))

            async def is_noticed(seen: int = warnings) -> bool:
                assert await is_open(OTHER), "a rotation that empties the file for a moment must refuse nobody"
                return len(receiver.log_lines("keys_kept")) > seen or seen > 0

            await until(is_noticed, 5, "the warning")
            assert await is_shut(KEY)


@pytest.mark.parametrize("workers", [1, 2])
async def test_keys_are_rotated_while_calls_go_on(kafka: KafkaBroker, tmp_path: Path, workers: int) -> None:
    """List two, move the senders, take the old one away: in every worker, and nobody is refused meanwhile."""
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n")
    codes: Counter[str] = Counter()
    current = KEY
    shown: Counter[str] = Counter()  # by calls in flight
    is_over = asyncio.Event()

    async def send(receiver: Receiver) -> None:
        while not is_over.is_set():  # over connections of their own, so that every worker has some
            async with receiver.channel() as channel:
                for _ in range(5):
                    key = current
                    shown[key] += 1
                    metadata = [("x-api-key", key)]
                    codes[(await export(channel, NO_EVENT, metadata=metadata)).code] += 1
                    shown[key] -= 1

    async def sent(count: int) -> None:
        wanted = codes.total() + count

        async def are_there() -> bool:
            return codes.total() >= wanted and shown.total() == shown[current]

        await until(are_there, 60, f"{count} more calls, and none with a former key")

    async with started(kafka, tmp_path, API_KEYS_FILE=file, WORKERS=workers) as receiver:
        senders = [asyncio.create_task(send(receiver)) for _ in range(8)]
        await sent(50)
        for keys, next_key in ((f"{KEY}\n{OTHER}\n", OTHER), (f"{OTHER}\n", OTHER)):
            reads = len(receiver.log_lines("keys_read"))
            (tmp_path / "fresh").write_text(keys)
            (tmp_path / "fresh").replace(file)

            async def are_read(before: int = reads) -> bool:
                return len(receiver.log_lines("keys_read")) >= before + workers

            await until(are_read, 20, "the file, by every worker")
            current = next_key
            await sent(50)
        is_over.set()
        await asyncio.gather(*senders)
        async with receiver.channel() as channel:
            assert await code_of(channel, ("x-api-key", KEY)) == "UNAUTHENTICATED"
    assert set(codes) == {"OK"}


async def test_a_file_of_keys_that_holds_none_stops_the_start(tmp_path: Path) -> None:
    """Open to everybody would be the worst reading of a wrong path."""
    (tmp_path / "empty").touch()
    for file in ("missing", "empty"):
        receiver = Receiver("127.0.0.1:1", tmp_path, API_KEYS_FILE=tmp_path / file).start()
        assert await receiver.ended() == 2
        assert "API_KEYS_FILE" in receiver.log_text()


class Authority:
    """Signs certificates for the length of a test."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self._folder = folder
        self._authority = trustme.CA(organization_name=name)
        self.cert = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.cert)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for localhost."""
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        issued = self._authority.issue_cert("localhost", "127.0.0.1", common_name=name)
        issued.private_key_pem.write_to_path(key)
        cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        return cert, key


def install(pair: tuple[Path, Path], cert: Path, key: Path) -> None:
    """As careless as rotations are: one file after the other, in place."""
    shutil.copy(pair[0], cert)
    time.sleep(0.3)
    shutil.copy(pair[1], key)


@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_certificates_are_reloaded_while_calls_go_on(kafka: KafkaBroker, tmp_path: Path, transport: str) -> None:
    """Short-lived certificates are the rule; a restart a day is not, and no caller may be refused meanwhile."""
    old, new = Authority(tmp_path / "old", "old"), Authority(tmp_path / "new", "new")
    cert, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    install(old.issue("server"), cert, key)
    both = old.cert.read_bytes() + new.cert.read_bytes()
    codes: list[str] = []

    async def call(receiver: Receiver, roots: bytes) -> str:
        if transport == "http":
            return await asyncio.to_thread(https, receiver.http_port, roots)
        async with receiver.channel(grpc.ssl_channel_credentials(roots)) as channel:
            return (await export(channel, NO_EVENT)).code

    async def called(count: int) -> None:
        wanted = len(codes) + count

        async def are_there() -> bool:
            return len(codes) >= wanted

        await until(are_there, 60, f"{count} more calls")

    async with started(kafka, tmp_path, TLS_CERT_FILE=cert, TLS_KEY_FILE=key) as receiver:

        async def call_on(until_: asyncio.Event) -> None:
            while not until_.is_set():
                codes.append(await call(receiver, both))

        over = asyncio.Event()
        callers = [asyncio.create_task(call_on(over)) for _ in range(4)]
        assert await call(receiver, old.cert.read_bytes()) == "OK"
        await called(10)
        await asyncio.to_thread(install, new.issue("server"), cert, key)

        async def is_new() -> bool:
            return await call(receiver, new.cert.read_bytes()) == "OK"

        await until(is_new, 10, "the new certificate")
        await called(10)
        over.set()
        await asyncio.gather(*callers)
        assert await call(receiver, old.cert.read_bytes()) == "UNAVAILABLE"
    assert set(codes) == {"OK"}


def https(port: int, roots: bytes) -> str:
    """The code of one request over a connection of its own."""
    trusted = ssl.create_default_context(cadata=roots.decode())
    connection = http.client.HTTPSConnection("localhost", port, context=trusted, timeout=10)
    try:
        connection.request("POST", "/v1/traces", NO_EVENT, {"content-type": "application/x-protobuf"})
        return "OK" if connection.getresponse().status == 200 else "REFUSED"
    except ssl.SSLCertVerificationError:
        return "UNAVAILABLE"
    finally:
        connection.close()


async def test_mutual_tls_knows_its_callers_and_reloads_who_they_are(kafka: KafkaBroker, tmp_path: Path) -> None:
    """With TLS_CLIENT_CA_FILE a key is no longer all it takes."""
    first, second = Authority(tmp_path / "first", "first"), Authority(tmp_path / "second", "second")
    cert, key = first.issue("server")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(first.cert.read_bytes())

    async def code(receiver: Receiver, pair: tuple[Path, Path] | None) -> str:
        chain, private = (pair[0].read_bytes(), pair[1].read_bytes()) if pair else (None, None)
        credentials = grpc.ssl_channel_credentials(first.cert.read_bytes(), private, chain)
        async with receiver.channel(credentials) as channel:
            return (await export(channel, request(features(1)), timeout_s=2)).code

    async with started(kafka, tmp_path, TLS_CERT_FILE=cert, TLS_KEY_FILE=key, TLS_CLIENT_CA_FILE=trusted) as receiver:
        assert await code(receiver, first.issue("caller")) == "OK"
        assert await code(receiver, None) == "UNAVAILABLE"
        late = second.issue("caller")
        assert await code(receiver, late) == "UNAVAILABLE"
        trusted.write_bytes(second.cert.read_bytes())

        async def is_known() -> bool:
            return await code(receiver, late) == "OK"

        await until(is_known, 10, "the second authority")
        assert await code(receiver, first.issue("caller")) == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("settings", "is_warned"),
    [
        ({"HOST": "0.0.0.0", "API_KEYS": KEY}, True),
        ({"HOST": "127.0.0.1", "API_KEYS": KEY}, False),
        ({"HOST": "0.0.0.0"}, False),
    ],
)
async def test_keys_in_the_clear_are_warned_about(tmp_path: Path, settings: dict[str, str], is_warned: bool) -> None:
    """Whoever listens on the way has the keys."""
    receiver = Receiver("127.0.0.1:1", tmp_path, **settings).start()
    try:

        async def has_started() -> bool:
            return bool(receiver.log_lines("receiver_started"))

        await until(has_started, 20, "the start")
        assert bool(receiver.log_lines("keys_in_the_clear")) == is_warned
        assert receiver.log_lines("ids_unkeyed"), "unkeyed hashes are warned about too"
    finally:
        receiver.kill()
