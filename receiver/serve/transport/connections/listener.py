"""A listening socket and its connections: their number, their age and their silence are bounded, for every protocol."""

import asyncio
import contextlib
import errno
import random
import resource
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, cast

import structlog

from receiver import metrics
from receiver.serve.call import Transport
from shared.errors import WrongSetting
from shared.logs import error_facts

log = structlog.get_logger(__name__)

FIRST_BYTES_S = 10.0  # from the handshake to the first whole request
HANDSHAKE_S = 5.0
WRITE_STALL_S = 10.0  # then a caller that does not read its replies is cut off
AGE_S = (270.0, 330.0)  # then a connection ends, so that a client's next one may reach a new replica
GOODBYE_S = 10.0  # for the open calls of a connection that is about to end
QUIET_S = 1.0  # a connection without a byte for so long may be closed to make room for a new one
TICK_S = 0.5
FAREWELL_S = 0.02
BACKLOG = 1024
ACCEPTED_AT_ONCE = 16
ACCEPT_PAUSE_S = 0.05
WRITE_BYTES_MAX = 64 * 1024  # unread replies; then nothing more is read from that caller
CONNECTION_BYTES = 24 * 1024  # memory of an HTTP/2 connection after its first call, without its buffers
FILES_SPARE = 256  # for brokers, certificates, metrics


class Connection(asyncio.Protocol):
    """The common part of every connection. A subclass adds the protocol."""

    transport: asyncio.Transport

    def __init__(self, listener: "Listener") -> None:
        self.listener = listener
        self.opened_at = self.heard_at = time.monotonic()
        self.goes_at = self.opened_at + random.uniform(*AGE_S)  # noqa: S311  not a secret
        self.has_begun = False
        self.calls = 0
        self._write_stalled_at: float | None = None
        self._told_to_go_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_BYTES_MAX)
        self.listener.opened(self)

    def connection_lost(self, _: Exception | None) -> None:
        self.listener.forget(self)

    def pause_writing(self) -> None:
        self._write_stalled_at = time.monotonic()

    def resume_writing(self) -> None:
        self._write_stalled_at = None

    @property
    def is_writable(self) -> bool:
        return self._write_stalled_at is None

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError

    @property
    def held_bytes(self) -> int:
        """Memory of the connection, of replies that its caller has not read, and of bytes that nothing has read yet."""
        return CONNECTION_BYTES + self.transport.get_write_buffer_size() + self.unread_bytes

    @property
    def unread_bytes(self) -> int:
        raise NotImplementedError

    def say_goodbye(self) -> None:
        """Tell the caller to open another connection. The calls that run are answered."""

    def end(self, why: metrics.ConnectionEnd) -> None:
        metrics.connections_ended.labels(self.listener.transport, why).inc()
        self.transport.abort()

    def tick(self, now: float) -> None:
        """Check the deadlines of the connection. Called twice a second."""
        if not self.has_begun and now - self.opened_at > FIRST_BYTES_S:
            self.end("silent")
        elif self._write_stalled_at is not None and now - self._write_stalled_at > WRITE_STALL_S:
            self.end("stalled")
        elif self._told_to_go_at is not None:
            if not self.calls or now - self._told_to_go_at > GOODBYE_S:
                self.transport.close()
            if now - self._told_to_go_at > 2 * GOODBYE_S:
                self.transport.abort()
        elif now > self.goes_at:
            self.depart()

    def depart(self) -> None:
        """Finish the open calls and close."""
        if self._told_to_go_at is None:
            self._told_to_go_at = time.monotonic()
            self.say_goodbye()


