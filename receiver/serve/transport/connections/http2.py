"""HTTP/2 bytes -> streams, and replies back. The library h2 knows the protocol; here is what may be held and when.

Frames are cut out of what arrives and given to h2 one at a time, so that a connection that sends a thousand
small ones has a slice of the loop like any other. The connection's window, which bounds what arrives unasked on all
its streams together, is opened as readers ask for more.
"""

import asyncio
import contextlib
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import h2.config
import h2.events
import h2.exceptions
import h2.settings
import structlog

from receiver import metrics
from receiver.serve.transport.connections.frames import HEAD_BYTES, Head, Unread, frame
from receiver.serve.transport.connections.listener import Connection, Listener
from receiver.serve.transport.connections.protocol import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    Protocol,
    WholeReply,
)
from receiver.serve.transport.connections.pump import Pump
from receiver.serve.transport.connections.stream import Headers, Stream
from shared.logs import error_facts

log = structlog.get_logger(__name__)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAMS_MAX = 100  # of a connection, as told to the caller
STREAMS_REFUSED_MAX = 100  # more, each refused; a caller that does not heed that either is shut out
FRAME_BYTES_MAX = 64 * 1024
HEADER_BYTES_MAX = 16 * 1024
WINDOW_BYTES = 64 * 1024  # of a connection: what arrives unasked, on all its streams together
WIDE_WINDOW_BYTES = 1024 * 1024  # with larger bodies: a Collector 50 ms away sends 20 MB/s through it
WIDE_WINDOWS_MAX = 64  # connections that have it at once
SLICE_S = 0.001  # of reading frames, for one connection at a time
# Frames that carry no call: a caller has so many at once, and more for each call and second.
IDLE_FRAMES, IDLE_FRAMES_A_CALL, IDLE_FRAMES_A_SECOND = 400, 20, 50
RESET_WEIGHT = 20  # a call that its caller resets costs as much as a call

_NO_ERROR, _FRAME_SIZE_ERROR, _REFUSED_STREAM, _CANCEL, _CALM = 0, 6, 7, 8, 11


