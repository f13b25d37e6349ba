"""grpc.health.v1: the readiness of the process, for Check calls and for Watch calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

CHECK, WATCH = b"/grpc.health.v1.Health/Check", b"/grpc.health.v1.Health/Watch"
TRACES = "opentelemetry.proto.collector.trace.v1.TraceService"
LIVENESS = "liveness"  # always serving while the port answers: a restart does not repair a broker
SERVICES = ("", TRACES)
WATCHERS_MAX = 100

_Field = descriptor_pb2.FieldDescriptorProto


class Status(IntEnum):
    """The enum of HealthCheckResponse."""

    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class Watchers:
    """The status, which is the same for every service, and the callers that watch it."""

    def __init__(self, is_serving: Callable[[], bool]) -> None:
        self._is_serving = is_serving
        self._status = Status.NOT_SERVING
        self._told: dict[Callable[[bytes], None], str] = {}

    @staticmethod
    def service_of(raw: bytes) -> str | None:
        """The service that a HealthCheckRequest names; None when the bytes are no such request."""
        try:
            return str(_MESSAGES["Request"].FromString(raw).service)
        except DecodeError:
            return None

    def update(self) -> None:
        """Tell every watcher of a change. A watcher that does not read delays nobody: see Stream.send."""
        status = Status.SERVING if self._is_serving() else Status.NOT_SERVING
        if status is not self._status:
            self._status = status
            for tell, service in list(self._told.items()):
                if service in SERVICES:
                    tell(_encoded(status))

    def status(self, service: str) -> bytes | None:
        """A HealthCheckResponse, as things are now; None for an unknown service."""
        self.update()
        if service == LIVENESS:
            return _encoded(Status.SERVING)
        return _encoded(self._status) if service in SERVICES else None

    def watched_status(self, service: str) -> bytes:
        return self.status(service) or _encoded(Status.SERVICE_UNKNOWN)

    @contextmanager
    def watching(self, service: str, tell: Callable[[bytes], None]) -> Iterator[bool]:
        """Call `tell` at each change within the block; False when too many watch already."""
        if len(self._told) >= WATCHERS_MAX:
            yield False
            return
        self._told[tell] = service
        try:
            yield True
        finally:
            del self._told[tell]


def _encoded(status: Status) -> bytes:
    raw: bytes = _MESSAGES["Response"](status=int(status)).SerializeToString()
    return raw


def _compiled() -> dict[str, Any]:
    """Classes of the two messages. The published classes would need the whole of grpc."""
    file = descriptor_pb2.FileDescriptorProto(
        name="telemetry_processor/health.proto", package="telemetry_processor.health", syntax="proto3"
    )
    for name, field, kind in (("Request", "service", _Field.TYPE_STRING), ("Response", "status", _Field.TYPE_INT32)):
        file.message_type.add(name=name).field.add(name=field, number=1, label=_Field.LABEL_OPTIONAL, type=kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{message.name}"))
        for message in file.message_type
    }


_MESSAGES = _compiled()
