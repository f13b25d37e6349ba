"""OTLP/HTTP by hand: a request as any client sends it, and bytes that are as wrong as a test wants them."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PROTOBUF, JSON = "application/x-protobuf", "application/json"


@dataclass(frozen=True)
class HttpAnswer:
    """What a request ended in, its body read by its content type."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def is_json(self) -> bool:
        return self.headers.get("content-type") == JSON

    @property
    def response(self) -> ExportTraceServiceResponse:
        if self.is_json:
            return json_format.Parse(self.body, ExportTraceServiceResponse())
        return ExportTraceServiceResponse.FromString(self.body)

    @property
    def refusal(self) -> Status:
        if not self.is_json:
            return Status.FromString(self.body)
        told = json.loads(self.body)
        return Status(code=told["code"], message=told["message"])

    @property
    def retry_s(self) -> float | None:
        """Of the details of a protobuf Status."""
        retry = RetryInfo()
        found = any(detail.Unpack(retry) for detail in Status.FromString(self.body).details)
        return retry.retry_delay.ToTimedelta().total_seconds() if found else None


async def post(
    port: int,
    body: bytes,
    *,
    path: str = "/v1/traces",
    method: str = "POST",
    kind: str | None = PROTOBUF,
    **headers: str,
) -> HttpAnswer:
    """Header names with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if kind is not None:
        named["content-type"] = kind
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body or None, named, method=method)
    return await asyncio.to_thread(_answered, request)


def _answered(request: urllib.request.Request) -> HttpAnswer:
    started_at = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return _answer(answer.status, answer.headers, answer.read(), started_at)
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error.code, error.headers, error.read(), started_at)


def _answer(status: int, headers: Any, body: bytes, started_at: float) -> HttpAnswer:
    named = {name.lower(): value for name, value in headers.items()}
    return HttpAnswer(status, named, body, time.monotonic() - started_at)


def otlp_json(body: bytes) -> bytes:
    """A protobuf request as OTLP's JSON: ids in hex, enums as numbers. Needs strings that are UTF-8."""
    told = json_format.MessageToDict(ExportTraceServiceRequest.FromString(body), use_integers_for_enums=True)
    sent = ExportTraceServiceRequest.FromString(body)
    for group, raw_group in zip(told.get("resourceSpans", ()), sent.resource_spans, strict=True):
        for scope, raw_scope in zip(group.get("scopeSpans", ()), raw_group.scope_spans, strict=True):
            for span, raw in zip(scope.get("spans", ()), raw_scope.spans, strict=True):
                ids = {"traceId": raw.trace_id, "spanId": raw.span_id, "parentSpanId": raw.parent_span_id}
                span |= {name: value.hex() for name, value in ids.items() if name in span}
                for link, raw_link in zip(span.get("links", ()), raw.links, strict=True):
                    link |= {"traceId": raw_link.trace_id.hex(), "spanId": raw_link.span_id.hex()}
    return json.dumps(told).encode()


async def exchange(port: int, sent: bytes, seconds: float = 3) -> bytes:
    """All that comes back over a connection of its own until it is closed, or the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = b""
    try:
        async with asyncio.timeout(seconds):
            writer.write(sent)
            await writer.drain()
            while piece := await reader.read(65_536):
                heard += piece
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()
    return heard
