"""A real Apache Kafka: one process that is broker and controller (KRaft), from plain jars."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from deploy.local import jars
from deploy.local.server import Launch, Server, StackError

STANDARD_PORT = 9092

_CLUSTER_ID = "dGVsZW1ldHJ5LWxvY2FsMA"  # 16 bytes as base64; brokers of one cluster must agree on it
_LOG_SETTINGS = Path(__file__).with_name("log4j2.properties")
_CALL_TIMEOUT_SECONDS = 5


class KafkaBroker(Server):
    """One broker; alone by default, one of several with `node_id`, `controller_port` and `voters`.

    A cluster's brokers wait for one another, so start them in threads of their own, and give each the
    controller ports of all: `voters={1: 19093, 2: 19094, 3: 19095}`. `properties` go over what is set here.
    """

    stop_signal = signal.SIGTERM
    jvm_options: tuple[str, ...] = ()
    formatted_folders: Path | None = None  # keeps a formatted data folder of each node id, and later brokers copy it

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        properties: Mapping[str, object] | None = None,
        heap_megabytes: int = 512,
        node_id: int = 1,
        controller_port: int | None = None,
        voters: Mapping[int, int] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = "kafka" if voters is None else f"kafka-{node_id}"
        super().__init__(folder, {"kafka": port, "controller": controller_port})
        self.java_origin = ""
        self._properties = dict(properties or {})
        self._heap_megabytes = heap_megabytes
        self._node_id = node_id
        self._voters = voters
        self._say = say

    @property
    def port(self) -> int:
        return self.port_of("kafka")

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _prepare(self) -> Launch:
        java, self.java_origin = jars.java()
        scratch = self.folder / "tmp"  # native libraries of the codecs are unpacked here; kill -9 leaves them
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        settings = self.folder / "server.properties"
        text = "".join(f"{name}={value}\n" for name, value in self._settings().items())
        settings.write_bytes(text.encode("latin-1", "backslashreplace"))  # as Java's Properties read it
        command = (
            str(java),
            f"-Xmx{self._heap_megabytes}m",
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Djava.io.tmpdir={scratch}",
            f"-Dlog4j2.configurationFile={_LOG_SETTINGS}",
            *self.jvm_options,
        )
        environment = {**os.environ, "CLASSPATH": jars.class_path(self._say)}  # too long a word for `ps`
        if not (self.folder / "data" / "meta.properties").exists():
            self._format((*command, "kafka.tools.StorageTool"), settings, environment)
        return Launch((*command, "kafka.Kafka", str(settings)), environment, self.folder)

    def _settings(self) -> dict[str, object]:
        controller_port = self.port_of("controller")
        voters = self._voters or {self._node_id: controller_port}
        return {
            "process.roles": "broker,controller",
            "node.id": self._node_id,
            "controller.quorum.voters": ",".join(f"{node}@127.0.0.1:{port}" for node, port in voters.items()),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": self.folder / "data",
            "auto.create.topics.enable": "false",
            "default.replication.factor": 1,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,  # 50 by default, which only cost time and files here
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            # After kill -9 a broker is let in again when its old session has ended: 9 s by default.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            "log.cleaner.dedupe.buffer.size": 16 << 20,  # 128 MiB by default, a quarter of our heap
            "num.network.threads": 2,
            "num.io.threads": 4,
        } | self._properties

    def _format(self, tool: tuple[str, ...], settings: Path, environment: Mapping[str, str]) -> None:
        kept = self.formatted_folders and self.formatted_folders / str(self._node_id)
        if kept and kept.exists():
            shutil.copytree(kept, self.folder / "data", dirs_exist_ok=True)
            return
        self._run_format(tool, settings, environment)
        if kept:
            shutil.copytree(self.folder / "data", kept)

    def _run_format(self, tool: tuple[str, ...], settings: Path, environment: Mapping[str, str]) -> None:
        arguments = ("format", "-t", _CLUSTER_ID, "-c", str(settings), "--ignore-formatted")
        try:
            done = subprocess.run(
                [*tool, *arguments],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        except subprocess.TimeoutExpired as error:
            raise StackError(f"{self.name}: formatting {self.folder} took longer than 60 s.") from error
        if done.returncode:
            raise StackError(f"{self.name}: {self.folder} could not be formatted:\n{done.stdout}{done.stderr}")

    def _answers(self) -> bool:
        with ThreadPoolExecutor(1) as pool:  # a thread of its own: the caller may be inside an event loop
            return pool.submit(asyncio.run, _lists_brokers(self.bootstrap_servers)).result()


async def _lists_brokers(bootstrap_servers: str) -> bool:
    """A broker opens its port before it is let into the cluster; only then is it in the list."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=2000)
    try:
        async with asyncio.timeout(_CALL_TIMEOUT_SECONDS):
            await admin.start()
            return bool((await admin.describe_cluster())["brokers"])
    except (OSError, TimeoutError, KafkaError):
        return False
    finally:
        await admin.close()
