"""HTTP/2 bytes -> streams, and replies back. The library h2 knows the protocol; here is what may be held and when.

Frames are cut out of what arrives and given to h2 one at a time, so that a connection that sends a thousand
small ones has a slice of the loop like any other. A body's window is opened as its reader asks for more.
"""

import asyncio
import contextlib
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import structlog

from receiver import metrics
from receiver.serve.listener import Connection, Listener
from shared.logs import error_facts

log = structlog.get_logger(__name__)

# h2 4.4 formats every frame, with its bytes in hex, for a log that nobody reads: a twentieth of the receiver's CPU.
h2.connection.repr = type  # type: ignore[attr-defined]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAMS_MAX = 100  # of a connection, as told to the caller
STREAMS_REFUSED_MAX = 100  # more, each refused; a caller that does not heed that either is shut out
FRAME_BYTES_MAX = 64 * 1024
HEADER_BYTES_MAX = 16 * 1024
WINDOW_BYTES = 64 * 1024  # of a stream, and of a connection: what arrives unasked
WIDE_WINDOW_BYTES = 1024 * 1024  # for bodies that are larger: a Collector 50 ms away sends 20 MB/s through it
WIDE_WINDOWS_MAX = 64  # connections that have it at once
ROUND_S = 0.005  # of reading frames, for all connections together, in each round of the loop
SLICE_S = 0.001  # of it for one connection
REPLY_STALL_S = 10.0  # for a reply that waits for the caller's window
# Frames that carry no call: a caller has so many at once, and more for each call and second.
IDLE_FRAMES, IDLE_FRAMES_A_CALL, IDLE_FRAMES_A_SECOND = 400, 20, 50
RESET_WEIGHT = 20  # a call that its caller resets costs as much as a call

_DATA, _HEADERS, _RST_STREAM, _GOAWAY, _CONTINUATION = 0, 1, 3, 7, 9
_NO_ERROR, _FRAME_SIZE_ERROR, _REFUSED_STREAM, _CANCEL, _CALM = 0, 6, 7, 8, 11
Headers = list[tuple[bytes, bytes]]


class Stream:
    """One call on a connection: its headers, its body piece by piece, and its reply."""

    def __init__(self, connection: "Http2Connection", number: int, headers: Headers) -> None:
        self.connection = connection
        self.number = number
        self.headers = headers
        self.started_at = time.monotonic()
        self.task: asyncio.Task[None] | None = None
        self.is_over = False  # nothing more may be sent
        self._pieces: list[tuple[bytes, int]] = []
        self._unasked_bytes = 0
        self._is_complete = False
        self._is_wide = False
        self._arrival: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._waiting_out: list[tuple[bytes, Headers | None]] = []  # data, and the trailers that end the stream
        self._stalled_at: float | None = None

    async def receive(self) -> bytes:
        """The next piece of the body; empty at its end. What was given before is taken from the window.

        Raises:
            whatever `fail` was called with.
        """
        self.give_back()
        while not self._pieces and not self._is_complete and self._error is None:
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        if self._error is not None:
            raise self._error
        if not self._pieces:
            return b""
        piece = self._pieces[0][0] if len(self._pieces) == 1 else b"".join(piece for piece, _ in self._pieces)
        self._unasked_bytes = sum(size for _, size in self._pieces)
        self._pieces.clear()
        return piece

    def widen(self) -> None:
        """A large body is on its way."""
        if not self._is_wide and self.connection.widen(self.number):
            self._is_wide = True

    def fail(self, error: Exception) -> None:
        """End the reading with this error, unless the body is there."""
        if not self._is_complete:
            self._error = error
            self._wake()

    def send(self, headers: Headers | None, message: bytes = b"", trailers: Headers | None = None) -> None:
        """Headers at once, the message as the caller's window allows, then the trailers, which end the call."""
        if self.is_over:
            return
        if headers is not None:
            ends = not message and trailers is None
            self.connection.send_headers(self.number, headers, ends=ends)
            if ends:
                self.over()
        if message or trailers is not None:
            if self._waiting_out and trailers is None:
                self._waiting_out.clear()  # of what nobody takes, the last is enough
            self._waiting_out.append((message, trailers))
        self.flush()

    def flush(self) -> None:
        """Send what the window allows."""
        while self._waiting_out and not self.is_over:
            message, trailers = self._waiting_out[0]
            if len(message) > self.connection.window_of(self.number):
                self._stalled_at = self._stalled_at or time.monotonic()
                return
            self._waiting_out.pop(0)
            if message:
                self.connection.send_data(self.number, message)
            if trailers is not None:
                self.connection.send_headers(self.number, trailers, ends=True)
                self.over()
        self._stalled_at = None
        if self.is_over:
            self.connection.finished(self, is_read=self._is_complete)

    def tick(self, now: float) -> None:
        if self._stalled_at is not None and now - self._stalled_at > REPLY_STALL_S:
            self.connection.reset(self)

    def arrived(self, piece: bytes, size: int) -> None:
        if self.is_over or self._error is not None:
            self.connection.give_back(size, self.number)
            return
        self._pieces.append((piece, size))
        self._wake()

    def completed(self) -> None:
        self._is_complete = True
        self._wake()

    def over(self) -> None:
        """Nothing more is read or sent; what nobody asked for is given back to the connection."""
        self.is_over = True
        self.give_back()
        for _, size in self._pieces:
            self.connection.give_back(size, self.number)
        self._pieces.clear()

    def give_back(self) -> None:
        """What `receive` gave is counted elsewhere now: the connection may send as much again."""
        if self._unasked_bytes:
            self.connection.give_back(self._unasked_bytes, self.number)
            self._unasked_bytes = 0

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