class Http2Connection(Connection):
    """A connection whose calls are answered by `serve`, a task for each."""

    wide = 0  # connections with a wide window, in all
    pump: ClassVar[Pump] = Pump()

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
        self._unread = Unread()
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
        self._unread.add(data)
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
        self._unread.clear()
        self._h2 = None

    @property
    def unread_bytes(self) -> int:
        return len(self._unread) + sum(stream.unread_bytes for stream in self._streams.values())

    def tick(self, now: float) -> None:
        super().tick(now)
        for stream in list(self._streams.values()):
            stream.tick(now)

    def say_goodbye(self) -> None:
        """GOAWAY that names the last stream there can be: calls on their way are served. h2 has no word for that."""
        if self._h2 is not None and not self.transport.is_closing():
            self.transport.write(frame(GOAWAY, struct.pack(">II", 2**31 - 1, _NO_ERROR)))
            self.transport.write(frame(GOAWAY, struct.pack(">II", self._last_stream, _NO_ERROR)))

    # ---- what streams ask for

    def send_headers(self, stream: int, headers: Headers, *, ends: bool) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # the caller reset it meanwhile
            self._h2.send_headers(stream, headers, end_stream=ends)

    def send_data(self, stream: int, message: bytes) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):
            size_max = self._h2.max_outbound_frame_size
            for at in range(0, len(message), size_max):
                self._h2.send_data(stream, message[at : at + size_max])

    def send_whole(self, stream: int, reply: WholeReply) -> bool:
        try:
            return bool(self._h2.send_whole(stream, reply))
        except h2.exceptions.ProtocolError:
            return True  # the caller reset it meanwhile

    def window_of(self, stream: int) -> int:
        try:
            return int(self._h2.local_flow_control_window(stream))
        except h2.exceptions.ProtocolError:
            return 2**31  # gone: sending finds that out

    def give_back(self, size: int, stream: int) -> None:
        if size and self._h2 is not None:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.acknowledge_received_data(size, stream)
            self.write()

    def widen(self) -> None:
        if not self._is_wide and Http2Connection.wide < WIDE_WINDOWS_MAX and self._h2 is not None:
            Http2Connection.wide += 1
            self._is_wide = True
            self._h2.increment_flow_control_window(WIDE_WINDOW_BYTES - WINDOW_BYTES)
            self.write()

    def reset(self, stream: Stream, error: int = _CANCEL) -> None:
        stream.over()
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.reset_stream(stream.number, error)
        self.write()
        self._drop(stream)

    def finished(self, stream: Stream, *, is_read: bool) -> None:
        """Its reply is sent. A body that still arrives is told to stop."""
        if not is_read and stream.number in self._streams:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.reset_stream(stream.number, _NO_ERROR)
            self.write()
        if self._streams.pop(stream.number, None) is not None:
            self.calls = len(self._streams)
            self._answered += 1

    # ---- what arrives

    def _feed(self) -> None:
        started_at = time.monotonic()
        self._read_frames(started_at + SLICE_S)
        self._unread.compact()
        self.pump.used(time.monotonic() - started_at)
        self.write()

    def _read_frames(self, ends_at: float) -> None:
        while (head := self._next_frame()) is not None:
            try:
                for event in self._h2.take_frame(head, self._unread):
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

    def _next_frame(self) -> Head | None:
        """The head of a frame that is there as a whole and may be read."""
        if self._h2 is None and not self._greeted():
            return None
        head = self._unread.head()
        if head is None:
            return None
        is_header = head.kind in (HEADERS, CONTINUATION)
        if head.size > (HEADER_BYTES_MAX if is_header else FRAME_BYTES_MAX):
            self._shut_out(_FRAME_SIZE_ERROR)
            return None
        if len(self._unread) < HEAD_BYTES + head.size:
            return None
        if not self._is_admitted(head):
            self._shut_out(_CALM)
            return None
        return head

    def _is_admitted(self, head: Head) -> bool:
        if head.kind in (HEADERS, CONTINUATION):
            self._header_bytes = head.size + (self._header_bytes if head.kind == CONTINUATION else 0)
            if head.kind == HEADERS and head.flags & END_HEADERS:
                return True
            if self._header_bytes > HEADER_BYTES_MAX:
                return False
        elif head.kind == DATA and head.size:
            return True
        self._idle_frames += RESET_WEIGHT if head.kind == RST_STREAM else 1
        age_s = self.heard_at - self.opened_at
        return self._idle_frames < IDLE_FRAMES + IDLE_FRAMES_A_CALL * self._answered + IDLE_FRAMES_A_SECOND * age_s

    def _greeted(self) -> bool:
        start = self._unread.start(len(PREFACE))
        if not PREFACE.startswith(start):
            self.has_begun = True
            metrics.wrong_doors.labels(self.listener.transport).inc()
            if self._misdirected is not None and not self.transport.is_closing():
                self.transport.write(self._misdirected(self._unread.start(1024)))
            self._unread.clear()
            self.transport.close()
            return False
        if len(start) < len(PREFACE):
            return False
        self._begin()
        self._unread.skip(len(PREFACE))
        return True

    def _begin(self) -> None:
        self.has_begun = True
        self._h2 = Protocol(
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
            codes.INITIAL_WINDOW_SIZE: WIDE_WINDOW_BYTES,
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
        self.transport.write(frame(SETTINGS, b"".join(struct.pack(">HI", int(code), told[code]) for code in told)))

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
            if not stream.is_over and stream.number in self._streams and not stream.is_replying:
                self.reset(stream)

    def _drop(self, stream: Stream) -> None:
        self._streams.pop(stream.number, None)
        self.calls = len(self._streams)
        if stream.task is not None:
            stream.task.cancel()

    def write(self) -> None:
        if self._h2 is not None and (out := self._h2.data_to_send()) and not self.transport.is_closing():
            self.transport.write(out)

    def _shut_out(self, error: int) -> None:
        if not self.transport.is_closing():
            self.transport.write(frame(GOAWAY, struct.pack(">II", self._last_stream, error)))
        self._end_connection()

    def _end_connection(self) -> None:
        """Its calls end with it, as the protocol wants it."""
        metrics.connections_ended.labels(self.listener.transport, "protocol").inc()
        self.write()
        self._unread.clear()
        self.transport.close()
        self._h2 = None
        self.has_begun = True
        for stream in list(self._streams.values()):
            stream.is_over = True
            self._drop(stream)
