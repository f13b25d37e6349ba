"""One call on an HTTP/2 connection: its headers, its body piece by piece, and its reply."""

import asyncio
import time
from collections.abc import Hashable, Sequence
from typing import Protocol

from receiver.serve.transport.connections.incoming import Incoming
from receiver.serve.transport.connections.protocol import WholeReply

REPLY_STALL_S = 10.0  # for a reply that waits for the caller's window
Headers = list[tuple[bytes, bytes]]


class StreamConnection(Hashable, Protocol):
    """What a stream asks of its connection."""

    def send_headers(self, stream: int, headers: Headers, *, ends: bool) -> None: ...
    def send_data(self, stream: int, message: bytes) -> None: ...
    def send_whole(self, stream: int, reply: WholeReply) -> bool: ...
    def write(self) -> None: ...
    def window_of(self, stream: int) -> int: ...
    def give_back(self, size: int, stream: int) -> None: ...
    def widen(self) -> None: ...
    def reset(self, stream: "Stream") -> None: ...
    def finished(self, stream: "Stream", *, is_read: bool) -> None: ...


class Stream(Incoming[tuple[bytes, int]]):
    """One call on a connection: its headers, its body piece by piece, and its reply."""

    def __init__(self, connection: StreamConnection, number: int, headers: Headers) -> None:
        super().__init__(first_of(headers))
        self.connection = connection
        self.number = number
        self.headers = headers
        self.started_at = time.monotonic()
        self.task: asyncio.Task[None] | None = None
        self.is_over = False  # nothing more may be sent
        self._unasked_bytes = 0
        self._waiting_out: list[tuple[bytes, Headers | None]] = []  # data, and the trailers that end the stream
        self._stalled_at: float | None = None

    @property
    def is_replying(self) -> bool:
        """Part of the reply waits for the caller's window."""
        return bool(self._waiting_out)

    @property
    def unread_bytes(self) -> int:
        """What arrived and was not asked for yet."""
        return sum(size for _, size in self._pieces)

    async def receive(self) -> bytes:
        """The next piece of the body; empty at its end. What was given before is taken from the window.

        Raises:
            whatever `fail` was called with.
        """
        self.give_back()
        await self._arrived()
        if not self._pieces:
            return b""
        piece = self._pieces[0][0] if len(self._pieces) == 1 else b"".join(piece for piece, _ in self._pieces)
        self._unasked_bytes = sum(size for _, size in self._pieces)
        self._pieces.clear()
        return piece

    def widen(self) -> None:
        """A large body is on its way."""
        self.connection.widen()

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

    def send_whole(self, reply: WholeReply) -> None:
        """All of a reply, and the end of the call."""
        if self.is_over:
            return
        if self._waiting_out or not self.connection.send_whole(self.number, reply):
            self.send(list(reply.headers), reply.message, list(reply.trailers))
            return
        self.over()
        self.connection.write()
        self.connection.finished(self, is_read=self.is_complete)

    def flush(self) -> None:
        """Send what the window allows."""
        self._send_waiting()
        self.connection.write()
        if self.is_over:
            self.connection.finished(self, is_read=self.is_complete)

    def _send_waiting(self) -> None:
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

    def tick(self, now: float) -> None:
        if self._stalled_at is not None and now - self._stalled_at > REPLY_STALL_S:
            self.connection.reset(self)

    def arrived(self, piece: bytes, size: int) -> None:
        if self.is_over or self._error is not None:
            self.connection.give_back(size, self.number)
            return
        self._pieces.append((piece, size))
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


def first_of(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """By name. Of headers that are repeated the first one counts."""
    return dict(reversed(headers))