class _H2(h2.connection.H2Connection):
    MAX_CLOSED_STREAMS = 1_000  # remembered, so that frames that come late are no offence; h2's own is 65,536


class _Pump:
    """Who reads next: a connection that has been served before those that only took, and each a slice at a time."""

    def __init__(self) -> None:
        self._known: deque[Http2Connection] = deque()
        self._strange: deque[Http2Connection] = deque()
        self._used_s = 0.0  # in this round of the loop
        self._is_called = False

    @property
    def has_time(self) -> bool:
        return self._used_s < ROUND_S

    def used(self, seconds: float) -> None:
        self._used_s += seconds
        self._call()

    def enqueue(self, connection: "Http2Connection") -> None:
        (self._known if connection.is_known else self._strange).append(connection)
        self._call()

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._is_called = False
        self._used_s = 0.0
        for queue in (self._known, self._strange):
            for _ in range(len(queue)):
                if not self.has_time:
                    break
                queue.popleft().go_on()
        if self._known or self._strange:
            self._call()


class Http2Connection(Connection):
    """A connection whose calls are answered by `serve`, a task for each."""

    wide = 0  # connections with a wide window, in all
    pump: ClassVar[_Pump] = _Pump()

    def __init__(
        self,
        listener: Listener,
        *,
        serve: Callable[[Stream], Awaitable[None]],
        misdirected: Callable[[bytes], bytes] | None = None,
    ) -> None:
        super().__init__(listener)
        self._serve = serve
        self._misdirected = misdirected
        self._buffer = bytearray()
        self._h2: Any = None
        self._streams: dict[int, Stream] = {}
        self._header_bytes = 0
        self._idle_frames = 0
        self._answered = 0
        self._is_paused = False
        self._is_wide = False
        self._last_stream = 0

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        self._buffer += data
        if self._is_paused:
            return
        if self.pump.has_time:
            self._feed()
        else:
            self._pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._is_paused:
            self.pump.enqueue(self)

    @property
    def is_known(self) -> bool:
        """It asks and listens as clients do."""
        return self._idle_frames < IDLE_FRAMES_A_CALL * self._answered

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._is_wide:
            Http2Connection.wide -= 1
            self._is_wide = False
        for stream in list(self._streams.values()):
            stream.is_over = True
            if stream.task is not None:
                stream.task.cancel()
        self._streams.clear()
        self._buffer.clear()
        self._h2 = None

    def tick(self, now: float) -> None:
        super().tick(now)
        for stream in list(self._streams.values()):
            stream.tick(now)

    def say_goodbye(self) -> None:
        """GOAWAY that names the last stream there can be: calls on their way are served. h2 has no word for that."""
        if self._h2 is not None and not self.transport.is_closing():
            self.transport.write(_frame(_GOAWAY, struct.pack(">II", 2**31 - 1, _NO_ERROR)))
            self.transport.write(_frame(_GOAWAY, struct.pack(">II", self._last_stream, _NO_ERROR)))

    # ---- what streams ask for

    def send_headers(self, stream: int, headers: Headers, *, ends: bool) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # the caller reset it meanwhile
            self._h2.send_headers(stream, headers, end_stream=ends)
        self._write()

    def send_data(self, stream: int, message: bytes) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):
            size_max = self._h2.max_outbound_frame_size
            for at in range(0, len(message), size_max):
                self._h2.send_data(stream, message[at : at + size_max])
        self._write()

    def window_of(self, stream: int) -> int:
        try:
            return int(self._h2.local_flow_control_window(stream))
        except h2.exceptions.ProtocolError:
            return 2**31  # gone: sending finds that out

    def give_back(self, size: int, stream: int) -> None:
        if size and self._h2 is not None:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.acknowledge_received_data(size, stream)
            self._write()

    def widen(self, stream: int) -> bool:
        if not self._is_wide:
            if Http2Connection.wide >= WIDE_WINDOWS_MAX or self._h2 is None:
                return False
            Http2Connection.wide += 1
            self._is_wide = True
            self._h2.increment_flow_control_window(WIDE_WINDOW_BYTES - WINDOW_BYTES)
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.increment_flow_control_window(WIDE_WINDOW_BYTES - WINDOW_BYTES, stream)
        self._write()
        return True

    def reset(self, stream: Stream, error: int = _CANCEL) -> None:
        stream.over()
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.reset_stream(stream.number, error)
        self._write()
        self._drop(stream)

    def finished(self, stream: Stream, *, is_read: bool) -> None:
        """Its reply is sent. A body that still arrives is told to stop."""
        if not is_read and stream.number in self._streams:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.reset_stream(stream.number, _NO_ERROR)
            self._write()
        if self._streams.pop(stream.number, None) is not None:
            self.calls = len(self._streams)
            self._answered += 1

    # ---- what arrives

    def _feed(self) -> None:
        started_at = time.monotonic()
        self._read_frames(started_at + SLICE_S)
        self.pump.used(time.monotonic() - started_at)
        self._write()

    def _read_frames(self, ends_at: float) -> None:
        while (piece := self._next_frame()) is not None:
            try:
                for event in self._h2.receive_data(piece):
                    self._on(event)
            except h2.exceptions.ProtocolError:
                self._end_connection()
                return
            except Exception as error:  # noqa: BLE001  whatever a parser chokes on ends its connection and no other
                log.error("connection_failed", **error_facts(error))  # noqa: TRY400  texts of exceptions stay out
                self._end_connection()
                return
            if self._h2 is None:
                return
            if not self.is_writable or time.monotonic() > ends_at:
                self._pause()
                return

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()
        if self.is_writable:
            self.pump.enqueue(self)

    def go_on(self) -> None:
        """Its turn to read."""
        if self._is_paused and self.is_writable and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()
            self._feed()

    def _next_frame(self) -> bytes | None:
        buffer = self._buffer
        if self._h2 is None and not self._greeted():
            return None
        if len(buffer) < 9:
            return None
        size, kind = int.from_bytes(buffer[:3]), buffer[3]
        is_header = kind in (_HEADERS, _CONTINUATION)
        if size > (HEADER_BYTES_MAX if is_header else FRAME_BYTES_MAX):
            self._shut_out(_FRAME_SIZE_ERROR)
            return None
        if len(buffer) < 9 + size:
            return None
        if not self._is_admitted(kind, flags=buffer[4], size=size):
            self._shut_out(_CALM)
            return None
        piece = bytes(buffer[: 9 + size])
        del buffer[: 9 + size]
        return piece

    def _is_admitted(self, kind: int, *, flags: int, size: int) -> bool:
        if kind in (_HEADERS, _CONTINUATION):
            self._header_bytes = size + (self._header_bytes if kind == _CONTINUATION else 0)
            if kind == _HEADERS and flags & 4:
                return True
            if self._header_bytes > HEADER_BYTES_MAX:
                return False
        elif kind == _DATA and size:
            return True
        self._idle_frames += RESET_WEIGHT if kind == _RST_STREAM else 1
        age_s = self.heard_at - self.opened_at
        return self._idle_frames < IDLE_FRAMES + IDLE_FRAMES_A_CALL * self._answered + IDLE_FRAMES_A_SECOND * age_s

    def _greeted(self) -> bool:
        head = bytes(self._buffer[: len(PREFACE)])
        if not PREFACE.startswith(head):
            self.has_begun = True
            metrics.wrong_doors.labels(self.listener.transport).inc()
            if self._misdirected is not None and not self.transport.is_closing():
                self.transport.write(self._misdirected(bytes(self._buffer[:1024])))
            self._buffer.clear()
            self.transport.close()
            return False
        if len(head) < len(PREFACE):
            return False
        self._begin()
        del self._buffer[: len(PREFACE)]
        return True

    def _begin(self) -> None:
        self.has_begun = True
        self._h2 = _H2(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding=None,  # bytes: a path need be no UTF-8
                validate_inbound_headers=False,  # a blank behind a key would end the connection, and all its calls
                normalize_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        codes = h2.settings.SettingCodes
        told = {
            codes.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
            codes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            codes.MAX_FRAME_SIZE: FRAME_BYTES_MAX,
            codes.MAX_HEADER_LIST_SIZE: HEADER_BYTES_MAX,
        }
        self._h2.local_settings = h2.settings.Settings(
            client=False, initial_values={**told, codes.MAX_CONCURRENT_STREAMS: STREAMS_MAX + STREAMS_REFUSED_MAX}
        )
        self._h2.max_inbound_frame_size = FRAME_BYTES_MAX
        self._h2.decoder.max_header_list_size = HEADER_BYTES_MAX
        self._h2.initiate_connection()
        self._h2.receive_data(PREFACE)
        self._h2.clear_outbound_data_buffer()  # its settings would promise the streams that are refused
        self.transport.write(_frame(4, b"".join(struct.pack(">HI", int(code), told[code]) for code in told)))

    def _on(self, event: Any) -> None:  # noqa: C901, PLR0912  one branch an event
        match event:
            case h2.events.DataReceived():
                if (stream := self._streams.get(event.stream_id)) is not None:
                    stream.arrived(event.data, event.flow_controlled_length)
                else:
                    self.give_back(event.flow_controlled_length, event.stream_id)
            case h2.events.RequestReceived():
                self._open(event)
            case h2.events.StreamEnded():
                if (stream := self._streams.get(event.stream_id)) is not None:
                    stream.completed()
            case h2.events.StreamReset():
                if (stream := self._streams.get(event.stream_id)) is not None:
                    stream.is_over = True
                    stream.over()
                    self._drop(stream)
            case h2.events.WindowUpdated():
                waiting = [self._streams.get(event.stream_id)] if event.stream_id else list(self._streams.values())
                for each in waiting:
                    if each is not None:
                        each.flush()
            case h2.events.RemoteSettingsChanged():
                for each in list(self._streams.values()):
                    each.flush()
            case h2.events.ConnectionTerminated():
                self.depart()

    def _open(self, event: Any) -> None:
        stream = Stream(self, event.stream_id, event.headers)
        self._last_stream = event.stream_id
        if len(self._streams) >= STREAMS_MAX:
            self.reset(stream, _REFUSED_STREAM)
            return
        self._streams[event.stream_id] = stream
        self.calls = len(self._streams)
        stream.task = asyncio.get_running_loop().create_task(self._run(stream))

    async def _run(self, stream: Stream) -> None:
        try:
            await self._serve(stream)
        except asyncio.CancelledError:
            pass  # only the caller's leave cancels it
        except Exception as error:  # noqa: BLE001  a bug of ours costs this call
            log.error("call_failed", **error_facts(error))  # noqa: TRY400  texts of exceptions stay out
        finally:
            if not stream.is_over and stream.number in self._streams and not stream._waiting_out:  # noqa: SLF001
                self.reset(stream)

    def _drop(self, stream: Stream) -> None:
        self._streams.pop(stream.number, None)
        self.calls = len(self._streams)
        if stream.task is not None:
            stream.task.cancel()

    def _write(self) -> None:
        if self._h2 is not None and (out := self._h2.data_to_send()) and not self.transport.is_closing():
            self.transport.write(out)

    def _shut_out(self, error: int) -> None:
        if not self.transport.is_closing():
            self.transport.write(_frame(_GOAWAY, struct.pack(">II", self._last_stream, error)))
        self._end_connection()

    def _end_connection(self) -> None:
        """Its calls end with it, as the protocol wants it."""
        metrics.connections_ended.labels(self.listener.transport, "protocol").inc()
        self._write()
        self._buffer.clear()
        self.transport.close()
        self._h2 = None
        self.has_begun = True
        for stream in list(self._streams.values()):
            stream.is_over = True
            self._drop(stream)


def _frame(kind: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 0]) + bytes(4) + payload


def header_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for found, value in headers if found == name), None)
