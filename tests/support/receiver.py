"""A receiver as a process of its own, its callers, and the topic that it writes."""

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import psutil
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.kafka import KafkaBroker
from deploy.local.server import free_port

ROOT = Path(__file__).resolve().parents[2]
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PARTITIONS = 4
POLL_S = 0.05
AS_SHIPPED = {"PUBLISH_TIMEOUT_MS": 3500}


@dataclass(frozen=True)
class Answer:
    """What an Export call ended in."""

    code: str
    text: str
    seconds: float
    retry_s: float | None = None
    rejected: int = 0
    has_partial: bool = False


class Receiver:
    """`python -m receiver` on free ports. Settings are added to an environment that names nothing else of ours."""

    def __init__(self, bootstrap_servers: str, folder: Path, *arguments: str, **settings: Any) -> None:
        self.port = free_port()
        self.http_port = free_port()
        self.metrics_port = free_port()
        self.topic = str(settings.pop("KAFKA_TOPIC", f"events-{uuid.uuid4().hex[:8]}"))
        self.log = folder / f"receiver-{self.port}.log"
        self._folder = folder
        self._arguments = arguments
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOST": "127.0.0.1",
            "METRICS_HOST": "127.0.0.1",
            "PORT": str(self.port),
            "HTTP_PORT": str(self.http_port),
            "RECEIVER_METRICS_PORT": str(self.metrics_port),
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "KAFKA_TOPIC": self.topic,
            "KAFKA_SUPPRESSIONS_TOPIC": f"{self.topic}-suppressions",
            "KAFKA_TOPIC_PARTITIONS": str(PARTITIONS),
            "PUBLISH_TIMEOUT_MS": "20000",  # so that a slow machine is no slow broker; tests of time say otherwise
            **{name: str(value) for name, value in settings.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "receiver", *self._arguments],
                env=self._environment,
                cwd=self._folder,  # no .env of the clone is read
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def ended(self, seconds: float = 16) -> int:
        """Its exit code, once it has one."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, seconds)

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    def kill(self) -> None:
        """Harmless when it has ended."""
        if self._process is None:
            return
        children = psutil.Process(self.pid).children(recursive=True) if self.exit_code is None else []
        self._process.kill()
        self._process.wait(5)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()

    async def ready(self, seconds: float = 20) -> None:
        async def is_settled() -> bool:
            return await self.is_ready() or self.exit_code is not None

        await until(is_settled, seconds, "ready")
        assert await self.is_ready(), f"ended while it started; its log ends in\n{self.log_text()[-2000:]}"

    async def is_ready(self) -> bool:
        return (await asyncio.to_thread(self._get, "/readyz"))[0] == 200

    async def metric(self, name: str, **labels: str) -> float:
        """The sum over the series that carry these labels."""
        _, text = await asyncio.to_thread(self._get, "/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def idle(self, seconds: float = 10) -> None:
        """Wait until nothing is in flight any more: whatever a request took, it gave back."""
        zero_since = time.monotonic()

        async def is_idle() -> bool:
            nonlocal zero_since
            if await self.metric("receiver_inflight_bytes"):
                zero_since = time.monotonic()
            return time.monotonic() - zero_since > 0.5  # the gauge is set five times a second

        await until(is_idle, seconds, "no bytes in flight")

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]

    def resident_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    @asynccontextmanager
    async def channel(self, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[grpc.aio.Channel]:
        """A connection of its own."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 20_000),  # despite its name, how long an attempt may take
        ]
        address = f"localhost:{self.port}"
        made = (
            grpc.aio.secure_channel(address, credentials, options=options)
            if credentials
            else grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        )
        async with made as channel:
            yield channel


async def export(
    channel: grpc.aio.Channel,
    body: bytes,
    *,
    timeout_s: float | None = 30,
    metadata: Sequence[Any] = (),
    **options: Any,
) -> Answer:
    """Send one request as any OTLP client does."""
    started_at = time.monotonic()
    try:
        raw = await channel.unary_unary(EXPORT)(body, timeout=timeout_s, metadata=metadata, **options)
    except grpc.aio.AioRpcError as error:
        status = rpc_status.from_call(error)
        details = [] if status is None else list(status.details)
        retry = RetryInfo()
        has_retry = any(detail.Unpack(retry) for detail in details)
        return Answer(
            error.code().name,
            error.details() or "",
            time.monotonic() - started_at,
            retry_s=retry.retry_delay.ToTimedelta().total_seconds() if has_retry else None,
        )
    response = ExportTraceServiceResponse.FromString(raw)
    partial = response.partial_success
    return Answer(
        "OK",
        partial.error_message,
        time.monotonic() - started_at,
        rejected=partial.rejected_spans,
        has_partial=response.HasField("partial_success"),
    )


async def records_of(kafka: KafkaBroker, topic: str) -> list[ConsumerRecord]:
    """Every record of the topic as it is now, read by a plain consumer."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        found = await until(lambda: _metadata_of(consumer), 20, "metadata of a broker that may have just come back")
        places = [TopicPartition(topic, partition) for partition in found.partitions_for_topic(topic) or ()]
        if not places:
            return []
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        records: list[ConsumerRecord] = []
        for place in places:
            while await consumer.position(place) < ends[place]:
                for batch in (await consumer.getmany(place, timeout_ms=500)).values():
                    records += batch
        return records
    finally:
        await consumer.stop()


async def _metadata_of(consumer: AIOKafkaConsumer) -> Any:
    try:
        return await consumer._client.fetch_all_metadata()
    except KafkaError:
        return None


async def until(condition: Any, seconds: float, what: str) -> Any:
    """Wait for a condition, with a deadline that fails the test; how late the machine wakes us is not counted."""
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        asked_at = time.monotonic()
        assert asked_at < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(POLL_S)
        deadline += time.monotonic() - asked_at - POLL_S
    return found


_prctl = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
