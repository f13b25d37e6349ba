"""gRPC over HTTP/2: paths -> the export, replies -> headers, messages and trailers."""

import asyncio
import base64
import re
import struct
import time
from collections.abc import Awaitable, Callable, Hashable
from functools import partial

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTracePartialSuccess as Partial
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse as Response

from receiver import replies
from receiver.budget import FREE_BYTES, Arrival
from receiver.replies import NoBody, Reply, TooLarge, UnknownEncoding
from receiver.serve.call import Transport
from receiver.serve.export import Export
from receiver.serve.other_signals import OtherSignals
from receiver.serve.transport.body import inflated
from receiver.serve.transport.connections.http2 import Http2Connection
from receiver.serve.transport.connections.listener import Listener
from receiver.serve.transport.connections.protocol import WholeReply
from receiver.serve.transport.connections.stream import Headers, Stream
from receiver.serve.transport.health import CHECK, WATCH, Watchers
from receiver.serve.turns import Turns

EXPORT = b"/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SIGNALS = {
    b"/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
    b"/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
}
_PREFIX_BYTES = 5  # a flag, and the message's length
_SMALL_BYTES = 64 * 1024  # of a Health request: more is no such request
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_HEADERS: Headers = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"gzip,deflate,zstd"),
]
_OK: Headers = [(b"grpc-status", b"0")]
_NOTHING = struct.pack(">BI", 0, 0)  # an empty message: an ExportTraceServiceResponse without partial_success
_SUCCESS = WholeReply.of(_HEADERS, _NOTHING, _OK)
Method = Callable[[Stream], Awaitable[None]]


class GrpcCall:
    """An Export call as the export sees it."""

    transport: Transport = "grpc"

    def __init__(self, stream: Stream, *, turns: Turns, size_max: int) -> None:
        self._stream = stream
        self._turns = turns
        self._size_max = size_max
        self.headers = stream.headers
        self._ends_at = _deadline(stream)

    @property
    def peer(self) -> Hashable:
        return self._stream.connection

    def remaining_s(self) -> float | None:
        return None if self._ends_at is None else self._ends_at - time.monotonic()

    def give_way(self, error: Exception) -> None:
        self._stream.fail(error)

    async def read(self, arrival: Arrival) -> bytes:
        """See Call.read. Of a call with several messages the first is taken, as in any unary call."""
        flag, packed = await self._message(arrival)
        if not flag:
            return packed
        encoding = self._stream.header(b"grpc-encoding")
        if encoding in (b"", b"identity"):
            raise UnknownEncoding
        return await inflated(packed, encoding, arrival, turns=self._turns, size_max=self._size_max)

    async def _message(self, arrival: Arrival) -> tuple[int, bytes]:
        pieces: list[bytes | memoryview] = []
        received, size, flag = 0, _PREFIX_BYTES, -1
        while received < size:
            piece = await self._stream.receive()
            if not piece:
                raise NoBody
            await arrival.grow(len(piece))
            self._stream.give_back()  # not at the reply: calls that wait for the broker would use up the window
            received += len(piece)
            pieces.append(piece)
            if flag < 0 and received >= _PREFIX_BYTES:
                start = b"".join(pieces)
                flag, length = struct.unpack_from(">BI", start)
                if length > self._size_max:
                    raise TooLarge
                size = _PREFIX_BYTES + length
                if length > FREE_BYTES:
                    self._stream.widen()
                pieces = [memoryview(start)[_PREFIX_BYTES:size]]
        body = b"".join(pieces)
        return flag, body[: size - _PREFIX_BYTES]


