"""A real agent between a sender and the receiver: rotel, a process that takes OTLP in and forwards it."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from deploy.local.server import Launch, Server


class Agent(Server):
    """Takes OTLP/gRPC and OTLP/HTTP on ports of its own, and sends OTLP/gRPC with gzip to `receiver_port`.

    What the receiver does not take it sends again, for five minutes as its default is. Its first pause is 5 s by
    default and here shorter, so that a test need not wait for it.
    """

    name = "rotel"

    def __init__(self, folder: Path, receiver_port: int, options: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, {"grpc": None, "http": None})
        self._options = {
            "otlp-grpc-endpoint": "",
            "otlp-http-endpoint": "",
            "exporter": "otlp",
            "otlp-exporter-endpoint": f"http://127.0.0.1:{receiver_port}",
            "otlp-exporter-protocol": "grpc",
            "otlp-exporter-compression": "gzip",
            "otlp-exporter-retry-initial-backoff": "200ms",
            "otlp-exporter-retry-max-backoff": "1s",
            "batch-timeout": "50ms",
            "pid-file": str(self.folder / "rotel.pid"),
            "log-file": str(self.folder / "rotel-agent.log"),
            **(options or {}),
        }

    def _prepare(self) -> Launch:
        endpoints = {f"otlp-{name}-endpoint": f"127.0.0.1:{self.port_of(name)}" for name in ("grpc", "http")}
        options = [part for name, value in {**self._options, **endpoints}.items() for part in (f"--{name}", value)]
        return Launch((str(binary()), "start", *options), {"PATH": "/usr/bin:/bin"}, self.folder)

    def _answers(self) -> bool:
        return True  # it listens, or we would not be asked


def binary() -> Path:
    """The agent's program, out of its wheel. Raises where it is missing: no test of it is skipped for that."""
    found = importlib.util.find_spec("rotel")
    assert found is not None, "rotel is missing: make setup installs it"
    assert found.origin is not None
    program = Path(found.origin).with_name("rotel-agent")
    assert program.is_file(), f"the wheel of rotel holds no {program.name}"
    return program
