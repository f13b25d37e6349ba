"""HTTP/1.1 bytes -> requests, and replies back, one after another on a connection. llhttp reads the protocol.

Whatever is not HTTP as its standards say ends the connection: a proxy in front that reads it another way would
otherwise take one request for two.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

import httptools
import structlog

from receiver import metrics
from receiver.serve.transport.connections.http2 import PREFACE
from receiver.serve.transport.connections.incoming import Incoming
from receiver.serve.transport.connections.listener import FIRST_BYTES_S, Connection, Listener
from receiver.serve.transport.connections.stream import Headers, first_of
from shared.logs import error_facts

log = structlog.get_logger(__name__)

HEAD_BYTES_MAX = 16 * 1024
HEADERS_MAX = 100
BUFFER_BYTES = 64 * 1024  # of a body that is not read yet; then the connection is not read either
PIPELINED_MAX = 16
LINGER_S = 2.0  # for what a refused caller still sends: closed at once, its kernel may drop our reply unread

REASONS = {
    200: b"OK",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class Request(Incoming[bytes]):
    """One request: its head, its body piece by piece, and its reply."""

    def __init__(self, connection: "Http1Connection") -> None:
        super().__init__({})  # until the head is complete
        self.connection = connection
        self.method = b""
        self.path = b""
        self.headers: Headers = []
        self.keeps_alive = True
        self.is_answered = False
        self.buffered_bytes = 0
        self._is_awaited = False  # the caller sends its body only once it is told to

    async def receive(self) -> bytes:
        """The next piece of the body; empty at its end.

        Raises:
            whatever `fail` was called with.
        """
        if not self._is_awaited:
            self._is_awaited = True
            if not self.is_complete and self.header(b"expect").lower() == b"100-continue":
                self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await self._arrived()
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.buffered_bytes = 0
        self.connection.go_on()
        return piece

    def reply(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Once, and the last that is done with it."""
        if not self.is_answered:
            self.is_answered = True
            self.connection.answered(self, status, headers, body)

    def arrived(self, piece: bytes) -> None:
        if not self.is_answered and self._error is None:
            self._pieces.append(piece)
            self.buffered_bytes += len(piece)
            self._wake()


