"""A population of which a stock SDK sends one span in ten: the weights bring its size back."""

import asyncio
import math

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace._sampling_experimental import composable_traceid_ratio_based, composite_sampler
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from support.stack import Stack

POPULATION, RATIO = 6_000, 0.1


def send_population(port: int) -> None:
    """Each span is the root of a trace of its own, so each is drawn by itself."""
    provider = TracerProvider(sampler=composite_sampler(composable_traceid_ratio_based(RATIO)))
    endpoint = f"http://127.0.0.1:{port}"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True)))
    tracer = provider.get_tracer("test")
    for number in range(POPULATION):
        span = tracer.start_span("use")
        span.set_attributes(
            {"feature.name": "export", "user.id": f"user-{number % 40}"}
        )  # this sampler drops earlier ones
        span.end()
    provider.shutdown()


async def test_the_weights_of_sampled_rows_add_up_to_the_population(stack: Stack) -> None:
    """The SDK writes the threshold into the trace state; without it every count would be a tenth."""
    await stack.create_topic(partitions=2)
    receiver = stack.receiver()
    stack.consumer()
    await asyncio.to_thread(send_population, receiver.port_of("PORT"))
    kept = len(await stack.read_topic())
    await stack.settled(kept)
    rows = list((await stack.rows("feature_usage")).values())
    assert len(rows) == kept
    error = math.sqrt(POPULATION * (1 - RATIO) / RATIO)  # one standard deviation of the estimate
    assert abs(sum(row["weight"] for row in rows) - POPULATION) < 5 * error
    assert {round(row["weight"], 3) for row in rows} == {10.0}
    [told] = await stack.fetch(
        "SELECT uses FROM analytics.feature_adoption(now() - interval '1 day', now() + interval '1 hour')"
    )
    assert abs(told["uses"] - POPULATION) < 5 * error
