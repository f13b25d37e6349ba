"""Where is my span? Its row, its dead letter, or what else became of it."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from aiokafka import ConsumerRecord

from consumer.operations.operation import Operation, WrongUse
from consumer.store import suppressions
from consumer.store.rows.decoded import decoded
from consumer.store.schema import ANALYTICS_TABLES
from shared.events import event_id, partition_of

State = Literal["row", "dead_letter", "suppressed", "waiting", "gone", "not_seen"]


@dataclass(frozen=True, slots=True)
class Found:
    """`waiting`: in the topic, not consumed yet. `gone`: consumed, but the row was deleted since, or expired."""

    id: str
    state: State
    detail: dict[str, Any] = field(default_factory=dict)


async def find(operation: Operation, trace_id: str, span_id: str) -> Found:
    """Look in the tables, then among the dead letters, then through the span's partition.

    Raises:
        WrongUse: the ids are no ids.
    """
    try:
        trace, span = bytes.fromhex(trace_id), bytes.fromhex(span_id)
    except ValueError:
        raise WrongUse("ids are given in hex") from None
    if len(trace) != 16 or len(span) != 8:
        raise WrongUse("a trace id has 32 hex digits, a span id 16")
    id_ = event_id(trace, span)
    for table in ANALYTICS_TABLES:
        row = await operation.database.fetchrow(f"SELECT * FROM public.{table} WHERE id = $1", id_)  # noqa: S608  our own name
        if row is not None:
            columns = {**row, "event_metadata": json.loads(row["event_metadata"])}
            return Found(str(id_), "row", {"table": table, **columns})
    letter = await operation.database.fetchrow(
        """
        SELECT partition, "offset", reason, redriven_at FROM ingest.dead_letters
        WHERE topic = $1 AND (key = $2 OR position($2 IN value) > 0) ORDER BY "offset" DESC LIMIT 1
        """,
        operation.topic,
        str(id_).encode(),
    )
    if letter is not None:
        return Found(str(id_), "dead_letter", dict(letter))
    partition = partition_of(id_, len(await operation.partitions()))
    record = await _last_record(operation, partition, str(id_).encode())
    if record is None:
        return Found(str(id_), "not_seen", {"partition": partition})
    place = {"partition": partition, "offset": record.offset}
    lines = await operation.ledger.load(operation.database, [partition])
    if partition not in lines or lines[partition].next_offset <= record.offset:
        return Found(str(id_), "waiting", place)
    found = decoded(record)
    erased = await suppressions.among(
        operation.database, lambda: suppressions.subjects_of(found) if found.table else []
    )
    if found.table and suppressions.is_suppressed(found, record.timestamp, erased):
        return Found(str(id_), "suppressed", place)
    return Found(str(id_), "gone", place)


async def _last_record(operation: Operation, partition: int, key: bytes) -> ConsumerRecord | None:
    """The newest record of that key in the partition; reads all of it."""
    [place] = operation.places([partition])
    operation.kafka.assign([place])
    end = (await operation.kafka.end_offsets([place]))[place]
    operation.kafka.seek(place, (await operation.kafka.beginning_offsets([place]))[place])
    found = None
    while await operation.kafka.position(place) < end:
        for record in (await operation.kafka.getmany(place, timeout_ms=1_000)).get(place, []):
            if record.key == key:
                found = record
    return found
