"""/livez, /readyz and /metrics, from a thread of their own, so that a blocked loop is seen and not hidden."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for

ANSWERED_WITHIN_S = 10.0
LOOP_BEAT_WITHIN_S = 10.0


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


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 5  # seconds a caller may take to send its request

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the base class's
        pass


def serve(health: Health, *, host: str, port: int, registry: Callable[[], CollectorRegistry]) -> Callable[[], None]:
    """Start serving; returns what stops it. Port 0 is off.

    Raises:
        OSError: the port is taken.
    """
    if port == 0:
        return lambda: None

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                metrics: Iterable[bytes] = make_wsgi_app(registry())(environ, start_response)
                return metrics
            case "/livez":
                return answer({} if health.is_live else {"loop": "blocked"}, start_response)
            case "/readyz":
                return answer(health.why_not_ready(), start_response)
            case _:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"try /livez, /readyz or /metrics\n"]

    def answer(why_not: dict[str, str], start_response: Any) -> Iterable[bytes]:
        status = "503 Service Unavailable" if why_not else "200 OK"
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps({"ok": not why_not, "why_not": why_not}).encode() + b"\n"]

    server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True, name="probes")
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=2)

    return stop


def ready_url(host: str, port: int) -> str:
    """The /readyz of a process on this machine."""
    return _url(host, port, "readyz")


def metrics_url(host: str, port: int) -> str:
    """The /metrics of a process on this machine."""
    return _url(host, port, "metrics")


def _url(host: str, port: int, page: str) -> str:
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}/{page}"  # noqa: S104


def metrics_of(url: str) -> str:
    """What a process serves at /metrics.

    Raises:
        OSError: nobody answered, or not with 200.
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
    except OSError as error:
        return False, f"not reached: {type(error).__name__}"