class GrpcServer:
    """Answers a connection's calls."""

    def __init__(
        self, export: Export, *, turns: Turns, watchers: Watchers, others: OtherSignals, size_max: int, http_port: int
    ) -> None:
        self._export = export
        self._turns = turns
        self._watchers = watchers
        self._size_max = size_max
        self._others = others
        self._http_port = http_port
        self._methods: dict[bytes, Method] = {EXPORT: self._traces, CHECK: self._check, WATCH: self._watch}
        if others.are_accepted:
            self._methods |= {path: partial(self._drop, signal=signal) for path, signal in SIGNALS.items()}

    def connection(self, listener: Listener) -> Http2Connection:
        return Http2Connection(listener, serve=self.serve, misdirected=self._misdirected)

    async def serve(self, stream: Stream) -> None:
        """Answer one call."""
        kind = stream.header(b"content-type")
        if stream.header(b":method") != b"POST":
            stream.send([(b":status", b"405"), (b"allow", b"POST")])
        elif not kind.startswith(b"application/grpc") or kind.startswith(b"application/grpc-web"):
            stream.send([(b":status", b"415")])
        elif (method := self._methods.get(stream.header(b":path"))) is None:
            refuse(stream, "UNIMPLEMENTED", "unknown service or method")
        elif (timeout := stream.named.get(b"grpc-timeout")) is not None and not _TIMEOUT.fullmatch(timeout):
            refuse(stream, "INTERNAL", "grpc-timeout is malformed")
        else:
            await method(stream)

    async def _traces(self, stream: Stream) -> None:
        reply = await self._export.answer(GrpcCall(stream, turns=self._turns, size_max=self._size_max))
        if reply.code == replies.OK:
            if reply.rejected:
                stream.send(_HEADERS, framed(_response(reply)), _OK)
            else:
                stream.send_whole(_SUCCESS)
        else:
            refuse(stream, reply.code, reply.text, retry_after_s=reply.retry_after_s)

    async def _drop(self, stream: Stream, *, signal: str) -> None:
        """Metrics or logs: taken, thrown away and counted."""
        if not self._export.is_known(stream.headers):
            told = replies.REPLIES[replies.KeyRefused]
            refuse(stream, told.code, told.text)
            return
        async with asyncio.timeout(self._others.seconds_max):
            while await stream.receive():
                pass
        self._others.dropped(signal)
        stream.send(_HEADERS, _NOTHING, _OK)

    async def _check(self, stream: Stream) -> None:
        service = await _health_request(stream)
        status = self._watchers.status(service) if service is not None else None
        if status is None:
            refuse(stream, "NOT_FOUND", "unknown service")
        else:
            stream.send(_HEADERS, framed(status), _OK)

    async def _watch(self, stream: Stream) -> None:
        service = await _health_request(stream)
        if service is None:
            refuse(stream, "INVALID_ARGUMENT", "not a HealthCheckRequest")
            return
        with self._watchers.watching(service, lambda status: stream.send(None, framed(status))) as is_admitted:
            if not is_admitted:
                refuse(stream, "RESOURCE_EXHAUSTED", "too many watchers")
                return
            stream.send(_HEADERS, framed(self._watchers.watched_status(service)))
            await asyncio.Event().wait()  # until the caller leaves, or the connection does

    def _misdirected(self, head: bytes) -> bytes:
        """What HTTP/1.1 is told on this port."""
        if not re.match(rb"[A-Z]{3,10} ", head):
            return b""
        other = f"; OTLP/HTTP is on port {self._http_port}" if self._http_port else ""
        text = f"This port speaks OTLP/gRPC{other}.\n".encode()
        return (
            b"HTTP/1.1 421 Misdirected Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(text), text)
        )


def refuse(stream: Stream, code: str, text: str, *, retry_after_s: float | None = None) -> None:
    """Trailers only, with RetryInfo in the status details where the caller shall try again."""
    number = int(Code.Value(code))
    trailers = [*_HEADERS[:2], (b"grpc-status", b"%d" % number), (b"grpc-message", _percent_encoded(text))]
    if retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(retry_after_s * 1000))
        detail = AnyMessage()
        detail.Pack(RetryInfo(retry_delay=delay))
        status = Status(code=number, message=text, details=[detail]).SerializeToString()
        trailers.append((b"grpc-status-details-bin", base64.b64encode(status).rstrip(b"=")))
    stream.send(None, b"", trailers)


def framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def _response(reply: Reply) -> bytes:
    return Response(
        partial_success=Partial(rejected_spans=reply.rejected, error_message=reply.text)
    ).SerializeToString()


async def _health_request(stream: Stream) -> str | None:
    """The service that is asked about; None for bytes that are no such request."""
    raw = b""
    while piece := await stream.receive():
        raw += piece
        if len(raw) > _SMALL_BYTES:
            return None
    return Watchers.service_of(raw[_PREFIX_BYTES:]) if raw[:1] == b"\0" else None


def _deadline(stream: Stream) -> float | None:
    found = _TIMEOUT.fullmatch(stream.header(b"grpc-timeout"))
    return stream.started_at + int(found[1]) * _UNITS_S[found[2]] if found else None


def _percent_encoded(text: str) -> bytes:
    return b"".join(
        bytes([byte]) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in text.encode()
    )
