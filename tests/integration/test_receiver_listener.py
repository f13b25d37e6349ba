"""A listener that has ended is a process that has ended: a supervisor restarts what is dead, not what looks alive."""

from pathlib import Path

import pytest

from deploy.local.kafka import KafkaBroker
from support import http2
from support.otlp import features, request
from support.receiver import ROOT, Receiver, export

# A bug of ours, at the third connection of each port.
BROKEN = """
from receiver.serve.transport.connections import listener
accepted = {}
whole = listener.Listener._admit
def broken(self, connection):
    accepted[self.transport] = accepted.get(self.transport, 0) + 1
    if accepted[self.transport] == 3:
        raise RuntimeError("confidential")
    whole(self, connection)
listener.Listener._admit = broken
"""


@pytest.mark.parametrize("port", ["port", "http_port"])
async def test_a_listener_that_fails_ends_the_process(kafka: KafkaBroker, tmp_path: Path, port: str) -> None:
    """One packet had ended grpc's server, /livez and /readyz said ok, and nothing was restarted."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}").start()
    try:
        await receiver.ready()
        for _ in range(3):
            await http2.heard(getattr(receiver, port), b"GET / HTTP/1.1\r\n\r\n", 1)
        assert await receiver.ended(10) not in (0, 2)
        assert receiver.log_lines("process_crashed")
        assert "confidential" not in receiver.log_text()
    finally:
        receiver.kill()


async def test_a_burst_of_wrong_connections_leaves_both_ports_open(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Whatever was sent before, the next connection is served."""
    receiver = Receiver(kafka.bootstrap_servers, tmp_path).start()
    try:
        await receiver.ready()
        for raw in (
            b"",
            b"\xff" * 100,
            http2.PREFACE,
            http2.hello() + http2.open_call(p_path="/\xff"),
            b"\x16\x03\x01",
        ):
            for port in (receiver.port, receiver.http_port):
                await http2.heard(port, raw, 0.2)
        async with receiver.channel() as channel:
            assert (await export(channel, request(features(1)), timeout_s=3)).code == "OK"
        assert receiver.exit_code is None
    finally:
        receiver.kill()
