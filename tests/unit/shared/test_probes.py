"""/livez, /readyz and /metrics answer whatever other callers of the port do."""

import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
from prometheus_client import CollectorRegistry, Gauge

from deploy.local.server import free_port
from shared import probes

MEBIBYTE = 1024 * 1024


@pytest.fixture
def port() -> Iterator[int]:
    registry = CollectorRegistry()
    Gauge("answer", "The answer to the question", registry=registry).set(42)
    port = free_port()
    stop = probes.serve(probes.Health(), host="127.0.0.1", port=port, registry=lambda: registry)
    yield port
    stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def get(port: int, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=4) as reply:
        return reply.status, reply.read().decode()


def test_each_page_says_what_it_is_asked(port: int) -> None:
    """Prometheus, kubelet and people read them."""
    assert get(port, "/livez") == (200, '{"ok": true, "why_not": {}}\n')
    assert get(port, "/readyz?verbose")[0] == 200
    status, text = get(port, "/metrics")
    assert status == 200
    assert "answer 42.0" in text
    assert "# EOF" in get(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")[1]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(port, "/secret")


def test_callers_who_say_nothing_keep_no_probe_out(port: int) -> None:
    """A hundred of them would have kubelet kill a healthy process."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        for _ in range(20):
            started_at = time.monotonic()
            assert get(port, "/livez")[0] == 200
            assert time.monotonic() - started_at < 1


def test_headers_cost_no_memory(port: int) -> None:
    """A hundred connections of 98 lines of 65,000 bytes each took 600 MiB."""
    before = psutil.Process().memory_info().rss
    line = b"x: " + b"y" * 65_000 + b"\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            caller = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1))
            with contextlib.suppress(OSError):
                caller.sendall(b"GET /metrics HTTP/1.1\r\n" + line)
        assert psutil.Process().memory_info().rss - before < 16 * MEBIBYTE
        assert get(port, "/livez")[0] == 200


def test_a_caller_who_takes_too_long_is_left(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte a second is a request that never ends."""
    monkeypatch.setattr(probes, "SECONDS_MAX", 0.5)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as caller:
        started_at = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(30):
                caller.sendall(b"G")
                time.sleep(0.1)
            pytest.fail("it still listens")
        assert time.monotonic() - started_at < 2


def test_an_answer_that_is_not_http_is_not_ready() -> None:
    """A port of the gRPC server, say. A traceback would hide which address was asked."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def speak() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00 SETTINGS\r\n")

        speaker = threading.Thread(target=speak)
        speaker.start()
        answer = probes.ask(f"http://127.0.0.1:{other.getsockname()[1]}/readyz")
        speaker.join(5)
    assert answer == (False, "not reached: BadStatusLine")


def test_a_host_name_that_cannot_be_looked_up_is_not_ready() -> None:
    assert probes.ask(f"http://{'a' * 64}/readyz") == (False, "not reached: UnicodeError")
