"""The real servers of a run, what is started on top of them, and what each process has used."""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bench.load import Command, Sent
from deploy.local.kafka import KafkaBroker
from deploy.local.postgres import PostgresServer
from deploy.local.server import Launch, Server
from deploy.local.stack import ModuleServer

ROOT = Path(__file__).resolve().parents[1]
PARTITIONS = 12  # the product's own default
MIGRATED = "template_migrated"
ANSWER_TIMEOUT_S = 180.0
QUIET_S = 0.6  # without a new record: an agent that answers before it writes has written all
FETCH_WAIT_MS = 10
RECORD_BYTES_MAX = 16_000_000  # rotel's need it; nobody else's come near
LINE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started, and how long it took until it was ready."""

    server: Server
    seconds: float

    @property
    def pid(self) -> int:
        pid = self.server.pid
        if pid is None:
            raise self.server.failure("ended unexpectedly")
        return pid

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.port_of('PORT')}"

    @property
    def http_target(self) -> str:
        return f"127.0.0.1:{self.server.port_of('HTTP_PORT')}"


class Servers:
    """One Kafka, one Postgres and one load generator, for a whole run."""

    def __init__(self, folder: Path, kafka: KafkaBroker, postgres: PostgresServer, topics: "Topics") -> None:
        self.kafka = kafka
        self.postgres = postgres
        self.topics = topics
        self._folder = folder
        self._count = 0
        self._generator: asyncio.subprocess.Process | None = None

    def environment(self, topic: str, **more: str) -> dict[str, str]:
        """Settings of a process on these servers; everything that is not named is the product's default."""
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "KAFKA_TOPIC": topic,
            "KAFKA_SUPPRESSIONS_TOPIC": "suppressions",
            "KAFKA_TOPIC_PARTITIONS": str(PARTITIONS),
            "KAFKA_CONSUMER_GROUP": f"group-{uuid.uuid4().hex[:8]}",
            "HOST": "127.0.0.1",
            "METRICS_HOST": "127.0.0.1",
            "LOG_LEVEL": "WARNING",
            **more,
        }

    @asynccontextmanager
    async def running(self, server: Server) -> AsyncIterator[Started]:
        """Start a process, wait until it is ready, and stop it at the end."""
        started_at = time.monotonic()
        try:
            await asyncio.to_thread(server.start)
            yield Started(server, time.monotonic() - started_at)
        finally:
            await asyncio.to_thread(server.stop)

    def receiver(self, topic: str, **settings: str) -> ModuleServer:
        ports = {"PORT": None, "HTTP_PORT": None, "RECEIVER_METRICS_PORT": None}
        return self._module("receiver", self.environment(topic, **settings), ports)

    def consumer(self, topic: str, database: str, **settings: str) -> ModuleServer:
        environment = self.environment(topic, ANALYTICS_DATABASE_URL=self.postgres.url(database), **settings)
        return self._module("consumer", environment, {"CONSUMER_METRICS_PORT": None})

    def viewer(self, url: str) -> ModuleServer:
        return self._module("viewer", {"VIEWER_DATABASE_URL": url, "VIEWER_HOST": "127.0.0.1"}, {"VIEWER_PORT": None})

    def textbook_receiver(self, topic: str) -> ModuleServer:
        return self._module("bench.peers.receiver", self.environment(topic), {"PORT": None})

    def textbook_consumer(self, topic: str, database: str) -> ModuleServer:
        environment = self.environment(topic, ANALYTICS_DATABASE_URL=self.postgres.url(database))
        return self._module("bench.peers.consumer", environment, {})

    def rotel(self, topic: str) -> "Rotel":
        return Rotel(self._new_folder("rotel"), self.kafka.bootstrap_servers, topic)

    def collector(self, program: Path, topic: str) -> "Collector":
        return Collector(self._new_folder("collector"), program, self.kafka.bootstrap_servers, topic)

    def _module(self, module: str, environment: Mapping[str, str], ports: Mapping[str, int | None]) -> ModuleServer:
        server = ModuleServer(module, self._new_folder(module), environment, ports=ports)
        server.start_seconds, server.stop_seconds = 40.0, 16.0
        return server

    def _new_folder(self, name: str) -> Path:
        self._count += 1
        return self._folder / f"{name}-{self._count}"

    async def load(self, command: Command) -> Sent:
        """Have the generator carry out a command."""
        if self._generator is None:
            self._generator = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bench.load"),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                limit=LINE_BYTES_MAX,
            )
        assert self._generator.stdin is not None
        assert self._generator.stdout is not None
        self._generator.stdin.write(json.dumps(asdict(command)).encode() + b"\n")
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            line = await self._generator.stdout.readline()
        if not line:
            raise RuntimeError("the load generator has ended; its error stands above")
        return Sent(**json.loads(line))

    def new_database(self) -> str:
        """An empty one with all tables, by name."""
        if not self.postgres.query(f"SELECT 1 FROM pg_database WHERE datname = '{MIGRATED}'"):
            self.postgres.create_database(MIGRATED)
            environment = {**os.environ, "ANALYTICS_DATABASE_URL": self.postgres.url(MIGRATED)}
            command = [sys.executable, "-m", "alembic", "upgrade", "head"]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120, capture_output=True)
        name = f"analytics_{uuid.uuid4().hex[:8]}"
        self.postgres.query(f'CREATE DATABASE "{name}" TEMPLATE "{MIGRATED}"')
        return name

    async def close(self) -> None:
        """End the generator."""
        if self._generator is None:
            return
        assert self._generator.stdin is not None
        self._generator.stdin.close()
        try:
            await asyncio.wait_for(self._generator.wait(), 5)
        except TimeoutError:
            self._generator.kill()


@asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[Servers]:
    """Kafka and Postgres with the settings of `make run`, started anew and ended at the end."""
    kafka = KafkaBroker(folder / "kafka")
    # The moment of each commit is kept, so that a row tells how long it took from its sender.
    postgres = PostgresServer(folder / "postgres", settings={"track_commit_timestamp": "on"})
    async with AsyncExitStack() as stack:
        for server in (kafka, postgres):
            stack.push_async_callback(asyncio.to_thread, server.stop)
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in (kafka, postgres)))
        topics = Topics(kafka.bootstrap_servers)
        stack.push_async_callback(topics.close)
        await topics.open()
        made = Servers(folder, kafka, postgres, topics)
        stack.push_async_callback(made.close)
        yield made


class Topics:
    """The topics of a run, seen from outside."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        # A fetch that waits holds back every question behind it on its connection, for half a second by default.
        self._reader = AIOKafkaConsumer(
            bootstrap_servers=bootstrap_servers, enable_auto_commit=False, fetch_max_wait_ms=FETCH_WAIT_MS
        )

    async def open(self) -> None:
        await self._admin.start()
        await self._reader.start()

    async def close(self) -> None:
        await self._reader.stop()
        await self._admin.close()

    async def create(self, name: str, partitions: int = PARTITIONS) -> str:
        topic = f"{name}-{uuid.uuid4().hex[:8]}"
        config = {"message.timestamp.type": "CreateTime", "max.message.bytes": str(RECORD_BYTES_MAX)}
        answer = await self._admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=config)])
        if answer.topic_errors[0][1] != 0:
            raise RuntimeError(f"topic {topic} was not created: {answer}")
        return topic

    async def ends(self, topic: str) -> dict[TopicPartition, int]:
        """The next offset of each partition."""
        partitions = await self._partitions(topic)
        found: dict[TopicPartition, int] = await self._reader.end_offsets(partitions)
        return found

    async def complete(self, group: str, members: int) -> None:
        """Wait until the group has so many members, and each of them its partitions."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while True:
                [answer] = await self._admin.describe_consumer_groups([group])
                _, _, state, _, _, found, *_ = answer.groups[0]
                if state == "Stable" and len(found) == members:
                    return
                await asyncio.sleep(0.1)

    async def quiet(self, topic: str) -> float:
        """Wait until no record has come for a while; when the last one came, by the monotonic clock."""
        last, changed_at = await self.ends(topic), time.monotonic()
        while time.monotonic() - changed_at < QUIET_S:
            await asyncio.sleep(0.02)
            ends = await self.ends(topic)
            if ends != last:
                last, changed_at = ends, time.monotonic()
        return changed_at

    async def records(
        self, topic: str, since: Mapping[TopicPartition, int], *, records_max: int | None = None
    ) -> Sequence[ConsumerRecord]:
        """What came since then, up to now, or the first of it."""
        ends = await self.ends(topic)
        places = [place for place in ends if ends[place] > since[place]]
        found: list[ConsumerRecord] = []
        self._reader.assign(places)
        for place in places:
            self._reader.seek(place, since[place])
        while any([await self._reader.position(place) < ends[place] for place in places]):
            for records in (await self._reader.getmany(timeout_ms=500)).values():
                found += records
            if records_max is not None and len(found) >= records_max:
                break
        self._reader.unsubscribe()  # else it reads on
        return found[:records_max]

    async def _partitions(self, topic: str) -> list[TopicPartition]:
        for _ in range(100):
            described = (await self._admin.describe_topics([topic]))[0]
            if described["error_code"] == 0:
                return [TopicPartition(topic, each["partition"]) for each in described["partitions"]]
            await asyncio.sleep(0.05)
        raise RuntimeError(f"topic {topic} does not come up")


