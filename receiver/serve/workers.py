"""Several worker processes on one port: this module starts, monitors, restarts and drains them.

Each worker is a whole receiver; the kernel gives it a share of the connections. It reports on its standard output why
it is not ready. Metrics are summed from the files that prometheus_client keeps for this purpose.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from tempfile import TemporaryDirectory

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from receiver.settings import ReceiverSettings
from shared import lifecycle
from shared.errors import WrongSetting
from shared.probes import Health

log = structlog.get_logger(__name__)

REPORT_EVERY_S = 0.5
SILENCE_S_MAX = 15.0  # a worker without a report for so long is stuck: it is killed and started again
STEADY_S = 30.0  # a worker that lived this long starts anew without a wait
STOP_S = 14.0
WRONG_SETTING = 2


async def report(state: Health, stop: asyncio.Event) -> None:
    """In a worker: report on standard output why it is not ready, and stop when nobody reads the reports any more."""
    os.set_blocking(sys.stdout.fileno(), False)
    while True:
        try:
            os.write(sys.stdout.fileno(), json.dumps(state.why_not_ready()).encode() + b"\n")
        except BlockingIOError:
            pass  # the supervisor is slow; the next report says the same or better
        except OSError:
            stop.set()
        await asyncio.sleep(REPORT_EVERY_S)


class Workers:
    """`settings.workers` processes of `command`, which are ready when all of them are."""

    def __init__(
        self, settings: ReceiverSettings, *, command: list[str], environment: Mapping[str, str], state: Health
    ) -> None:
        self._count = settings.workers
        self._command = command
        self._folder = TemporaryDirectory(prefix="receiver-metrics-")
        self._environment = {
            **environment,
            "WORKERS": str(settings.workers),
            "PROMETHEUS_MULTIPROC_DIR": self._folder.name,  # read when a worker imports prometheus_client
        }
        self._state = state
        self._running: dict[int, Process] = {}
        _check_port(settings)
        for number in range(self._count):
            state.block(_name(number), "starting")

    def registry(self) -> CollectorRegistry:
        """The sums over all workers, dead ones included."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self._folder.name)  # type: ignore[no-untyped-call]
        return registry

    async def run(self, stop: asyncio.Event) -> int:
        """Keep the workers alive until `stop` is set; the exit code."""
        with self._folder:
            keepers = [asyncio.create_task(self._keep(number, stop)) for number in range(self._count)]
            await stop.wait()
            self._state.block("draining", "SIGTERM")
            for process in self._running.values():
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            _, late = await asyncio.wait(keepers, timeout=STOP_S)
            for process in self._running.values() if late else ():
                log.error("worker_killed", pid=process.pid)
                process.kill()
            codes = await asyncio.gather(*keepers)
        return max(codes)

    async def _keep(self, number: int, stop: asyncio.Event) -> int:
        """Start worker `number`, and restart it when it ends by itself.

        Returns its exit code after `stop`, or when a setting keeps it from running.
        """
        attempt = 0
        while not stop.is_set():
            started_at = time.monotonic()
            process = await asyncio.create_subprocess_exec(*self._command, env=self._environment, stdout=PIPE)
            self._running[number] = process
            if stop.is_set():
                process.send_signal(signal.SIGTERM)
            await self._listen(number, process)
            code = await process.wait()
            del self._running[number]
            mark_process_dead(process.pid, self._folder.name)  # type: ignore[no-untyped-call]
            self._state.block(_name(number), f"ended with code {code}")
            if stop.is_set():
                return code if code >= 0 else 1
            if code == WRONG_SETTING:
                stop.set()
                return code
            attempt = 0 if time.monotonic() - started_at > STEADY_S else attempt + 1
            log.error("worker_ended", worker=number, exit_code=code, attempt=attempt)
            await lifecycle.sleep_or_stop(stop, lifecycle.backoff_s(attempt, first_s=0.25))
        return 0

    async def _listen(self, number: int, process: Process) -> None:
        """Take a worker's reports until it ends."""
        assert process.stdout is not None
        while True:
            try:
                async with asyncio.timeout(SILENCE_S_MAX):
                    line = await process.stdout.readline()
            except TimeoutError:
                log.error("worker_stuck", worker=number, pid=process.pid)  # noqa: TRY400  it has no trace to show
                process.kill()
                continue
            if not line:
                return
            if why_not := json.loads(line):
                self._state.block(_name(number), "; ".join(f"{what}: {why}" for what, why in why_not.items()))
            else:
                self._state.unblock(_name(number))


def _name(number: int) -> str:
    return f"worker {number}"


def _check_port(settings: ReceiverSettings) -> None:
    """Refuse a port on which another process listens: only our own workers may share it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for variable, port in (("PORT", settings.port), ("HTTP_PORT", settings.http_port)):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                raise WrongSetting(
                    f"{variable}: {settings.host}:{port} cannot be listened on: {error.strerror}"
                ) from error
