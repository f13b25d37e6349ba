"""OTLP/HTTP: paths and content types -> the export, replies -> status, headers and body in the request's own type."""

import asyncio
from collections.abc import Hashable, Sequence

import orjson
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTracePartialSuccess as Partial
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse as Response

from receiver import metrics, replies
from receiver.budget import Arrival
from receiver.decode import json_request
from receiver.replies import Reply, TooLarge
from receiver.serve.call import Transport
from receiver.serve.export import Export
from receiver.serve.other_signals import OtherSignals
from receiver.serve.transport.body import collected, inflated
from receiver.serve.transport.connections.http1 import Http1Connection, Request
from receiver.serve.transport.connections.http2 import PREFACE, Http2Connection
from receiver.serve.transport.connections.listener import Listener
from receiver.serve.transport.connections.stream import Headers, Stream
from receiver.serve.transport.grpc_server import refuse
from receiver.serve.turns import Turns

TRACES = b"/v1/traces"
SIGNALS = {b"/v1/metrics": "metrics", b"/v1/logs": "logs"}
PROTOBUF, JSON = b"application/x-protobuf", b"application/json"
HELD_PER_JSON_BYTE = 12  # memory of parsed JSON
CORS_HEADERS = b"authorization, content-encoding, content-type, x-api-key, traceparent, tracestate, baggage"
CORS_MAX_AGE_S = 7_200


class HttpCall:
    """An Export call as the export sees it."""

    transport: Transport = "http"

    def __init__(self, request: Request, *, is_json: bool, turns: Turns, json_turns: Turns, size_max: int) -> None:
        self._request = request
        self._is_json = is_json
        self._turns = turns
        self._json_turns = json_turns
        self._size_max = size_max
        self.headers = request.headers

    @property
    def peer(self) -> Hashable:
        return self._request.connection

    def remaining_s(self) -> float | None:
        return None  # HTTP has no word for it

    def give_way(self, error: Exception) -> None:
        self._request.fail(error)

    async def read(self, arrival: Arrival) -> bytes:
        """See Call.read. A JSON body is converted to the protobuf request."""
        length = self._request.header(b"content-length")
        if length.isdigit() and int(length) > self._size_max:
            raise TooLarge
        packed = await collected(self._request, arrival, size_max=self._size_max)
        encoding = self._request.header(b"content-encoding").strip().lower()
        body = await inflated(packed, encoding, arrival, turns=self._turns, size_max=self._size_max)
        return await self._from_json(body, arrival) if self._is_json else body

    async def _from_json(self, body: bytes, arrival: Arrival) -> bytes:
        """Convert JSON bodies one at a time, because parsed JSON is large."""
        await arrival.grow(HELD_PER_JSON_BYTE * len(body))
        work = json_request.reading(body)
        async with self._json_turns.turn(self.peer):
            while True:
                async with self._turns.turn(self.peer):
                    try:
                        next(work)
                    except StopIteration as end:
                        return bytes(end.value)
                    except json_request.TooLargeJson:
                        raise TooLarge from None
                await asyncio.sleep(0)


