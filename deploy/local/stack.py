"""Everything on this machine, in the foreground: start in order, watch, stop in the other order.

State lies in one folder, `.local/` of the clone: kafka/, postgres/, the logs, and stack.env while all is up.
"""

import fcntl
import http.client
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from deploy.local import display, kafka, postgres
from deploy.local.kafka import KafkaBroker
from deploy.local.postgres import PostgresServer
from deploy.local.server import Launch, Server, StackError

ROOT = Path(__file__).resolve().parents[2]
DATABASE = "analytics"

# The standard ports, by the settings that carry them.
RECEIVER_PORTS = {"PORT": 4317, "HTTP_PORT": 4318, "RECEIVER_METRICS_PORT": 9464}
CONSUMER_PORTS = {"CONSUMER_METRICS_PORT": 9465}
VIEWER_PORTS = {"VIEWER_PORT": 8090}

# Where a process says that it is ready, by the end of its port's name.
PROBES = {"METRICS_PORT": "/readyz", "VIEWER_PORT": "/healthz"}

# Traffic, receiver and consumer stop one after another, then both servers at once: 15 s at the very worst.
_STOP_SECONDS = 3.0
_MIGRATION_SECONDS = 120
_HISTORY_SECONDS = 120
_HISTORY_DAYS = 30
_LINE_EVERY_SECONDS = 3


