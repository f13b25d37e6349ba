"""HTTP/2 and gRPC framing by hand, so that a call may be as wrong as a test wants it."""

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
EXPORT_PATH = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
CALL = {
    ":method": "POST",
    ":scheme": "http",
    ":path": EXPORT_PATH,
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def hello(settings: bytes = b"") -> bytes:
    return PREFACE + frame(SETTINGS, settings)


def fields(pairs: Iterable[tuple[str, str]]) -> bytes:
    """HPACK, each field as a literal without an index. A character is a byte: text need be no UTF-8."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)


def _text(text: str) -> bytes:
    size = len(text)
    if size < 127:
        return bytes([size]) + text.encode("latin-1")
    out, size = b"\x7f", size - 127
    while size > 127:
        out += bytes([size & 127 | 128])
        size >>= 7
    return out + bytes([size]) + text.encode("latin-1")


def open_call(stream: int = 1, *, flags: int = END_HEADERS, **changed: str | None) -> bytes:
    """HEADERS of an Export; names with `_` for `-`, a leading `p_` for a pseudo-header's colon; None: left out."""
    named = {re.sub("^p-", ":", name.replace("_", "-")): value for name, value in changed.items()}
    pairs = [(name, value) for name, value in {**CALL, **named}.items() if value is not None]
    return frame(HEADERS, fields(pairs), flags=flags, stream=stream)


def grpc_frame(body: bytes, *, flag: int = 0, size: int | None = None) -> bytes:
    return bytes([flag]) + struct.pack(">I", len(body) if size is None else size) + body


def body_frames(body: bytes, stream: int = 1, *, ends: bool = True) -> bytes:
    """DATA in frames of at most 16 KiB, the largest that needs no consent."""
    pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frame(DATA, piece, flags=END_STREAM if ends and n == last else 0, stream=stream)
        for n, piece in enumerate(pieces)
    )


class Heard:
    """What came back over a connection until it closed, a stream ended, or the time was over."""

    def __init__(self) -> None:
        self.raw = b""
        self.is_closed = False

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Kind, flags, stream, payload."""
        found, position = [], 0
        while position + 9 <= len(self.raw):
            size = int.from_bytes(self.raw[position : position + 3])
            kind, flags = self.raw[position + 3], self.raw[position + 4]
            stream = int.from_bytes(self.raw[position + 5 : position + 9])
            if position + 9 + size > len(self.raw):
                break
            found.append((kind, flags, stream, self.raw[position + 9 : position + 9 + size]))
            position += 9 + size
        return found

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Of all replies of the connection together."""
        decoder = hpack.Decoder()
        blocks = [payload for kind, _, _, payload in self.frames() if kind == HEADERS]
        return {name: value for block in blocks for name, value in decoder.decode(block, raw=True)}

    @property
    def verdict(self) -> str:
        """`grpc N`, the status of a call; `http N`; `reset`, `goaway` or `closed` otherwise; `silence` at last."""
        headers = self.headers
        if status := headers.get(b"grpc-status"):
            return f"grpc {status.decode()}"
        if headers and (status := headers[b":status"]) != b"200":
            return f"http {status.decode()}"
        kinds = {kind for kind, *_ in self.frames()}
        for kind, name in ((RST_STREAM, "reset"), (GOAWAY, "goaway"), (HEADERS, "headers")):
            if kind in kinds:
                return name
        return "closed" if self.is_closed else "silence"


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def heard(port: int, sent: bytes, seconds: float = 3) -> Heard:
    """Send these bytes over a connection of their own and listen until there is a verdict."""
    found = Heard()
    async with connected(port) as (reader, writer):
        listening = asyncio.create_task(_listen(reader, found))
        try:
            async with asyncio.timeout(seconds):
                writer.write(sent)
                await writer.drain()
                await listening
        except (TimeoutError, ConnectionError):
            listening.cancel()
    return found


async def _listen(reader: asyncio.StreamReader, found: Heard) -> None:
    while found.verdict in ("silence", "headers"):
        try:
            piece = await reader.read(65_536)
        except ConnectionError:
            piece = b""
        if not piece:
            found.is_closed = True
            return
        found.raw += piece
