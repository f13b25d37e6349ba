"""The gRPC server: its options, its certificates, its health service, and the order of the stop."""

import asyncio
import ipaddress
import ssl
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from receiver import metrics
from receiver.serve.budget import Budget, Reads
from receiver.serve.service import SERVICE, Method, TraceService
from receiver.settings import ReceiverSettings
from shared.errors import WrongSetting
from shared.logs import error_facts
from shared.probes import Health

log = structlog.get_logger(__name__)

DRAIN_S = 6.0
REFUSE_S = 0.5  # callers who come meanwhile hear when to come again; a closing grpc gives some CANCELLED
GRACE_S = 0.5  # for replies on their way out
WATCH_EVERY_S = 0.2
METADATA_BYTES_MAX = 16 * 1024
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def options(settings: ReceiverSettings) -> list[tuple[str, int]]:
    """Concurrency is bounded in the service: grpc's own limit answers RESOURCE_EXHAUSTED, and senders then drop."""
    return [
        ("grpc.max_receive_message_length", settings.max_request_bytes),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
        # What waits to be read holds 64 KiB a call. The probe would widen that to megabytes: 300 calls of 4 MiB
        # that nobody had asked to read took 1.1 GB with it, and 27 MiB without. Bodies that are read are not
        # slowed down by it, as their window grows to their size.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 3),
        # Connections never move by themselves: ageing gives new replicas their share. grpc adds 10 % of jitter.
        ("grpc.max_connection_age_ms", 300_000),
        ("grpc.max_connection_age_grace_ms", 10_000),
    ]


class Server:
    """A grpc.aio server with the trace and the health service."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        service: TraceService,
        reads: Reads,
        budget: Budget,
        state: Health,
    ) -> None:
        self._service = service
        self._reads = reads
        self._budget = budget
        self._state = state
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=options(settings))
        self._server.add_generic_rpc_handlers((Method(service),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._listen(settings)
        metrics.inflight_limit_bytes.set(settings.max_inflight_bytes)

    async def start(self) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, _NOT_SERVING)
        await self._server.start()

    async def watch(self) -> None:
        """Tell the health service and the gauges, until cancelled."""
        while True:
            is_ready = not self._state.why_not_ready()
            status = _SERVING if is_ready else _NOT_SERVING
            metrics.ready.set(is_ready)
            for name in ("", SERVICE):
                await self._health.set(name, status)
            metrics.inflight_bytes.set(self._budget.bytes)
            metrics.reads_waiting.set(self._reads.waiting)
            await asyncio.sleep(WATCH_EVERY_S)

    async def stop(self) -> None:
        """Not ready first; then refuse new calls and finish those in flight; then close: 7 s at most."""
        self._state.block("draining", "SIGTERM")
        await self._health.enter_graceful_shutdown()
        await self._service.drain(DRAIN_S)
        await asyncio.sleep(REFUSE_S)
        await self._server.stop(GRACE_S)

    def _listen(self, settings: ReceiverSettings) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.port}"
        try:
            if settings.tls_cert_file is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, Certificates(settings).credentials())
        except RuntimeError as error:
            raise WrongSetting(f"PORT: {address} cannot be listened on; is it taken?") from error


class Certificates:
    """The files of TLS, looked at for each new connection and read again when they changed.

    A pair that does not fit together, as in the middle of a rotation, is not taken: the last one stays.
    """

    def __init__(self, settings: ReceiverSettings) -> None:
        assert settings.tls_cert_file is not None
        assert settings.tls_key_file is not None
        self._cert, self._key, self._ca = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
        try:
            self._stamp = self._stamps()
            self._first = self._read()
        except (OSError, ssl.SSLError) as error:
            raise WrongSetting(
                f"TLS_CERT_FILE, TLS_KEY_FILE or TLS_CLIENT_CA_FILE cannot be used: {type(error).__name__}"
            ) from error

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._changed,  # type: ignore[arg-type]  # None stands for "no change", which the stubs forget
            require_client_authentication=self._ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by grpc from a thread of its own."""
        try:
            stamp = self._stamps()
            if stamp == self._stamp:
                return None
            fresh = self._read()
            if stamp != self._stamps():
                return None  # still being written; the next connection looks again
        except (OSError, ssl.SSLError) as error:
            log.warning("certificates_kept", **error_facts(error))
            return None
        self._stamp = stamp
        log.info("certificates_read")
        return fresh

    def _read(self) -> grpc.ServerCertificateConfiguration:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Raises when they do not fit together; an encrypted key would have it ask on the terminal.
        context.load_cert_chain(self._cert, self._key, password=b"")
        if self._ca is not None:
            context.load_verify_locations(self._ca)
        ca = self._ca.read_bytes() if self._ca is not None else None
        pair = (self._key.read_bytes(), self._cert.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)

    def _stamps(self) -> list[tuple[int, int, int]]:
        return [_stamp(path) for path in (self._cert, self._key, self._ca) if path is not None]


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
