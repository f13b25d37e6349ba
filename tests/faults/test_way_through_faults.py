"""The whole way through, with each of its processes killed in turn: what was answered OK is a row, once."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SpanExporter

from deploy.local.kafka import KafkaBroker
from deploy.local.postgres import PostgresServer
from support.spans import Sent, Shop, exported, exporter, http_exporter
from support.stack import TABLES, Stack, eventually


@pytest.fixture
def own_stack(stack: Stack, folder: Path) -> Iterator[Stack]:
    """Servers of the test's own, to be killed."""
    mark = time.monotonic_ns()
    with KafkaBroker(folder / f"kafka-{mark}") as kafka, PostgresServer(folder / f"postgres-{mark}") as postgres:
        stack.kafka, stack.postgres = kafka, postgres
        yield stack
        stack.close()


@pytest.mark.parametrize("transport", ["grpc", pytest.param("http", marks=pytest.mark.long)])
async def test_each_process_killed_in_turn_loses_and_doubles_nothing(
    own_stack: Stack, migrate: Callable[[PostgresServer], Awaitable[str]], transport: str
) -> None:
    """kill -9 of receiver, consumer, Kafka and Postgres under light load; only the killed one is started again."""
    own_stack.database_url = await migrate(own_stack.postgres)
    receiver, consumer = own_stack.receiver(), own_stack.consumer()
    acknowledged: list[Sent] = []
    is_over = asyncio.Event()
    shop = Shop(5)
    if transport == "grpc":
        client: SpanExporter = exporter(receiver.port_of("PORT"), timeout_s=5)
    else:
        client = http_exporter(receiver.port_of("HTTP_PORT"), timeout_s=5)

    async def send() -> None:
        while not is_over.is_set():
            spans = [shop.any() for _ in range(20)]
            if await asyncio.to_thread(exported, client, spans):
                acknowledged.extend(spans)

    async def progress(what: str) -> None:
        sent, stored = len(acknowledged), await own_stack.row_count()

        async def has_moved() -> bool:
            return len(acknowledged) > sent + 100 and await own_stack.row_count() > stored + 100

        await eventually(has_moved, 60, f"spans acknowledged and stored {what}")

    task = asyncio.create_task(send())
    try:
        await progress("at first")
        for process in (receiver, consumer, own_stack.kafka, own_stack.postgres):
            await asyncio.to_thread(process.kill)
            await asyncio.to_thread(process.start)
            await progress(f"after the end of {process.name}")
    finally:
        is_over.set()
        await task
        client.shutdown()

    async def are_rows() -> bool:
        ids = {row["id"] for table in TABLES for row in await own_stack.fetch(f"SELECT id FROM {table}")}
        return {sent.id for sent in acknowledged} <= ids

    await eventually(are_rows, 60, f"all of {len(acknowledged)} acknowledged spans are rows")
    rows = {table: await own_stack.rows(table) for table in TABLES}
    assert [sent for sent in acknowledged if not sent.matches(rows[sent.table][sent.id])] == []
    assert await own_stack.fetch("SELECT * FROM ingest.dead_letters") == []