class ModuleServer(Server):
    """`python -m MODULE` in the root of the clone, with its ports given as settings.

    It counts as ready when the probes at its ports (PROBES) answer 200, and without such a port as soon as it runs.
    """

    stop_seconds = _STOP_SECONDS

    def __init__(
        self,
        module: str,
        folder: Path,
        environment: Mapping[str, str],
        *,
        ports: Mapping[str, int | None] | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.name = module.rsplit(".", 1)[-1]
        super().__init__(folder, ports or {})
        self._module = module
        self._arguments = arguments
        self._environment = environment

    def _prepare(self) -> Launch:
        command = (sys.executable, "-m", self._module, *self._arguments)
        ports = {name: str(port) for name, port in self.ports.items()}
        return Launch(command, {**os.environ, **self._environment, **ports}, ROOT)

    def _answers(self) -> bool:
        probes = [
            (port, path) for name, port in self.ports.items() for end, path in PROBES.items() if name.endswith(end)
        ]
        return all(_is_ready(port, path) for port, path in probes) if probes else self.is_running


class Stack:
    """Kafka and Postgres under one folder, and what was started on top of them."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder.absolute()
        self.console = console
        self.env_file = self.folder / "stack.env"
        self.kafka = KafkaBroker(self.folder / "kafka", port=kafka.STANDARD_PORT, say=self.say)
        self.postgres = PostgresServer(self.folder / "postgres", port=postgres.STANDARD_PORT)
        self.kafka.stop_seconds = self.postgres.stop_seconds = _STOP_SECONDS
        self.servers: list[Server] = []
        self._started_at = time.monotonic()
        self._cleanup = ExitStack()

    def say(self, text: str) -> None:
        elapsed = time.monotonic() - self._started_at
        self.console.print(f"[{elapsed:5.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)

    def start_servers(self) -> None:
        self._cleanup.callback(self._stop_servers)
        for server in (self.postgres, self.kafka):
            self.servers.append(server)
            server.start()
            if server is self.postgres:
                self.postgres.create_database(DATABASE)
                self.say(f"PostgreSQL 18 on 127.0.0.1:{self.postgres.port}")
        self.say(f"Kafka 4.4 on {self.kafka.bootstrap_servers} ({self.kafka.java_origin})")

    def start_module(self, server: ModuleServer) -> None:
        self._cleanup.callback(server.stop)
        self.servers.append(server)
        server.start()

    def at_stop(self, action: Callable[[], object]) -> None:
        """Actions run at the end, the last one first."""
        self._cleanup.callback(action)

    def write_env_file(self, more: Mapping[str, str]) -> None:
        """What other shells need: `. .local/stack.env`. Readable by its owner only, as a password is in it."""
        variables = {**self.environment(), **more}
        path = [str(Path(sys.executable).parent), str(self.postgres.bin_dir), os.environ.get("PATH", os.defpath)]
        variables["PATH"] = os.pathsep.join(path)
        lines = [f"export {name}={_in_quotes(value)}\n" for name, value in variables.items()]
        unfinished = self.env_file.with_suffix(".unfinished")
        unfinished.touch(mode=0o600)
        unfinished.write_text("".join(lines))
        unfinished.replace(self.env_file)
        self.at_stop(lambda: self.env_file.unlink(missing_ok=True))

    def environment(self) -> dict[str, str]:
        return {
            "ANALYTICS_DATABASE_URL": self.postgres.url(DATABASE),
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
        }

    def raise_if_one_ended(self) -> None:
        for server in self.servers:
            if not server.is_running:
                raise server.failure(f"ended unexpectedly with code {server.exit_code}")

    def close(self) -> None:
        self._cleanup.close()

    def _stop_servers(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Server.stop, (self.kafka, self.postgres)))


def run_servers(folder: Path, seconds: float | None) -> None:
    """Kafka and Postgres until Ctrl-C, SIGTERM or the end of the seconds. Raises StackError."""
    with _foreground(folder) as stack:
        stack.start_servers()
        stack.write_env_file({})
        stack.say(f"ready; in another shell: . {_shown(stack.env_file)}")
        for _ in _every_second(seconds):
            stack.raise_if_one_ended()


def run_all(folder: Path, seconds: float | None, *, spans_per_second: float | None) -> None:
    """Everything, and demo traffic unless `spans_per_second` is None, until Ctrl-C, SIGTERM or the end of the
    seconds, counted from when all is ready. Raises StackError.
    """
    with _foreground(folder) as stack:
        stack.start_servers()
        local = {"HOST": "127.0.0.1", "METRICS_HOST": "127.0.0.1", "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"}
        environment = stack.environment() | local
        _migrate(environment)
        first = display.snapshot_of(stack.postgres, DATABASE)
        stack.say(f"tables are up to date and hold {first.total:,} rows")
        stack.at_stop(lambda: _say_what_was_stored(stack, first))
        receiver = ModuleServer("receiver", stack.folder, environment, ports=RECEIVER_PORTS)
        consumer = ModuleServer("consumer", stack.folder, environment, ports=CONSUMER_PORTS)
        # The receiver stops first, then the consumer stores what is left.
        stack.start_module(consumer)
        stack.say(f"consumer is ready; metrics on 127.0.0.1:{consumer.port_of('CONSUMER_METRICS_PORT')}")
        stack.start_module(receiver)
        endpoint, grpc_endpoint = (f"http://127.0.0.1:{receiver.port_of(name)}" for name in ("HTTP_PORT", "PORT"))
        stack.say(f"receiver takes spans at {endpoint} (OTLP/HTTP) and {grpc_endpoint} (OTLP/gRPC)")
        reads_as = {"VIEWER_HOST": "127.0.0.1", "VIEWER_PASSWORD_FILE": "", "VIEWER_DATABASE_URL": _reader_url(stack)}
        page = ModuleServer("viewer", stack.folder, environment | reads_as, ports=VIEWER_PORTS)
        stack.start_module(page)
        page_address = f"http://127.0.0.1:{page.port_of('VIEWER_PORT')}"
        ports = {name: str(port) for name, port in (receiver.ports | consumer.ports | page.ports).items()}
        stack.write_env_file(ports | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
        stack.say(f"ready; in another shell: . {_shown(stack.env_file)}")
        stack.say(f"the page: {page_address}")
        if spans_per_second is not None:
            if not _has_history(stack):
                stack.say(f"{_send_history(stack.folder, grpc_endpoint)} spans of the last 30 days were sent")
            stack.start_module(_demo(stack.folder, grpc_endpoint, spans_per_second))
            stack.say(f"demo traffic: {spans_per_second:g} spans a second")
        _show(stack, display.Display(first, page_address), consumer.port_of("CONSUMER_METRICS_PORT"), seconds)


def _show(stack: Stack, shown: display.Display, metrics_port: int, seconds: float | None) -> None:
    live = Live(console=stack.console, auto_refresh=False) if stack.console.is_terminal else None
    with live or ExitStack():
        for second in _every_second(seconds):
            stack.raise_if_one_ended()
            try:
                shown.add(display.snapshot_of(stack.postgres, DATABASE, metrics_port))
            except StackError:
                stack.raise_if_one_ended()  # a better reason than that Postgres does not answer
                raise
            if live:
                live.update(shown.panel(), refresh=True)
            elif second % _LINE_EVERY_SECONDS == 0:
                stack.say(shown.line())


@contextmanager
def _foreground(folder: Path) -> Iterator[Stack]:
    """One stack a folder; ends by Ctrl-C or SIGTERM, which are no errors, with everything stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stack.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, however it ends
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"A stack is already running here (process {lock.read().strip()}). Use it with"
                f" `. {_shown(folder / 'stack.env')}`, or stop it with Ctrl-C where it runs."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        (folder / "stack.env").unlink(missing_ok=True)  # of a run that was killed
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stack = Stack(folder, Console())
        try:
            yield stack
        except KeyboardInterrupt:
            pass
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):  # stopping is bounded: nothing may cut it short
                signal.signal(number, signal.SIG_IGN)
            stack.say("stopping")
            stack.close()
            stack.say("stopped")