class Http1Connection(Connection):
    """A connection whose requests are answered by `serve`, one after another."""

    def __init__(
        self,
        listener: Listener,
        *,
        serve: Callable[[Request], Awaitable[None]],
        misdirected: Callable[["Http1Connection", bytes], None],
    ) -> None:
        super().__init__(listener)
        self._serve = serve
        self._misdirected = misdirected
        self._parser = httptools.HttpRequestParser(self)
        self._head = b""  # until it is known what the caller speaks
        self._is_known = False
        self._arriving: Request | None = None  # whose head or body is on its way
        self._queue: deque[Request] = deque()  # complete heads, in order; the first one is being answered
        self._task: asyncio.Task[None] | None = None
        self._head_bytes = 0
        self._head_began_at: float | None = None
        self._is_paused = False
        self._lingers_until: float | None = None

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        if self._lingers_until is not None or self.transport.is_closing():
            return
        if not self._is_known:
            self._head += data
            if PREFACE.startswith(self._head[: len(PREFACE)]) and len(self._head) < len(PREFACE):
                return
            if self._head.startswith(PREFACE) or self._head[:1] == b"\x16":  # HTTP/2, or TLS where none is spoken
                self.has_begun = True
                metrics.wrong_doors.labels(self.listener.transport).inc()
                self._misdirected(self, self._head)
                return
            self._is_known = True
            data, self._head = self._head, b""
        self._read(data)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._task is not None:
            self._task.cancel()
        self._queue.clear()
        self._arriving = None
        del self._parser  # it holds us

    @property
    def unread_bytes(self) -> int:
        return sum(request.buffered_bytes for request in self._queue)

    def tick(self, now: float) -> None:
        super().tick(now)
        if self.transport.is_closing():
            return
        if self._head_began_at is not None and now - self._head_began_at > FIRST_BYTES_S:
            self.end("silent")
        elif self._lingers_until is not None and now > self._lingers_until:
            self.transport.abort()

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def go_on(self) -> None:
        """There is room again."""
        if self._is_paused and self.is_writable and not self._is_full():
            self._is_paused = False
            self.transport.resume_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.go_on()

    def answered(self, request: Request, status: int, headers: Headers, body: bytes) -> None:
        """Write a reply; then the next request, or the end."""
        is_last = not (request.keeps_alive and request.is_complete) or self._told_to_go_at is not None
        lines = [b"HTTP/1.1 %d %b" % (status, REASONS[status])]
        lines += [b"%b: %b" % header for header in headers]
        if status != 204:
            lines.append(b"content-length: %d" % len(body))
        if is_last:
            lines.append(b"connection: close")
        self.write(b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if request.method == b"HEAD" else body))
        if self._queue and self._queue[0] is request:
            self._queue.popleft()
        self.calls = len(self._queue)
        if is_last:
            self._linger()

    def hand_over(self, other: Connection, head: bytes) -> None:
        """Another protocol goes on with the same bytes."""
        self.listener.forget(self)
        self.transport.set_protocol(other)
        other.connection_made(self.transport)
        other.data_received(head)

    def refuse(self, status: int, text: bytes) -> None:
        """For what is no request: told and closed."""
        metrics.http_refused.labels(str(status)).inc()
        head = b"HTTP/1.1 %d %b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.write(head % (status, REASONS[status], len(text)) + text)
        self._linger()

    # ---- what the parser tells

    def on_message_begin(self) -> None:
        self._arriving = Request(self)
        self._head_bytes = 0
        self._head_began_at = self.heard_at

    def on_url(self, url: bytes) -> None:
        assert self._arriving is not None
        self._arriving.path += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes | None) -> None:
        assert self._arriving is not None
        self._arriving.headers.append((name.lower(), value or b""))
        self._count(len(name) + len(value or b""))

    def on_headers_complete(self) -> None:
        request = self._arriving
        assert request is not None
        self._head_began_at = None
        self.has_begun = True
        request.named = first_of(request.headers)
        request.method = self._parser.get_method()
        request.keeps_alive = self._parser.should_keep_alive()
        if len(self._queue) >= PIPELINED_MAX:
            raise _TooMuch
        self._queue.append(request)
        self.calls = len(self._queue)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._answer())

    def on_body(self, piece: bytes) -> None:
        if self._arriving is not None:
            self._arriving.arrived(piece)

    def on_message_complete(self) -> None:
        if self._arriving is not None:
            self._arriving.completed()
            self._arriving = None

    # ---- inside

    def _read(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refuse(400, b"no other protocol is spoken here\n")
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, _TooMuch):
                self.refuse(431, b"too many or too large headers\n")
            else:
                log.error("connection_failed", **error_facts(error))  # noqa: TRY400  texts of exceptions stay out
                self.end("protocol")
        except httptools.HttpParserError:
            self.refuse(400, b"this is no HTTP/1.1 request\n")
        if self._is_full() and not self._is_paused and self._lingers_until is None:
            self._is_paused = True
            self.transport.pause_reading()

    def _is_full(self) -> bool:
        return self.unread_bytes > BUFFER_BYTES or len(self._queue) > 1 or not self.is_writable

    def _count(self, size: int) -> None:
        assert self._arriving is not None
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX or len(self._arriving.headers) > HEADERS_MAX:
            raise _TooMuch

    async def _answer(self) -> None:
        """The requests of the queue, in their order."""
        try:
            while self._queue and self._lingers_until is None:
                request = self._queue[0]
                await self._serve(request)
                self.go_on()
        except Exception as error:  # noqa: BLE001  a bug of ours costs this connection
            log.error("call_failed", **error_facts(error))  # noqa: TRY400  texts of exceptions stay out
            self.end("protocol")
        finally:
            self._task = None

    def _linger(self) -> None:
        """What the caller still sends is taken and thrown away for a moment, so that it reads our reply."""
        self._lingers_until = time.monotonic() + LINGER_S
        self._head_began_at = None
        self.has_begun = True
        self._queue.clear()
        self.calls = 0
        if self._is_paused:
            self._is_paused = False
            self.transport.resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        elif self.listener.has_tls:
            self.transport.close()

    def eof_received(self) -> bool:
        return bool(self._queue)  # a caller that half-closes hears its reply


class _TooMuch(Exception):  # noqa: N818  what the head is
    """More headers, or more requests in a row, than there may be."""
