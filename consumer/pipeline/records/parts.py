"""What the pipeline knows of fetched records: parts, by whichever engine has read them, and the engines. Pure."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from aiokafka import ConsumerRecord

from consumer.pipeline.records.record_batches import FetchedRecords
from consumer.store.dead_letters import Place
from consumer.store.rows.decoded import Decoded
from consumer.store.rows.table_rows import TableRows
from consumer.store.suppressions import Subject
from shared.engine import EngineName


class Part(Protocol):
    """One or more records of one partition, in the order of their offsets, and the row or dead letter of each."""

    @property
    def partition(self) -> int: ...
    @property
    def first_offset(self) -> int: ...
    @property
    def next_offset(self) -> int:
        """The offset behind the last record."""

    @property
    def memory_bytes(self) -> int:
        """About what the part takes until its batch is written."""

    def __len__(self) -> int: ...

    def record(self, number: int) -> ConsumerRecord:
        """The record at this place of the part, from 0."""

    def number_of(self, offset: int) -> int:
        """The place in the part of the record with this offset, which is there."""

    def split(self, count: int) -> tuple["Part", "Part"]:
        """The first `count` records, and the rest; neither is empty."""

    def dead_letters(self) -> list[Decoded]:
        """The records of which no row can be made."""

    def subjects(self) -> set[Subject]:
        """The persons and organizations that the rows name."""

    def matching(self, subjects: Collection[Subject], before_us: int | None) -> Iterator[Decoded]:
        """Records with rows: every one of these subjects or from before that time, and perhaps others."""


class Engine(Protocol):
    """Reads what was fetched, and makes rows of it. One a process."""

    @property
    def name(self) -> EngineName: ...
    @property
    def unknown_tables(self) -> Sequence[str]:
        """Tables that the native engine leaves to the reference."""

    @property
    def declined(self) -> Counter[str]:
        """Records that the native engine has left to the reference, by reason, since they were last cleared."""

    def read(self, fetched: FetchedRecords) -> Iterator[Part]:
        """Parts in the order of their offsets, each read in some milliseconds.

        Raises:
            CorruptRecordException: the bytes are damaged.
        """

    def tables(self, parts: Sequence[Part], left_out: AbstractSet[Place]) -> dict[str, TableRows]:
        """The rows of the parts by table, without those that are left out. The parts are this engine's."""


Offsets = dict[int, list[int]]  # sorted, by partition


def offsets_of(places: Collection[Place]) -> Offsets:
    found: Offsets = {}
    for partition, offset in sorted(places):
        found.setdefault(partition, []).append(offset)
    return found


def numbers_in(part: Part, offsets: Offsets) -> list[int]:
    """The numbers of the part's records at these offsets; every offset within its reach is that of a record."""
    mine = offsets.get(part.partition)
    if not mine:
        return []
    return [
        part.number_of(offset)
        for offset in mine[bisect_left(mine, part.first_offset) : bisect_left(mine, part.next_offset)]
    ]