def _migrate(environment: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_MIGRATION_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(f"`alembic upgrade head` took longer than {_MIGRATION_SECONDS} s.") from error
    if done.returncode:
        raise StackError(f"`alembic upgrade head` failed:\n{done.stdout}{done.stderr}")


def _reader_url(stack: Stack) -> str:
    """The database as the role that only reads, with a password of this start."""
    password = secrets.token_hex(16)
    script = ROOT / "deploy/postgres/reader.sql"
    stack.postgres.run_script(script, DATABASE, {"ANALYTICS_READER_PASS": password})
    stack.postgres.query(f"ALTER ROLE analytics_reader PASSWORD '{password}'", DATABASE)
    return f"postgresql://analytics_reader:{password}@127.0.0.1:{stack.postgres.port}/{DATABASE}"


def _has_history(stack: Stack) -> bool:
    """Its first day is sent last."""
    oldest = f"now() - interval '{_HISTORY_DAYS - 2} days'"
    sql = f"SELECT count(*) FROM (SELECT FROM public.endpoint_usage WHERE timestamp < {oldest} LIMIT 1) AS old"  # noqa: S608  our own
    return stack.postgres.query(sql, DATABASE).strip() == "1"


def _send_history(folder: Path, endpoint: str) -> str:
    """How many spans were sent; Kafka has them then, and the consumer stores them within seconds."""
    days = str(_HISTORY_DAYS)
    with ModuleServer("deploy.local.demo.history", folder, _sender_environment(endpoint), arguments=(days,)) as history:
        give_up_at = time.monotonic() + _HISTORY_SECONDS
        while history.is_running:
            if time.monotonic() > give_up_at:
                raise history.failure(f"took longer than {_HISTORY_SECONDS} s")
            time.sleep(0.1)
        if history.exit_code:
            raise history.failure(f"ended with code {history.exit_code}")
        return f"{int(history.last_log_lines(1)):,}"


def _sender_environment(endpoint: str) -> dict[str, str]:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "no_grpc_proxy": "127.0.0.1"}
    if key := os.environ.get("OTEL_API_KEY") or os.environ.get("API_KEYS", "").split(",")[0]:
        environment["OTEL_EXPORTER_OTLP_HEADERS"] = f"x-api-key={key}"
    return environment


def _demo(folder: Path, endpoint: str, spans_per_second: float) -> ModuleServer:
    environment = _sender_environment(endpoint)
    return ModuleServer("deploy.local.demo.shop", folder, environment, arguments=(str(spans_per_second),))


def _say_what_was_stored(stack: Stack, first: display.Snapshot) -> None:
    with suppress(StackError):  # Postgres may be what ended
        last = display.snapshot_of(stack.postgres, DATABASE)
        rows = ", ".join(f"{table} {last.rows[table]:,}" for table in display.TABLES)
        stack.say(f"{last.total - first.total:,} rows were added; now there are: {rows}")


def _is_ready(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _every_second(seconds: float | None) -> Iterator[int]:
    """0, 1, 2, ... about a second apart; without end when seconds is None."""
    started_at = time.monotonic()
    second = 0
    while seconds is None or time.monotonic() - started_at < seconds:
        yield second
        time.sleep(1)
        second += 1


def _in_quotes(value: str) -> str:
    """For a shell; always in single quotes, unlike shlex.quote."""
    return "'" + value.replace("'", "'\\''") + "'"


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    with suppress(ValueError):
        path = path.absolute().relative_to(Path.cwd())
    return shlex.quote(str(path))
