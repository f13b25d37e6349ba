"""The engines that serve, and what each makes of a request."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from receiver.translate.engines.engine import Engine, Reference, Translation, new_engine
from receiver.translate.outcome import Ignored, Outcome, Rejected
from receiver.translate.rules import Rules
from shared.engine import is_native_built
from shared.wire import BATCH_BYTES_MAX, encode

NOW_MS = 1_795_460_000_000
SPANS_MAX = 100_000


@dataclass
class Answers:
    """The records of a request in order, and how many spans have none, by reason."""

    records: list[tuple[bytes, bytes]] = field(default_factory=list)  # key and value
    ignored: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> "Answers":
        """As the reference alone has it."""
        found = cls()
        for outcome in outcomes:
            match outcome:
                case Ignored(reason):
                    found.ignored[reason] += 1
                case Rejected(reason):
                    found.rejected[reason] += 1
                case event:
                    record = encode(event)
                    found.records.append((record.key, record.value))
        return found


@lru_cache(64)
def engines(by: Rules, spans_max: int = SPANS_MAX) -> list[Engine]:
    """Every engine that is here: where the native one was not built, the reference alone."""
    built = [new_engine(by, setting="native", spans_max=spans_max)] if is_native_built() else []
    return [Reference(by, spans_max=spans_max), *built]


def answers_by(engine: Engine, body: bytes) -> Answers:
    """What the engine makes of a request, with its records read back from the batches that the broker would get."""
    translation = engine.open(body)
    while not translation.step(1.0):
        pass
    return Answers(records_of(engine, translation), translation.ignored, translation.rejected)


def records_of(engine: Engine, translation: Translation) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    for partition, records in translation.partitioned(1):
        placed = 0
        while placed < records:
            builder = engine.builder(_Uncompressed)
            added = translation.add(builder, partition, placed, NOW_MS)
            assert added, "an empty batch takes any record"
            placed += added
            found += _read(builder, added)
    return found


class _Uncompressed:
    """Where the reference gets a batch from."""

    @staticmethod
    def create_batch() -> BatchBuilder:
        return BatchBuilder(BATCH_BYTES_MAX, 0)


def _read(builder: Any, added: int) -> list[tuple[bytes, bytes]]:
    """As aiokafka's consumer reads a batch."""
    assert builder.record_count() == added
    batches = MemoryRecords(bytes(builder._build()))
    found = []
    while batches.has_next():
        batch = batches.next_batch()
        assert batch.validate_crc()
        for record in batch:
            assert record.timestamp == NOW_MS
            found.append((record.key, record.value))
    assert len(found) == added
    return found
