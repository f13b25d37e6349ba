"""spans through a stock SDK -> rows: says whether a running stack does its job, and exits 1 when it does not.

    python deploy/smoke.py --endpoint http://127.0.0.1:4317 --database postgresql://user:password@host:port/name

Run by the workflow against docker compose, through its Collector; works against any stack.
"""

import argparse
import asyncio
import sys
import time
import uuid

import asyncpg
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

SPANS = 30
EXPECTED = {"user_activity": 10, "endpoint_usage": 10, "feature_usage": 10}


def send(endpoint: str, run: str) -> None:
    """Ten spans of each kind, marked with this run's deployment type."""
    provider = TracerProvider(resource=Resource.create({"service.name": "smoke", "deployment.type": run}))
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=30)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("smoke")
    kinds = (
        {"event.category": "user_activity", "event.type": "login"},
        {"http.request.method": "GET", "http.route": "/smoke", "http.response.status_code": 200},
        {"feature.name": "smoke", "feature.action": "tested"},
    )
    for number in range(SPANS):
        attributes = {"user.id": f"smoke-{number}", "organization.id": "smoke"} | kinds[number % len(kinds)]
        tracer.start_span("smoke", kind=SpanKind.SERVER, attributes=attributes).end()
    provider.shutdown()


async def counted(database: str, run: str) -> dict[str, int]:
    connection = await asyncpg.connect(database, timeout=10)
    try:
        query = "SELECT count(*) FROM {} WHERE deployment_type = $1"
        return {table: await connection.fetchval(query.format(table), run) for table in EXPECTED}
    finally:
        await connection.close()


def main() -> int:
    options = argparse.ArgumentParser(description="spans through a stock SDK -> rows")
    options.add_argument("--endpoint", default="http://127.0.0.1:4317", help="OTLP/gRPC of the receiver or a Collector")
    options.add_argument("--database", required=True, help="URL of Postgres, for a role that reads the rows")
    options.add_argument("--seconds", type=float, default=60, help="longest wait for the rows")
    given = options.parse_args()
    run = f"smoke-{uuid.uuid4().hex[:12]}"
    send(given.endpoint, run)
    deadline = time.monotonic() + given.seconds
    while (rows := asyncio.run(counted(given.database, run))) != EXPECTED:
        if time.monotonic() > deadline:
            print(f"not within {given.seconds:.0f} s: {rows}, and not {EXPECTED}")
            return 1
        time.sleep(0.5)
    print(f"{SPANS} spans are {rows}, marked {run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
