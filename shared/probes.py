"""/livez, /readyz and /metrics, from threads of their own, so that a blocked loop is seen and not hidden.

Bounded: so many connections, header bytes and seconds; the oldest connection gives way to a new one, so that a
caller who says nothing keeps no probe out.
"""

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import choose_encoder

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for

ANSWERED_WITHIN_S = 10.0
LOOP_BEAT_WITHIN_S = 10.0
CONNECTIONS_MAX = 16
BACKLOG = 128
HEAD_BYTES_MAX = 8 * 1024
SECONDS_MAX = 5.0  # for a request and its reply


class Health:
    """What the probes say. Live looks at the loop only; ready at the servers behind it as well.

    Written by the loop, read by the probes' thread: single assignments, so no lock.
    """

    def __init__(self, *needs: str) -> None:
        self._answered_at: dict[str, float] = dict.fromkeys(needs, float("-inf"))
        self._why_not: dict[str, str] = {}
        self._beat_at = time.monotonic()

    def beat(self) -> None:
        """The loop runs."""
        self._beat_at = time.monotonic()

    def answered(self, need: str) -> None:
        """The server `need` answered just now."""
        self._answered_at[need] = time.monotonic()
        self._why_not.pop(need, None)

    def block(self, what: str, why: str) -> None:
        """Not ready until `unblock`, whatever answers: draining, breaker open, wrong topic."""
        self._why_not[what] = why

    def unblock(self, what: str) -> None:
        self._why_not.pop(what, None)

    @property
    def is_live(self) -> bool:
        return time.monotonic() - self._beat_at < LOOP_BEAT_WITHIN_S

    def why_not_ready(self) -> dict[str, str]:
        """Empty when ready."""
        now = time.monotonic()
        silent = {
            need: f"no answer within {ANSWERED_WITHIN_S:.0f} s"
            for need, at in list(self._answered_at.items())
            if now - at > ANSWERED_WITHIN_S
        }
        return silent | dict(self._why_not)


def serve(health: Health, *, host: str, port: int, registry: Callable[[], CollectorRegistry]) -> Callable[[], None]:
    """Start serving; returns what stops it. Port 0 is off.

    Raises:
        OSError: the port is taken.
    """
    if port == 0:
        return lambda: None
    server = _Server(health, registry)
    server.listen(host, port)
    return server.stop


class _Server:
    def __init__(self, health: Health, registry: Callable[[], CollectorRegistry]) -> None:
        self._health = health
        self._registry = registry
        self._socket: socket.socket
        self._open: dict[socket.socket, None] = {}  # in order of their coming
        self._lock = threading.Lock()
        self._is_over = False

    def listen(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        threading.Thread(target=self._accept, daemon=True, name="probes").start()

    def stop(self) -> None:
        self._is_over = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()

    def _accept(self) -> None:
        while not self._is_over:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                time.sleep(0.05)  # out of files, or stopped
                continue
            with self._lock:
                oldest = next(iter(self._open)) if len(self._open) >= CONNECTIONS_MAX else None
                if oldest is not None:
                    del self._open[oldest]
                    with contextlib.suppress(OSError):
                        oldest.shutdown(socket.SHUT_RDWR)  # its thread ends with it
                self._open[connection] = None
            threading.Thread(target=self._answer, args=(connection,), daemon=True, name="probe").start()

    def _answer(self, connection: socket.socket) -> None:
        ends_at = time.monotonic() + SECONDS_MAX
        try:
            with connection:
                head = _head(connection, ends_at)
                if head is not None:
                    status, kind, body = self._reply(head)
                    text = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    connection.settimeout(max(0.01, ends_at - time.monotonic()))
                    connection.sendall(f"{text}Connection: close\r\n\r\n".encode() + body)
        except OSError:
            pass  # the caller left, or took too long
        finally:
            with self._lock:
                self._open.pop(connection, None)

    def _reply(self, head: bytes) -> tuple[str, str, bytes]:
        method, _, rest = head.partition(b" ")
        match method, rest.partition(b" ")[0].partition(b"?")[0]:
            case b"GET" | b"HEAD", b"/metrics":
                encoder, kind = choose_encoder(_accepted(head))
                return "200 OK", kind, encoder(self._registry())
            case b"GET" | b"HEAD", b"/livez":
                return _judged({} if self._health.is_live else {"loop": "blocked"})
            case b"GET" | b"HEAD", b"/readyz":
                return _judged(self._health.why_not_ready())
            case _:
                return "404 Not Found", "text/plain", b"try /livez, /readyz or /metrics\n"


def _head(connection: socket.socket, ends_at: float) -> bytes | None:
    """Request line and headers; None when they are too long, or the caller leaves."""
    head = b""
    while b"\r\n\r\n" not in head:
        connection.settimeout(max(0.01, ends_at - time.monotonic()))
        piece = connection.recv(HEAD_BYTES_MAX + 1 - len(head))
        head += piece
        if not piece or len(head) > HEAD_BYTES_MAX or time.monotonic() > ends_at:
            return None
    return head


def _accepted(head: bytes) -> str:
    lines = (line.partition(b":") for line in head.split(b"\r\n"))
    return next((value.decode("latin-1").strip() for name, _, value in lines if name.lower() == b"accept"), "")


def _judged(why_not: dict[str, str]) -> tuple[str, str, bytes]:
    status = "503 Service Unavailable" if why_not else "200 OK"
    return status, "application/json", json.dumps({"ok": not why_not, "why_not": why_not}).encode() + b"\n"


def ready_url(host: str, port: int) -> str:
    """The /readyz of a process on this machine."""
    return _url(host, port, "readyz")


def metrics_url(host: str, port: int) -> str:
    """The /metrics of a process on this machine."""
    return _url(host, port, "metrics")


def _url(host: str, port: int, page: str) -> str:
    host = _local(host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{page}"


def _local(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104


def is_listening(host: str, port: int) -> bool:
    """Whether a process on this machine accepts connections there."""
    try:
        with socket.create_connection((_local(host), port), timeout=3):
            return True
    except OSError:
        return False


def metrics_of(url: str) -> str:
    """What a process serves at /metrics.

    Raises:
        OSError: no answer, or another status than 200.
        ValueError: that is no URL.
    """
    with urllib.request.urlopen(url, timeout=3) as reply:  # noqa: S310  the operator's own address
        text: str = reply.read().decode()
    return text


def ask(url: str) -> tuple[bool, str]:
    """Whether the process there is ready, and what it says."""
    try:
        with urllib.request.urlopen(url, timeout=3) as reply:  # noqa: S310  the operator's own address
            return True, reply.read().decode().strip()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return False, refusal.read().decode().strip()
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # no answer, not HTTP, no name or text
        return False, f"not reached: {type(error).__name__}"