class HttpServer:
    """Answers a connection's requests."""

    def __init__(
        self,
        export: Export,
        *,
        turns: Turns,
        others: OtherSignals,
        size_max: int,
        cors_origins: Sequence[str],
        grpc_port: int,
    ) -> None:
        self._export = export
        self._turns = turns
        self._json_turns = Turns()
        self._others = others
        self._size_max = size_max
        self._cors_origins = frozenset(origin.encode() for origin in cors_origins)
        self._grpc_port = grpc_port

    def connection(self, listener: Listener) -> Http1Connection:
        return Http1Connection(listener, serve=self.serve, misdirected=self._misdirected)

    async def serve(self, request: Request) -> None:
        """Answer one request."""
        path = request.path.partition(b"?")[0]
        said = request.header(b"content-type").partition(b";")[0].strip().lower()
        kind = said if said in (PROTOBUF, JSON) else None
        is_known = path == TRACES or (path in SIGNALS and self._others.are_accepted)
        if not is_known:
            self._refuse(request, kind, 404, "NOT_FOUND", "no such path: OTLP/HTTP is at /v1/traces")
        elif request.method == b"OPTIONS" and request.header(b"origin"):
            request.reply(204, self._preflight(request))
        elif request.method != b"POST":
            allowed = [(b"allow", b"POST, OPTIONS")]
            self._refuse(request, kind, 405, "UNIMPLEMENTED", "send it with POST", headers=allowed)
        elif kind is None:
            text = "content-type must be application/x-protobuf or application/json"
            self._refuse(request, kind, 415, "INVALID_ARGUMENT", text)
        elif path in SIGNALS:
            await self._drop(request, kind, SIGNALS[path])
        else:
            await self._traces(request, kind)

    async def _traces(self, request: Request, kind: bytes) -> None:
        call = HttpCall(
            request, is_json=kind == JSON, turns=self._turns, json_turns=self._json_turns, size_max=self._size_max
        )
        reply = await self._export.answer(call)
        headers = [(b"content-type", kind), *self._cors(request)]
        if reply.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(reply.retry_after_s))))
        if reply.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        request.reply(reply.status, headers, _body(reply, kind))

    async def _drop(self, request: Request, kind: bytes, signal: str) -> None:
        """Answer metrics or logs with success, drop them and count them."""
        if not self._export.is_known(request.headers):
            reply = Reply("UNAUTHENTICATED", 401, replies.REPLIES[replies.KeyRefused].text)
        else:
            async with asyncio.timeout(self._others.seconds_max):
                while await request.receive():
                    pass
            self._others.dropped(signal)
            reply = Reply(replies.OK, 200)
        request.reply(reply.status, [(b"content-type", kind), *self._cors(request)], _body(reply, kind))

    def _refuse(
        self, request: Request, kind: bytes | None, status: int, code: str, text: str, *, headers: Headers | None = None
    ) -> None:
        metrics.http_refused.labels(str(status)).inc()
        kind = kind or JSON
        reply = Reply(code, status, text)
        request.reply(status, [(b"content-type", kind), *(headers or []), *self._cors(request)], _body(reply, kind))

    def _cors(self, request: Request) -> Headers:
        origin = request.header(b"origin")
        if not origin or not (b"*" in self._cors_origins or origin in self._cors_origins):
            return []
        return [(b"access-control-allow-origin", origin), (b"vary", b"origin")]

    def _preflight(self, request: Request) -> Headers:
        allowed = self._cors(request)
        if not allowed:
            return []
        return [
            *allowed,
            (b"access-control-allow-methods", b"POST"),
            (b"access-control-allow-headers", CORS_HEADERS),
            (b"access-control-max-age", b"%d" % CORS_MAX_AGE_S),
        ]

    def _misdirected(self, connection: Http1Connection, head: bytes) -> None:
        """Answer gRPC on this port as gRPC: a client would retry at once if the connection just ended."""
        if head.startswith(PREFACE):
            connection.hand_over(Http2Connection(connection.listener, serve=self._refuse_grpc), head)
        else:
            connection.transport.close()

    async def _refuse_grpc(self, stream: Stream) -> None:
        refuse(stream, "UNIMPLEMENTED", f"this port speaks OTLP/HTTP; OTLP/gRPC is on port {self._grpc_port}")


def _body(reply: Reply, kind: bytes) -> bytes:
    if reply.code == replies.OK:
        return _success_json(reply) if kind == JSON else _success(reply)
    return _status_json(reply) if kind == JSON else _status(reply)


def _success(reply: Reply) -> bytes:
    if not reply.rejected:
        return b""
    return Response(
        partial_success=Partial(rejected_spans=reply.rejected, error_message=reply.text)
    ).SerializeToString()


def _success_json(reply: Reply) -> bytes:
    if not reply.rejected:
        return b"{}"
    return orjson.dumps({"partialSuccess": {"rejectedSpans": str(reply.rejected), "errorMessage": reply.text}})


def _status(reply: Reply) -> bytes:
    details = []
    if reply.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(reply.retry_after_s * 1000))
        details.append(AnyMessage())
        details[0].Pack(RetryInfo(retry_delay=delay))
    return bytes(Status(code=reply.code_number, message=reply.text, details=details).SerializeToString())


def _status_json(reply: Reply) -> bytes:
    status: dict[str, object] = {"code": reply.code_number, "message": reply.text}
    if reply.retry_after_s is not None:
        retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{reply.retry_after_s:.3f}s"}
        status["details"] = [retry]
    return orjson.dumps(status)
