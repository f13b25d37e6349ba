"""The ports and what serves them, the health that they report, and the order of the stop."""

import asyncio
import ipaddress
from collections.abc import Callable

from receiver import metrics
from receiver.budget import Arrivals, Budget
from receiver.serve.call import Transport
from receiver.serve.export import Export
from receiver.serve.other_signals import OtherSignals
from receiver.serve.transport.connections.listener import Connection, Listener, raise_file_limit
from receiver.serve.transport.connections.tls import Certificates
from receiver.serve.transport.grpc_server import GrpcServer
from receiver.serve.transport.health import Watchers
from receiver.serve.transport.http_server import HttpServer
from receiver.serve.turns import Turns
from receiver.settings import ReceiverSettings
from shared.probes import Health

ALPN = {"grpc": "h2", "http": "http/1.1"}
DRAIN_S = 5.0
REFUSE_S = 0.3  # new calls in this time are told when to try again
GRACE_S = 0.5  # for replies on their way out
WATCH_EVERY_S = 0.2


class Server:
    """The listeners of a worker, and the health that they report."""

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
        self._watchers = Watchers(lambda: not state.why_not_ready())
        others = OtherSignals(
            are_accepted=settings.accept_other_signals, seconds_max=settings.publish_timeout_ms / 1000
        )
        size_max = settings.max_request_bytes
        grpc = GrpcServer(
            export, turns=turns, watchers=self._watchers, others=others, size_max=size_max, http_port=settings.http_port
        )
        self._listeners = [_listener("grpc", settings, connect=grpc.connection, variable="PORT", port=settings.port)]
        if settings.http_port:
            http = HttpServer(
                export,
                turns=turns,
                others=others,
                size_max=size_max,
                cors_origins=settings.http_cors_origins,
                grpc_port=settings.port,
            )
            self._listeners.append(
                _listener("http", settings, connect=http.connection, variable="HTTP_PORT", port=settings.http_port)
            )
        metrics.inflight_limit_bytes.set(settings.max_inflight_bytes)

    async def run(self) -> None:
        """Serve until cancelled. A listener that ends is an error of the whole process."""
        async with asyncio.TaskGroup() as tasks:
            for listener in self._listeners:
                tasks.create_task(listener.run(), name=listener.transport)
            tasks.create_task(self._export.unfinished.run(), name="unfinished")
            tasks.create_task(self._watch(), name="watch")

    async def stop(self) -> None:
        """Not ready first; then refuse new calls and finish those in flight; then close: 6.5 s at most."""
        self._state.block("draining", "SIGTERM")
        self._watchers.update()
        await self._export.drain(DRAIN_S)
        await asyncio.sleep(REFUSE_S)
        for listener in self._listeners:
            listener.refuse_connections()
        await asyncio.gather(*(listener.close(GRACE_S) for listener in self._listeners))

    async def _watch(self) -> None:
        """Update the health service and the gauges."""
        while True:
            metrics.ready.set(not self._state.why_not_ready())
            self._watchers.update()
            self._export.unfinished.forget()
            metrics.inflight_bytes.set(self._budget.held["requests"])
            self._budget.hold(sum(listener.held_bytes for listener in self._listeners), "connections")
            self._budget.hold(self._export.remembered_bytes, "caches")
            for holder, size in self._budget.held.items():
                metrics.held_bytes.labels(holder).set(size)
            metrics.calls_open.set(self._export.calls)
            metrics.arriving_bytes.set(self._arrivals.bytes)
            metrics.reads_waiting.set(self._arrivals.waiting)
            for listener in self._listeners:
                metrics.connections.labels(listener.transport).set(listener.connections)
            await asyncio.sleep(WATCH_EVERY_S)


def _listener(
    transport: Transport,
    settings: ReceiverSettings,
    *,
    connect: Callable[[Listener], Connection],
    variable: str,
    port: int,
) -> Listener:
    """Raises WrongSetting when the port cannot be listened on."""
    tls = Certificates(settings, protocols=[ALPN[transport]]).context if settings.tls_cert_file else None
    connections_max = min(settings.max_connections, raise_file_limit() // len(ALPN))
    listener = Listener(transport, connections_max=connections_max, connect=connect, tls=tls)
    listener.bind(settings.host, port, variable=variable, is_shared=settings.workers > 1)
    return listener


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
