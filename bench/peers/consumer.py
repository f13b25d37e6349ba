"""The consumer that one would write first: getmany, a model a record, executemany upserts, offsets to the group.

At least once, which its upserts make good: an offset is committed after the rows that come before it. It has the same
models, tables and database settings as ours. What it leaves out is what ours has on top: the ledger in the rows'
transaction, dead letters, erasures, fences.

    python -m bench.peers.consumer        KAFKA_BOOTSTRAP_SERVERS, KAFKA_TOPIC, KAFKA_CONSUMER_GROUP and
                                          ANALYTICS_DATABASE_URL from the environment

After each commit it prints how many rows that makes.
"""

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import orjson
import uvloop
from aiokafka import AIOKafkaConsumer
from pydantic import TypeAdapter

from shared.events import EVENT_MODELS, Event

ROWS_OF_A_BATCH = 500
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COLUMNS = {
    model.model_fields["table"].default: [
        name if name != "timestamp_us" else "timestamp"
        for name in model.model_fields
        if name not in ("schema_version", "table")
    ]
    for model in EVENT_MODELS
}

events: TypeAdapter[Event] = TypeAdapter(Event)


def upsert_sql(table: str, columns: list[str]) -> str:
    values = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    changes = ", ".join(f"{name} = EXCLUDED.{name}" for name in columns if name not in ("id", "timestamp"))
    inserted = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"
    return f"{inserted} ON CONFLICT (id, timestamp) DO UPDATE SET {changes}"


UPSERTS = {table: upsert_sql(table, columns) for table, columns in COLUMNS.items()}


def row_of(event: Event) -> tuple[Any, ...]:
    values = dict(event)
    values["timestamp"] = EPOCH + timedelta(microseconds=event.timestamp_us)
    values["event_metadata"] = orjson.dumps(event.event_metadata).decode()
    return tuple(values[name] for name in COLUMNS[event.table])


async def store(connection: asyncpg.Connection, stored: Iterable[Event]) -> None:
    rows = defaultdict(list)
    for event in stored:
        rows[event.table].append(row_of(event))
    async with connection.transaction():
        for table, of_table in rows.items():
            await connection.executemany(UPSERTS[table], of_table)


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    connection = await asyncpg.connect(os.environ["ANALYTICS_DATABASE_URL"])
    consumer = AIOKafkaConsumer(
        os.environ["KAFKA_TOPIC"],
        bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        group_id=os.environ["KAFKA_CONSUMER_GROUP"],
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=2 * 1024 * 1024,  # as ours
    )
    await consumer.start()
    rows = 0
    while not stop.is_set():
        found = await consumer.getmany(timeout_ms=250, max_records=ROWS_OF_A_BATCH)
        records = [record for of_partition in found.values() for record in of_partition]
        if not records:
            continue
        await store(connection, [events.validate_json(record.value) for record in records])
        await consumer.commit()
        rows += len(records)
        print(rows, flush=True)
    await consumer.stop()
    await connection.close()


if __name__ == "__main__":
    uvloop.run(main())
