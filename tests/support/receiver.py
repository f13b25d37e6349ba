"""A receiver as a process of its own, its callers, and the topic that it writes."""

import asyncio
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.kafka import KafkaBroker
from deploy.local.server import free_port

ROOT = Path(__file__).resolve().parents[2]
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PARTITIONS = 4


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
            "RECEIVER_METRICS_PORT": str(self.metrics_port),
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "KAFKA_TOPIC": self.topic,
            "KAFKA_SUPPRESSIONS_TOPIC": f"{self.topic}-suppressions",
            "KAFKA_TOPIC_PARTITIONS": str(PARTITIONS),
            **{name: str(value) for name, value in settings.items()},
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "receiver", *self._arguments),
                env=self._environment,
                cwd=self._folder,  # no .env of the clone is read
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def stop(self, number: int = signal.SIGTERM, seconds: float = 16) -> int:
        """Signal it and wait; its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(seconds):
            return await self.process.wait()

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            await self.process.wait()
            for child in children:
                with_child_gone(child)

    async def ready(self, seconds: float = 20) -> None:
        async def is_settled() -> bool:
            return await self.is_ready() or self.process is None or self.process.returncode is not None

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
            ("grpc.min_reconnect_backoff_ms", 50),
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
    channel: grpc.aio.Channel, body: bytes, *, timeout_s: float | None = 10, metadata: Sequence[Any] = (), **options: Any
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
        found = await consumer._client.fetch_all_metadata()
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


async def until(condition: Any, seconds: float, what: str) -> Any:
    """Wait for a condition, with a deadline that fails the test."""
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)
    return found


def with_child_gone(child: psutil.Process) -> None:
    try:
        child.kill()
    except psutil.NoSuchProcess:
        return


def headers_of(record: ConsumerRecord) -> Mapping[str, bytes]:
    return dict(record.headers)
