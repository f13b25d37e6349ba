"""The batch that records are settled in, and the engine that reads them. Pure."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import chain
from uuid import UUID

from aiokafka import ConsumerRecord

from consumer.pipeline.records.native import NativeEngine
from consumer.pipeline.records.parts import Engine, Part, numbers_in, offsets_of
from consumer.pipeline.records.reference import ReferenceEngine
from consumer.store.dead_letters import Place, time_of
from consumer.store.ledger import Line, Move
from consumer.store.rows.decoded import Decoded
from consumer.store.suppressions import Subject
from shared.engine import EngineSetting, native_library


def engine_of(setting: EngineSetting = "auto") -> Engine:
    """Raises WrongSetting: the native engine is asked for, and was not built."""
    library = native_library(setting)
    return ReferenceEngine() if library is None else NativeEngine(library)


def record_hash(record: ConsumerRecord) -> bytes:
    """SHA-256 of the value. It recognises a record, and with it the log before the record."""
    return sha256(record.value or b"").digest()


@dataclass(frozen=True, slots=True)
class Batch:
    """Parts in the order of their offsets within each partition, and the lines that they start from."""

    parts: Sequence[Part]
    lines: Mapping[int, Line]
    count: int = field(init=False)  # of the records
    last: dict[int, ConsumerRecord] = field(init=False)  # of each partition that has records here

    def __post_init__(self) -> None:
        last_parts = {part.partition: part for part in self.parts}
        last = {partition: part.record(len(part) - 1) for partition, part in last_parts.items()}
        object.__setattr__(self, "count", sum(map(len, self.parts)))
        object.__setattr__(self, "last", last)

    def cut(self, length: int) -> "Batch":
        """A batch of the first `length` records; the batch has more than that."""
        kept: list[Part] = []
        for part in self.parts:
            if length < len(part):
                return Batch([*kept, part.split(length)[0]] if length else kept, self.lines)
            kept.append(part)
            length -= len(part)
        return self

    @property
    def topic_id(self) -> UUID:
        return next(iter(self.lines.values())).topic_id

    def moves(self) -> dict[int, Move]:
        """The moves of the ledger's lines, from their offsets to behind the last records. Fates are still empty."""
        return {
            partition: Move(self.lines[partition], record.offset + 1, record_hash(record), time_of(record.timestamp))
            for partition, record in self.last.items()
        }

    def next_offsets(self) -> dict[int, int]:
        """The next offset of each partition after the batch."""
        return {partition: record.offset + 1 for partition, record in self.last.items()}

    def lines_after(self) -> dict[int, Line]:
        """All lines as they will be once the batch is written."""
        moved = self.next_offsets()
        return {
            partition: replace(line, next_offset=moved.get(partition, line.next_offset))
            for partition, line in self.lines.items()
        }

    def dead_letters(self) -> list[Decoded]:
        """The records of which no row can be made."""
        return [*chain.from_iterable(part.dead_letters() for part in self.parts)]

    def subjects(self) -> set[Subject]:
        """The persons and organizations that the rows name."""
        return set().union(*(part.subjects() for part in self.parts))

    def matching(self, subjects: Collection[Subject], before_us: int | None) -> Iterator[Decoded]:
        """Records with rows: every one of these subjects or from before that time, and perhaps others."""
        return chain.from_iterable(part.matching(subjects, before_us) for part in self.parts)

    def are_at(self, places: Collection[Place]) -> list[bool]:
        """Of each record, whether it is at one of the places, all of which are in the batch."""
        found = [False] * self.count
        offsets = offsets_of(places)
        start = 0
        for part in self.parts if places else ():
            for number in numbers_in(part, offsets):
                found[start + number] = True
            start += len(part)
        return found
