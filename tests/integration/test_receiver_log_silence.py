"""No line of the log holds a header's value, a path or a byte of a body, whatever a client sends."""

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest

from deploy.local.kafka import KafkaBroker
from support import http2
from support.http import exchange, post
from support.http2 import body_frames, frame, grpc_frame, hello, open_call
from support.otlp import features, request, span
from support.receiver import Receiver, export

CANARY = "canary-7f3a"
ODD = f"{CANARY}\xff\xfe"  # no UTF-8: grpc's own server logged such values whole


def http1(*lines: str, path: str = "/v1/traces", body: bytes = b"") -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


@pytest.mark.parametrize("level", ["DEBUG", pytest.param("INFO", marks=pytest.mark.long)])  # DEBUG logs all of INFO
async def test_nothing_that_a_client_sends_is_logged(kafka: KafkaBroker, tmp_path: Path, level: str) -> None:
    """Logs are shipped to places, and kept for times, that a token or a path with an e-mail address must not see."""
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, API_KEYS=f"{CANARY}-key", LOG_LEVEL=level).start()
    body = f"not protobuf {CANARY}".encode()
    try:
        await receiver.ready()
        headers = {
            "x_api_key": ODD,
            "authorization": f"Bearer {ODD}",
            "p_path": f"/{ODD}",
            "grpc_timeout": CANARY,
            "grpc_encoding": ODD,
            "content_type": f"application/grpc+{ODD}",
            "x_email": f"{CANARY}@example.org",
            "cookie": ODD,
        }
        for name, value in headers.items():
            sent = hello() + open_call(**{name: value}) + body_frames(grpc_frame(body, flag=1))
            await http2.heard(receiver.port, sent, 1)
        broken = [frame(http2.HEADERS, CANARY.encode() * 9, flags=5, stream=1), frame(http2.DATA, body, stream=7)]
        for piece in (*broken, CANARY.encode() * 100, b"\x16\x03\x01" + body):
            await http2.heard(receiver.port, hello() + piece, 1)
        await http2.heard(receiver.port, f"GET /{CANARY} HTTP/1.1\r\n{CANARY}: {CANARY}\r\n\r\n".encode(), 1)
        for raw in (
            http1(f"X-Api-Key: {ODD}", path=f"/{ODD}?{CANARY}"),
            http1(f"X-Api-Key: {CANARY}-key", "Content-Type: application/json", body=body),
            http1(f"X-Api-Key: {CANARY}-key", f"Content-Type: {ODD}", body=body),
            http1(f"X-Api-Key: {CANARY}-key", f"Content-Encoding: {CANARY}", body=body),
            http1(f"Transfer-Encoding: {CANARY}", f"{CANARY} : {CANARY}"),
            f"{CANARY} /{CANARY} HTTP/9.{CANARY}\r\n\r\n".encode(),
            hello() + body,
        ):
            await exchange(receiver.http_port, raw, 1)
        key = [("x-api-key", f"{CANARY}-key")]
        async with receiver.channel() as channel:
            named = span(b"\1" * 16, b"\2" * 8, {"feature.name": CANARY, "user.id": CANARY, "metadata.a": CANARY})
            assert (await export(channel, request([named]), metadata=key)).code == "OK"
            assert (await export(channel, request(features(1)), metadata=[("x-api-key", CANARY)])).code != "OK"
            with contextlib.suppress(grpc.aio.AioRpcError):
                await channel.unary_unary(f"/{CANARY}/{CANARY}")(body, metadata=key, timeout=2)
        assert (await post(receiver.http_port, body, x_api_key=f"{CANARY}-key")).status == 400
        kafka.pause()
        try:
            async with receiver.channel() as channel:
                await asyncio.gather(*(export(channel, request([named]), metadata=key, timeout_s=2) for _ in range(5)))
        finally:
            kafka.resume()
        assert await receiver.stop() == 0
        assert CANARY not in receiver.log_text()
        assert receiver.log_lines("receiver_stopped"), "the log was read to its end"
    finally:
        receiver.kill()
