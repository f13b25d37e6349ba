"""One server as a child process: a folder, ports, a log; start, stop, kill and freeze that hold."""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from deploy.local import watch

# Below 32768, where the kernel takes ports for outgoing sockets: a client that polls a dead port up there can
# connect to itself and find it alive.
_PORTS = range(10_240, 32_768)
_PORT_ATTEMPTS = 4
_POLL_SECONDS = 0.05


class StackError(Exception):
    """The local stack cannot go on. The text names what is missing and what to do about it."""


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system's account that a server runs as; None is ours."""

    user: int | None = None
    group: int | None = None
    prefix: tuple[str, ...] = ()  # a command that changes the account itself and then becomes the server


@dataclass(frozen=True, slots=True)
class Launch:
    command: tuple[str, ...]
    environment: Mapping[str, str]
    working_folder: Path
    account: Account = Account()


def is_free(port: int) -> bool:
    """Whether 127.0.0.1:port can be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port(preferred: int | None = None, *, besides: Collection[int] = ()) -> int:
    """The preferred port if it is free, else a random free one below the ephemeral range; none of `besides`."""
    if preferred is not None and preferred not in besides and is_free(preferred):
        return preferred
    for _ in range(200):
        port = secrets.choice(_PORTS)
        if port not in besides and is_free(port):
            return port
    raise StackError(f"No free port found between {_PORTS.start} and {_PORTS.stop}. End what listens there.")


def wait_until(condition: Callable[[], bool], seconds: float, error: Exception) -> None:
    """Raises the error when the condition has not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise error
        time.sleep(_POLL_SECONDS)


class Server(ABC):
    """A supervised child process. Not thread-safe; every wait is bounded.

    A port of None, or one that is taken, becomes a free one at the first start and stays for good. The folder
    is locked for as long as any process of the server lives.
    """

    name: str
    start_seconds = 60.0
    stop_seconds = 8.0  # then SIGKILL
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, ports: Mapping[str, int | None]) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / f"{self.name}.log"
        self._wanted_ports = dict(ports)
        self._ports: dict[str, int] = {}
        self._has_started = False
        self._log_start = 0
        self._watcher: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _prepare(self) -> Launch:
        """Make the folder ready (again) and say what to run. Called before every start."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server does real work for a client now. Bounded to a few seconds."""

    @property
    def ports(self) -> dict[str, int]:
        """By name; empty before the first start."""
        return dict(self._ports)

    def port_of(self, name: str) -> int:
        """Raises StackError before the first start, as ports are chosen there."""
        try:
            return self._ports[name]
        except KeyError:
            raise StackError(f"{self.name} has no port yet: start it first.") from None

    def start(self) -> None:
        """Return once the server answers. Raises StackError, and then nothing is left running."""
        if self.is_running:
            raise StackError(f"{self.name} is already running.")
        self.kill()  # what is left of a server that ended by itself
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            if not self._has_started:
                self._ports = {}
                for name, port in self._wanted_ports.items():
                    self._ports[name] = free_port(port, besides=self._ports.values())
            try:
                self._launch()
                self._wait_until_it_answers()
            except StackError:
                # Somebody was quicker than we with one of the ports: choose anew.
                is_port_lost = not all(map(is_free, self._ports.values()))
                if self._has_started or not is_port_lost or not attempts_left:
                    raise
            else:
                self._has_started = True
                return

    def stop(self) -> None:
        """Ask the server to end and wait; after `stop_seconds` it is killed. Harmless when it has ended."""
        if self._watcher is None:
            return
        self.resume()
        self._release_watcher(self.stop_seconds + 3)

    def kill(self) -> None:
        """SIGKILL to every process of the server; returns when all of them are gone."""
        if self._watcher is None:
            return
        if pid := self.pid:
            watch.signal_tree(pid, signal.SIGKILL)
        self._release_watcher(5)

    def pause(self) -> None:
        """SIGSTOP to every process of the server: it keeps its connections and answers nothing."""
        if pid := self.pid:
            watch.signal_tree(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        if pid := self.pid:
            watch.signal_tree(pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop and start on the same ports and data."""
        self.stop()
        self.start()

    @property
    def is_running(self) -> bool:
        return self._watcher is not None and self._watcher.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's own process id, None when it does not run."""
        if self._watcher is None or self._watcher.poll() is not None:
            return None
        try:
            children = psutil.Process(self._watcher.pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0].pid if children else None

    @property
    def exit_code(self) -> int | None:
        """128 + the signal's number after a signal; None while it runs or when it was stopped by us."""
        return self._watcher.poll() if self._watcher else None

    def last_log_lines(self, count: int = 15) -> str:
        """Of the last start."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                start = self._log_start if self._log_start <= end else 0  # 0: the log has been moved aside
                file.seek(max(start, end - 16_384))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
        except OSError:
            return "(no log yet)"

    def failure(self, what_happened: str) -> StackError:
        """An error about this server that ends in its last log lines."""
        return StackError(f"{self.name} {what_happened}. Its log, {self.log}, ends in:\n{self.last_log_lines()}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self) -> None:
        with self._locked_folder() as lock:
            launch = self._prepare()
            options = {
                "command": [*launch.account.prefix, *launch.command],
                "log": str(self.log),
                "inherited_fds": [lock.fileno()],
                "user": launch.account.user,
                "group": launch.account.group,
                "stop_signal": int(self.stop_signal),
                "stop_seconds": self.stop_seconds,
            }
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                self._watcher = subprocess.Popen(
                    [sys.executable, "-I", watch.__file__, json.dumps(options)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=dict(launch.environment),
                    cwd=launch.working_folder,
                    pass_fds=[lock.fileno()],
                    start_new_session=True,
                )

    @contextlib.contextmanager
    def _locked_folder(self) -> Iterator[IO[bytes]]:
        """The lock is inherited by the server's processes, so it also waits for a dying predecessor."""
        with (self.folder / f"{self.name}.lock").open("ab") as lock:
            wait_until(
                lambda: _is_locked_by_us(lock),
                self.stop_seconds + 5,
                StackError(f"{self.name}: another process uses {self.folder}; stop it first."),
            )
            yield lock

    def _wait_until_it_answers(self) -> None:
        assert self._watcher is not None
        deadline = time.monotonic() + self.start_seconds
        while not (self._listens() and self._answers()):
            if (code := self._watcher.poll()) is not None:
                self.kill()
                raise self.failure(f"ended with code {code} while it started")
            if time.monotonic() > deadline:
                self.kill()
                raise self.failure(f"did not answer within {self.start_seconds:.0f} s of its start")
            time.sleep(_POLL_SECONDS)

    def _listens(self) -> bool:
        """Whether our processes hold all our ports: an answer may come from another server on a port that
        we have just lost to it.
        """
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid := self.pid:
                root = psutil.Process(pid)
                sockets = [s for p in (root, *root.children(recursive=True)) for s in p.net_connections("tcp")]
                return {s.laddr.port for s in sockets if s.status == psutil.CONN_LISTEN} >= set(self._ports.values())
        return False

    def _release_watcher(self, timeout_seconds: float) -> None:
        assert self._watcher is not None
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        try:
            self._watcher.wait(timeout_seconds)
        except subprocess.TimeoutExpired:  # the watcher itself hangs or is frozen
            watch.signal_tree(self._watcher.pid, signal.SIGKILL)
            self._watcher.wait(5)
        self._watcher = None


def _is_locked_by_us(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
