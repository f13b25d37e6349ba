"""What is served where, what is told about it, and the order of the stop."""

import asyncio
import ipaddress

from receiver import metrics
from receiver.serve.budget import Arrivals, Budget
from receiver.serve.export import Export
from receiver.serve.grpc_server import GrpcServer
from receiver.serve.health import Watchers
from receiver.serve.listener import Listener, raise_file_limit
from receiver.serve.tls import Certificates
from receiver.serve.turns import Turns
from receiver.settings import ReceiverSettings
from shared.probes import Health

DRAIN_S = 5.0
REFUSE_S = 0.3  # callers who come meanwhile hear when to try again
GRACE_S = 0.5  # for replies on their way out
WATCH_EVERY_S = 0.2


class Server:
    """The listeners of a worker, and the health that they tell."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        export: Export,
        arrivals: Arrivals,
        budget: Budget,
        turns: Turns,
        state: Health,
    ) -> None:
        self._export = export
        self._arrivals = arrivals
        self._budget = budget
        self._state = state
        self._watchers = Watchers()
        connections_max = min(settings.max_connections, raise_file_limit())
        grpc = GrpcServer(
            export, turns=turns, watchers=self._watchers, size_max=settings.max_request_bytes, http_port=0
        )
        self._listeners = [
            Listener(
                "grpc",
                connections_max=connections_max,
                connect=grpc.connection,
                tls=Certificates(settings, protocols=["h2"]).context if settings.tls_cert_file else None,
            )
        ]
        self._listeners[0].bind(settings.host, settings.port, variable="PORT", is_shared=settings.workers > 1)
        metrics.inflight_limit_bytes.set(settings.max_inflight_bytes)

    async def run(self) -> None:
        """Serve until cancelled. A listener that ends is an error of the whole process."""
        async with asyncio.TaskGroup() as tasks:
            for listener in self._listeners:
                tasks.create_task(listener.run(), name=listener.transport)
            tasks.create_task(self._watch(), name="watch")

    async def stop(self) -> None:
        """Not ready first; then refuse new calls and finish those in flight; then close: 6.5 s at most."""
        self._state.block("draining", "SIGTERM")
        self._watchers.set(is_serving=False)
        await self._export.drain(DRAIN_S)
        await asyncio.sleep(REFUSE_S)
        for listener in self._listeners:
            listener.refuse_connections()
        await asyncio.gather(*(listener.close(GRACE_S) for listener in self._listeners))

    async def _watch(self) -> None:
        """Tell the health service and the gauges."""
        while True:
            is_ready = not self._state.why_not_ready()
            metrics.ready.set(is_ready)
            self._watchers.set(is_serving=is_ready)
            metrics.inflight_bytes.set(self._budget.bytes)
            metrics.arriving_bytes.set(self._arrivals.bytes)
            metrics.reads_waiting.set(self._arrivals.waiting)
            for listener in self._listeners:
                metrics.connections.labels(listener.transport).set(listener.connections)
            await asyncio.sleep(WATCH_EVERY_S)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
