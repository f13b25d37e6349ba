"""record batches -> rows in Python, an object a record: the reference, for where the native engine was not built."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import cast

from aiokafka import ConsumerRecord

from consumer.pipeline.records.parts import Part
from consumer.pipeline.records.record_batches import Fetched, FetchedRecords, records_of
from consumer.store.dead_letters import Place
from consumer.store.rows.decoded import Decoded, decoded
from consumer.store.rows.table_rows import ReferenceRows, TableRows
from consumer.store.suppressions import Subject, subjects_of
from shared.engine import EngineName

SLICE_RECORDS = 100  # decoded in one go, while the writer waits for its turn: half a millisecond
ASCII_FACTOR, OTHER_FACTOR = 2, 5  # the bytes, and text of them: one emoji makes a string take 4 bytes a character


class ReferencePart:
    """Records, each with its row."""

    def __init__(self, records: Sequence[Decoded]) -> None:
        self.records = records

    @property
    def partition(self) -> int:
        partition: int = self.records[0].record.partition
        return partition

    @property
    def first_offset(self) -> int:
        first_offset: int = self.records[0].record.offset
        return first_offset

    @property
    def next_offset(self) -> int:
        next_offset: int = self.records[-1].record.offset + 1
        return next_offset

    @property
    def memory_bytes(self) -> int:
        return sum(memory_bytes(each.record) for each in self.records)

    def __len__(self) -> int:
        return len(self.records)

    def record(self, number: int) -> ConsumerRecord:
        return self.records[number].record

    def number_of(self, offset: int) -> int:
        return bisect_left(self.records, offset, key=lambda each: each.record.offset)

    def split(self, count: int) -> tuple[Part, Part]:
        return ReferencePart(self.records[:count]), ReferencePart(self.records[count:])

    def dead_letters(self) -> list[Decoded]:
        return [each for each in self.records if each.dead_letter]

    def subjects(self) -> set[Subject]:
        return {subject for each in self.records if each.table for subject in subjects_of(each)}

    def matching(self, subjects: Collection[Subject], before_us: int | None) -> Iterator[Decoded]:  # noqa: ARG002
        return (each for each in self.records if each.table)


class ReferenceEngine:
    """Python's own."""

    name: EngineName = "python"
    unknown_tables = ()

    def __init__(self) -> None:
        self.declined: Counter[str] = Counter()

    def read(self, fetched: FetchedRecords) -> Iterator[Part]:
        records = records_of(fetched) if isinstance(fetched, Fetched) else fetched
        for start in range(0, len(records), SLICE_RECORDS):
            yield ReferencePart([*map(decoded, records[start : start + SLICE_RECORDS])])

    def tables(self, parts: Sequence[Part], left_out: AbstractSet[Place]) -> dict[str, TableRows]:
        found: dict[str, list[Decoded]] = {}
        for part in cast("Sequence[ReferencePart]", parts):
            for each in part.records:
                if each.table and (not left_out or each.place not in left_out):
                    found.setdefault(each.table, []).append(each)
        return {table: ReferenceRows(table, rows) for table, rows in found.items()}


def memory_bytes(record: ConsumerRecord) -> int:
    """About what a record takes once it is decoded: its bytes, and its row's text."""
    value = record.value or b""
    return len(value) * (ASCII_FACTOR if value.isascii() else OTHER_FACTOR)