class Rotel(Server):
    """The agent of that name, from OTLP to Kafka. It answers before the broker does, whatever `acks` says."""

    name = "rotel"
    stop_seconds = 10.0

    def __init__(self, folder: Path, bootstrap_servers: str, topic: str) -> None:
        super().__init__(folder, {"PORT": None, "HTTP_PORT": None})
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic

    def _prepare(self) -> Launch:
        package = find_spec("rotel")
        assert package is not None
        assert package.origin is not None
        command = (
            str(Path(package.origin).with_name("rotel-agent")),
            "start",
            *("--otlp-grpc-endpoint", f"127.0.0.1:{self.port_of('PORT')}"),
            *("--otlp-http-endpoint", f"127.0.0.1:{self.port_of('HTTP_PORT')}"),
            *("--otlp-grpc-max-recv-msg-size-mib", "64"),
            *("--exporter", "kafka"),
            *("--kafka-exporter-brokers", self._bootstrap_servers),
            *("--kafka-exporter-traces-topic", self._topic),
            *("--kafka-exporter-acks", "all"),
            *("--kafka-exporter-compression", "zstd"),
            *("--kafka-exporter-linger-ms", "5"),
            # A batch is one record, and at its default of 8,192 spans over its default limit of 1 MB: all is lost.
            # With smaller batches it drops requests that are larger than two of them.
            *("--batch-max-size", "8192"),
            *("--kafka-exporter-max-message-bytes", str(RECORD_BYTES_MAX)),
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ROTEL_")}
        return Launch(command, environment, self.folder)

    def _answers(self) -> bool:
        return self.is_running


class Collector(Server):
    """An OpenTelemetry Collector that was built from tests/support/collector, from OTLP to Kafka.

    It has no queue and no batches, so it answers after the broker, as ours does: a request is a record.
    """

    name = "otelcol"
    stop_seconds = 10.0

    def __init__(self, folder: Path, program: Path, bootstrap_servers: str, topic: str) -> None:
        super().__init__(folder, {"PORT": None, "HTTP_PORT": None})
        self._program = program
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic

    def _prepare(self) -> Launch:
        protocols = {
            "grpc": {"endpoint": f"127.0.0.1:{self.port_of('PORT')}", "max_recv_msg_size_mib": 64},
            "http": {"endpoint": f"127.0.0.1:{self.port_of('HTTP_PORT')}"},
        }
        exporter = {
            "brokers": [self._bootstrap_servers],
            "traces": {"topic": self._topic, "encoding": "otlp_proto"},
            "sending_queue": {"enabled": False},
            "producer": {
                "required_acks": "all",
                "compression": "zstd",
                "compression_params": {"level": 1},
                "linger": "5ms",
                "max_message_bytes": RECORD_BYTES_MAX,
                "allow_auto_topic_creation": False,
            },
        }
        pipelines = {"traces": {"receivers": ["otlp"], "exporters": ["kafka"]}}
        telemetry = {"metrics": {"level": "none"}, "logs": {"level": "warn"}}
        config = {
            "receivers": {"otlp": {"protocols": protocols}},
            "exporters": {"kafka": exporter},
            "service": {"pipelines": pipelines, "telemetry": telemetry},
        }
        path = self.folder / "collector.json"
        path.write_text(json.dumps(config))  # JSON is YAML
        return Launch((str(self._program), f"--config={path}"), {"PATH": "/usr/bin:/bin"}, self.folder)

    def _answers(self) -> bool:
        return True  # it listens, or we would not be asked


def cpu_s(pid: int) -> float:
    """User and system time of a process, its children, and those of them that have ended."""
    root = psutil.Process(pid)
    times = root.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in root.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            own = child.cpu_times()
            total += own.user + own.system
    return float(total)


def resident_mib(pid: int) -> float:
    return _status_mib(pid, "VmRSS")


def peak_mib(pid: int) -> float:
    """Most memory at once since the last `forget_peak`; of several processes the sum of each one's."""
    return _status_mib(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    for each in _family(pid):
        Path(f"/proc/{each}/clear_refs").write_text("5")


def _status_mib(pid: int, field: str) -> float:
    total = 0
    for each in _family(pid):
        with suppress(OSError):
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            total += next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)
    return total / 1024


def _family(pid: int) -> list[int]:
    root = psutil.Process(pid)
    return [pid, *(child.pid for child in root.children(recursive=True))]


def json_of(record: ConsumerRecord) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(record.value)
    return fields
