"""The receiver that one would write first: the generated servicer, a dict a span, a send and a future a record.

It keeps the same promise as ours (a reply OK means that every in-sync replica has every event), has the same
settings and makes the same records. What it leaves out is what ours has on top: privacy rules, limits, retries.

    python -m bench.peers.receiver        HOST, PORT, KAFKA_BOOTSTRAP_SERVERS and KAFKA_TOPIC from the environment
"""

import asyncio
import hashlib
import os
import signal
import time
import uuid
from collections.abc import Iterable
from typing import Any

import grpc
import orjson
import uvloop
from aiokafka import AIOKafkaProducer
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

DEPLOYMENT_TYPE = "self-hosted"
METADATA = {"service.name", "service.version", "service.namespace", "error.type", "telemetry.sdk.language"}
CATEGORIES = {"user_activity", "endpoint_usage", "feature_usage", "model_usage"}
Fields = dict[str, Any]


class TraceService(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def Export(  # noqa: N802  grpc's name
        self, request: ExportTraceServiceRequest, _: grpc.aio.ServicerContext[Any, Any]
    ) -> ExportTraceServiceResponse:
        received_at_ms = time.time_ns() // 1_000_000
        sent = []
        for group in request.resource_spans:
            resource = values_of(group.resource.attributes)
            for scope in group.scope_spans:
                for span in scope.spans:
                    event = event_of(span, resource)
                    if event is not None:
                        sent.append(await self._send(event, received_at_ms))
        await asyncio.gather(*sent)  # from here on every in-sync replica has every event
        return ExportTraceServiceResponse()

    async def _send(self, event: Fields, received_at_ms: int) -> "asyncio.Future[Any]":
        """Put one record on its way; the future is its acknowledgement."""
        headers = [("event_type", event["table"].encode()), ("schema_version", b"2")]
        value = orjson.dumps(event)
        key = event["id"].encode()
        acknowledged: asyncio.Future[Any] = await self._producer.send(
            self._topic, value, key, timestamp_ms=received_at_ms, headers=headers
        )
        return acknowledged


def values_of(attributes: Iterable[KeyValue]) -> Fields:
    values: Fields = {}
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        if kind is not None:
            values[attribute.key] = getattr(attribute.value, kind)
    return values


def event_of(span: Span, resource: Fields) -> Fields | None:
    """The event's fields, None when the span is none: the mapping table of the README, without its fallbacks."""
    own = values_of(span.attributes)
    values = {**resource, **own}
    table = table_of(span, values)
    if table is None:
        return None
    event = {
        "schema_version": 2,
        "table": table,
        "id": id_of(span),
        "timestamp_us": span.start_time_unix_nano // 1000,
        "deployment_type": values.get("deployment.type", DEPLOYMENT_TYPE),
        "user_id": hash_of(values.get("user.id")),
        "organization_id": hash_of(values.get("organization.id")),
        "service_name": values.get("service.name"),
        "service_version": values.get("service.version"),
        "trace_id": str(uuid.UUID(bytes=span.trace_id)),
        "weight": 1.0,
        **columns_of(table, span, values),
        "event_metadata": {
            key.removeprefix("metadata."): value
            for key, value in values.items()
            if key in METADATA or key.startswith("metadata.")
        },
    }
    return {name: value for name, value in event.items() if value is not None}


def table_of(span: Span, values: Fields) -> str | None:
    category = values.get("event.category")
    if category is not None:
        return category if category in CATEGORIES else None
    if "feature.name" in values:
        return "feature_usage"
    if span.kind == Span.SPAN_KIND_SERVER and "http.request.method" in values:
        return "endpoint_usage"
    return None


def columns_of(table: str, span: Span, values: Fields) -> Fields:
    if table == "user_activity":
        return {"event_type": values["event.type"], "session_id": values.get("session.id")}
    if table == "feature_usage":
        return {"feature_name": values["feature.name"], "action": values.get("feature.action")}
    return {
        "endpoint": values.get("http.route") or named_route(span.name) or endpoint_of(values["url.path"]),
        "method": values["http.request.method"].upper(),
        "status_code": values.get("http.response.status_code"),
        "duration_ms": (span.end_time_unix_nano - span.start_time_unix_nano) / 1_000_000,
    }


def named_route(name: str) -> str | None:
    """The route of a span that is named `METHOD /route`."""
    _, _, route = name.partition(" ")
    return route if route.startswith("/") else None


def endpoint_of(path: str) -> str:
    """The path with numbers taken for ids."""
    return "/".join("{id}" if segment.isdigit() else segment for segment in path.split("/"))


def id_of(span: Span) -> str:
    """A version 8 UUID from SHA-256 of trace id and span id."""
    digest = bytearray(hashlib.sha256(span.trace_id + span.span_id).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(digest)))


def hash_of(raw: str | None) -> str | None:
    return None if raw is None else hashlib.sha256(raw.encode()).hexdigest()[:16]


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    producer = AIOKafkaProducer(
        bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        acks="all",
        compression_type="zstd",
        linger_ms=5,
        max_batch_size=900 * 1024,  # as ours; its default of 16 KiB is no faster
    )
    await producer.start()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 * 1024 * 1024)])
    service = TraceService(producer, os.environ["KAFKA_TOPIC"])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"{os.environ['HOST']}:{os.environ['PORT']}")
    await server.start()
    await stop.wait()
    await server.stop(5)
    await producer.stop()


if __name__ == "__main__":
    uvloop.run(main())
