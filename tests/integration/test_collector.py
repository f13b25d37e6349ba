"""A real Collector in front of the receiver: OTLP/HTTP, the shipped file, and a trace as one request.

Long: its program is built from the modules that tests/support/collector names. Without Go the test fails, in the job of
the workflow that has it.
"""

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import orjson
import pytest

from deploy.local.kafka import KafkaBroker
from deploy.local.server import Launch, Server
from shared.identity import hash_id
from support.encoding import SERVER, request_bytes, resource_bytes, span_bytes
from support.http import post
from support.otlp import features, request
from support.receiver import EXPORT, ROOT, Receiver, records_of, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PIPELINE = """
extensions:
  health_check: {endpoint: "127.0.0.1:${env:COLLECTOR_HEALTH_PORT}"}
receivers:
  otlp:
    protocols:
      grpc: {endpoint: "127.0.0.1:${env:COLLECTOR_GRPC_PORT}"}
      http: {endpoint: "127.0.0.1:${env:COLLECTOR_HTTP_PORT}"}
processors:
  memory_limiter: {check_interval: 1s, limit_mib: 256}
  batch: {timeout: 100ms}
  groupbytrace: {wait_duration: 1s}
exporters:
  otlp_http: {endpoint: "${env:RECEIVER_ENDPOINT}"}
service:
  extensions: [health_check]
  pipelines:
    traces: {receivers: [otlp], processors: [PROCESSORS], exporters: [otlp_http]}
  telemetry:
    metrics: {level: none}
    logs: {level: warn}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Collector with no other component than these tests need."""
    built = tmp_path_factory.mktemp("collector") / "otelcol"
    subprocess.run(["go", "build", "-o", built, "."], cwd=ROOT / "tests/support/collector", check=True, timeout=800)
    return built


class Collector(Server):
    """Takes OTLP in on ports of its own. Its log holds nothing below a warning."""

    name = "otelcol"

    def __init__(self, folder: Path, program: Path, config: Path, environment: Mapping[str, str]) -> None:
        super().__init__(folder, {"grpc": None, "http": None, "health": None})
        self._command = (str(program), f"--config={config}")
        self._environment = environment

    def _prepare(self) -> Launch:
        ports = {f"COLLECTOR_{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        return Launch(self._command, {"PATH": "/usr/bin:/bin", **self._environment, **ports}, self.folder)

    def _answers(self) -> bool:
        return True  # it listens, or we would not be asked


@pytest.fixture
def receiver(kafka: KafkaBroker, tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(kafka.bootstrap_servers, tmp_path).start()
    yield made
    made.kill()


def pipeline(folder: Path, *processors: str) -> Path:
    config = folder / "collector.yaml"
    config.write_text(PIPELINE.replace("PROCESSORS", ", ".join(processors)))
    return config


async def sent(collector: Collector, *bodies: bytes) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{collector.port_of('grpc')}") as channel:
        for body in bodies:
            await channel.unary_unary(EXPORT)(body, timeout=10)


async def arrived(kafka: KafkaBroker, receiver: Receiver, count: int) -> dict[bytes, dict[str, object]]:
    """The topic's records by key, once there are so many."""

    async def found() -> list[object] | None:
        records = await records_of(kafka, receiver.topic)
        return records if len(records) >= count else None

    return {record.key: orjson.loads(record.value) for record in await until(found, 30, f"{count} records")}


async def test_its_exporter_for_http_brings_every_span(
    kafka: KafkaBroker, tmp_path: Path, receiver: Receiver, program: Path
) -> None:
    """The other of its two exporters, and its default compression, in protobuf."""
    await receiver.ready()
    address = {"RECEIVER_ENDPOINT": f"http://127.0.0.1:{receiver.http_port}"}
    spans = features(500)
    with Collector(tmp_path / "c", program, pipeline(tmp_path, "memory_limiter", "batch"), address) as collector:
        await sent(collector, *(request(spans[at : at + 50]) for at in range(0, 500, 50)))
        answer = await post(collector.port_of("http"), request(features(1)))
        assert answer.status == 200
        found = await arrived(kafka, receiver, 501)
        assert {str(span.id).encode() for span in spans} <= found.keys()
        assert collector.log.read_text() == ""
    assert await receiver.metric("receiver_requests_total", transport="http", code="OK") > 0


async def test_the_shipped_file_runs_as_it_stands(
    kafka: KafkaBroker, tmp_path: Path, receiver: Receiver, program: Path
) -> None:
    """Its queue on disk too. A key of its own dialect that a new version has renamed would stop the Collector."""
    await receiver.ready()
    settings = {"RECEIVER_ENDPOINT": f"127.0.0.1:{receiver.port}", "COLLECTOR_QUEUE_FOLDER": str(tmp_path / "queue")}
    with Collector(tmp_path / "c", program, ROOT / "deploy/otel-collector.yaml", settings) as collector:
        await sent(collector, request(features(100)))
        assert len(await arrived(kafka, receiver, 100)) == 100
        assert collector.log.read_text() == ""


@pytest.mark.parametrize("processor", ["groupbytrace", "memory_limiter"])
async def test_groupbytrace_makes_a_trace_one_request(
    kafka: KafkaBroker, tmp_path: Path, receiver: Receiver, program: Path, processor: str
) -> None:
    """What docs/send-your-spans.md recommends where a trace's spans come from several processes; and without it."""
    await receiver.ready()
    served = span_bytes({"http.request.method": "GET", "http.route": "/orders"}, kind=SERVER, span_id=b"\1" * 8)
    named = span_bytes({"user.id": "anna-4711"}, span_id=b"\2" * 8, parent=b"\1" * 8)
    bodies = [request_bytes((resource_bytes({"service.name": "shop"}), [raw])) for raw in (served, named)]
    address = {"RECEIVER_ENDPOINT": f"http://127.0.0.1:{receiver.http_port}"}
    with Collector(tmp_path / "c", program, pipeline(tmp_path, processor), address) as collector:
        await sent(collector, *bodies)
        [record] = (await arrived(kafka, receiver, 1)).values()
        assert collector.log.read_text() == ""
    assert record.get("user_id") == (hash_id("anna-4711") if processor == "groupbytrace" else None)
