"""Spans about the receiver itself: to a real OTLP collector, never to itself, and none unless asked for."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from deploy.local.kafka import KafkaBroker
from deploy.local.server import free_port
from support.otlp import features, request
from support.receiver import ROOT, Receiver, export, until


class Collector(TraceServiceServicer):
    """Keeps every request that it is sent."""

    def __init__(self) -> None:
        self.port = free_port()
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def Export(  # noqa: N802  gRPC's name
        self, request: ExportTraceServiceRequest, context: object
    ) -> ExportTraceServiceResponse:
        self.requests.append(request)
        return ExportTraceServiceResponse()

    def spans(self, name: str = "") -> list[Span]:
        groups = [group for sent in self.requests for group in sent.resource_spans]
        spans = [span for group in groups for scope in group.scope_spans for span in scope.spans]
        return [span for span in spans if not name or span.name == name]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    server = grpc.aio.server()
    add_TraceServiceServicer_to_server(made, server)
    server.add_insecure_port(f"127.0.0.1:{made.port}")
    await server.start()
    yield made
    await server.stop(0)


@asynccontextmanager
async def receiving(
    kafka: KafkaBroker, folder: Path, *, endpoint: str = "", ratio: float = 1, **common: str
) -> AsyncIterator[tuple[Receiver, grpc.aio.Channel]]:
    """A receiver that is ready, and a channel to it."""
    tracing = {"TRACING_ENDPOINT": endpoint, "TRACING_SAMPLE_RATIO": ratio}
    receiver = Receiver(kafka.bootstrap_servers, folder, **tracing, **common).start()
    try:
        await receiver.ready()
        async with receiver.channel() as channel:
            yield receiver, channel
    finally:
        receiver.kill()


def attributes(span: Span) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def test_each_request_is_a_span_with_its_stages_and_nothing_of_its_payload(
    kafka: KafkaBroker, tmp_path: Path, collector: Collector
) -> None:
    """Where a slow reply spent its time, without becoming a second way for ids to leak."""
    async with receiving(kafka, tmp_path, endpoint=collector.endpoint) as (receiver, channel):
        body = request(features(7, seed=1, name="canary-feature", user="canary-user"))
        assert (await export(channel, body)).code == "OK"
        assert (await export(channel, b"\xff\xff")).code == "INVALID_ARGUMENT"

        async def have_come() -> bool:
            return len(collector.spans("Export")) == 2

        await until(have_come, 20, "both requests as spans")
        stored, refused = sorted(collector.spans("Export"), key=lambda span: span.start_time_unix_nano)
        assert attributes(stored) == {
            "rpc.system.name": "grpc",
            "rpc.method": "opentelemetry.proto.collector.trace.v1.TraceService/Export",
            "rpc.response.status_code": "OK",
            "telemetry.request.bytes": len(body),
            "telemetry.request.spans": 7,
            "telemetry.request.events": 7,
            "telemetry.request.rejected": 0,
        }
        assert attributes(refused)["rpc.response.status_code"] == "INVALID_ARGUMENT"
        stages = {
            parent.span_id: [span.name for span in collector.spans() if span.parent_span_id == parent.span_id]
            for parent in (stored, refused)
        }
        assert list(stages.values()) == [["read", "translate", "publish"], ["read", "translate"]]
        for span in collector.spans():
            assert stored.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        sent = b"".join(each.SerializeToString() for each in collector.requests)
        assert b"canary" not in sent
        assert b"telemetry-receiver" in sent
        assert receiver.log_lines("tracing_started")


async def test_nothing_is_sent_unless_it_is_asked_for(kafka: KafkaBroker, tmp_path: Path, collector: Collector) -> None:
    """The variables of SDKs are often set for a whole machine, to the receiver's own address: they must not count."""
    common = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_TRACES_EXPORTER": "otlp"}
    async with receiving(kafka, tmp_path, **common) as (receiver, channel):
        for _ in range(5):
            assert (await export(channel, request(features(3)))).code == "OK"
        assert await receiver.stop() == 0  # which would have sent what waited
        assert collector.requests == []


async def test_only_the_share_that_is_asked_for_is_sampled(
    kafka: KafkaBroker, tmp_path: Path, collector: Collector
) -> None:
    """At thousands of requests a second a span for each would be a second product."""
    async with receiving(kafka, tmp_path, endpoint=collector.endpoint, ratio=0.5) as (receiver, channel):
        for _ in range(100):
            assert (await export(channel, request(features(1)))).code == "OK"
        assert await receiver.stop() == 0  # sends what waits
        assert 20 <= len(collector.spans("Export")) <= 80  # outside of it once in a billion runs


async def test_spans_that_come_back_to_their_receiver_make_no_more_of_them(
    kafka: KafkaBroker, tmp_path: Path, collector: Collector
) -> None:
    """A Collector that forwards to the receiver makes a ring; each turn of it would feed the next, for ever."""
    async with receiving(kafka, tmp_path, endpoint=collector.endpoint) as (receiver, channel):
        assert (await export(channel, request(features(3)))).code == "OK"

        async def has_come() -> bool:
            return bool(collector.requests)

        await until(has_come, 20, "a span about the first request")
        for _ in range(20):
            assert (await export(channel, collector.requests[0].SerializeToString())).code == "OK"
        assert (await export(channel, request(features(3)))).code == "OK"
        assert await receiver.stop() == 0  # sends what waits
        assert len(collector.spans("Export")) == 2
        assert len(collector.spans()) == 2 * (1 + 3)  # each with its stages


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "own-name"])
def test_an_endpoint_that_is_the_receiver_itself_stops_the_start(host: str, tmp_path: Path) -> None:
    """It is the easiest mistake to make: the default port of both is 4317."""
    port = free_port()
    if host == "own-name":
        host = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    done = subprocess.run(
        [sys.executable, "-m", "receiver"],
        env={"PYTHONPATH": str(ROOT), "PORT": str(port), "TRACING_ENDPOINT": f"http://{host}:{port}", **QUIET},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("receiver: TRACING_ENDPOINT: that is this receiver itself")


QUIET = {"RECEIVER_METRICS_PORT": "0"}
WITHOUT = "import sys; sys.modules['opentelemetry.sdk'] = None; from receiver.__main__ import main; main()"


def test_without_the_libraries_the_start_says_what_to_install(tmp_path: Path) -> None:
    """A stack trace of an import is no answer."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env={"PYTHONPATH": str(ROOT), "TRACING_ENDPOINT": "http://127.0.0.1:9", **QUIET},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "TRACING_ENDPOINT: opentelemetry.sdk" in done.stderr.splitlines()[-1]
    assert "pip install opentelemetry-sdk" in done.stderr


async def test_a_dead_endpoint_costs_spans_about_the_receiver_and_nothing_else(
    kafka: KafkaBroker, tmp_path: Path
) -> None:
    """What watches the service must not be able to stop it."""
    async with receiving(kafka, tmp_path, endpoint=f"http://127.0.0.1:{free_port()}") as (receiver, channel):
        for _ in range(50):
            assert (await export(channel, request(features(3)))).code == "OK"
        assert await receiver.stop() == 0