class Listener:
    """Accepts connections until it is stopped."""

    def __init__(
        self,
        transport: Transport,
        *,
        connections_max: int,
        connect: Callable[["Listener"], Connection],
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self.transport: Transport = transport
        self._connections_max = connections_max
        self._connect = connect
        self._tls = tls
        self._socket: socket.socket | None = None
        self._connections: dict[Connection, None] = {}
        self._greeting: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None]
        self.held_bytes = 0  # of all connections, as of the last tick

    def bind(self, host: str, port: int, *, variable: str, is_shared: bool) -> None:
        """Listen on the address.

        Raises:
            WrongSetting: the address cannot be listened on.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            made = socket.socket(family, kind, protocol)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6 and host == "::":
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.bind(address)
            made.listen(BACKLOG)
            made.settimeout(0)
        except OSError as error:
            raise WrongSetting(f"{variable}: {host}:{port} cannot be listened on: {error.strerror}") from error
        self._socket = made

    async def run(self) -> None:
        """Accept and check connections until cancelled. No client can end it; any other error is raised."""
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        loop.add_reader(self._socket, self._accept)
        try:
            while True:
                await asyncio.wait({self._failed}, timeout=TICK_S)
                if self._failed.done():
                    self._failed.result()
                now = time.monotonic()
                for connection in list(self._connections):
                    connection.tick(now)
                self.held_bytes = sum(connection.held_bytes for connection in self._connections)
        finally:
            self.refuse_connections()

    def refuse_connections(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    async def close(self, grace_s: float) -> None:
        """Say goodbye to every connection, and close those that are still open after `grace_s`."""
        for connection in list(self._connections):
            connection.depart()
        ends_at = time.monotonic() + grace_s
        while any(connection.calls for connection in self._connections) and time.monotonic() < ends_at:  # noqa: ASYNC110
            await asyncio.sleep(FAREWELL_S)
        await asyncio.sleep(FAREWELL_S)  # for the last bytes on their way
        for connection in list(self._connections):
            connection.transport.abort()
        for task in self._greeting:
            task.cancel()

    def opened(self, connection: Connection) -> None:
        self._connections[connection] = None

    def forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    @property
    def has_tls(self) -> bool:
        return self._tls is not None

    @property
    def connections(self) -> int:
        return len(self._connections)

    def _accept(self) -> None:
        """Accept several connections in one round of the loop, because rounds are slow under a flood."""
        assert self._socket is not None
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of files, or the caller left before it was let in
                log.warning("accept_failed", transport=self.transport, **error_facts(error))
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause()
                    return
                continue
            try:
                self._admit(accepted)
            except Exception as error:  # noqa: BLE001  a bug: the process ends and is started again
                if not self._failed.done():
                    self._failed.set_exception(error)
                return

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)  # type: ignore[arg-type]  # only called while it is open
        loop.call_later(ACCEPT_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _admit(self, accepted: socket.socket) -> None:
        if not self._has_room():
            accepted.close()
            metrics.connections_ended.labels(self.transport, "full").inc()
            return
        accepted.setblocking(False)  # noqa: FBT003
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(self._greet(accepted))
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)

    async def _greet(self, accepted: socket.socket) -> None:
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {"ssl": self._tls(), "ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": 1.0}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self._connect(self), accepted, **options)
        except (OSError, ssl.SSLError, asyncio.CancelledError):
            metrics.connections_ended.labels(self.transport, "protocol").inc()
            with contextlib.suppress(OSError):
                accepted.close()

    def _has_room(self) -> bool:
        """Whether a connection may be accepted.

        When all places are taken, closes the oldest connection without a request, else the one that is quiet for
        longest.
        """
        if len(self._connections) + len(self._greeting) < self._connections_max:
            return True
        now = time.monotonic()
        silent = next((each for each in self._connections if not each.has_begun), None)
        leaves = silent or min(self._connections, key=lambda each: (each.calls > 0, each.heard_at), default=None)
        if leaves is None or (leaves is not silent and now - leaves.heard_at < QUIET_S):
            return False
        leaves.end("full")
        self.forget(leaves)
        return True


def raise_file_limit() -> int:
    """Raise the limit of open files to the system's maximum, and return how many connections fit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, soft - FILES_SPARE) if soft != resource.RLIM_INFINITY else 1_000_000
