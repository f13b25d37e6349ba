"""records -> what each of them is, and the batch they are settled in. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from operator import attrgetter
from typing import NamedTuple
from uuid import UUID

from aiokafka import ConsumerRecord

from consumer.store.dead_letters import DeadLetter, Place, time_of
from consumer.store.ledger import Line, Move
from consumer.store.plain_rows import PlainRows
from consumer.store.schema import INDEX, Row, row_of
from shared.errors import Undecodable
from shared.wire import decode


class Decoded(NamedTuple):
    """A record and what it is: an event's row, a dead letter, or a tombstone (neither).

    Of the event its row is kept and nothing else: three batches of models would be memory, and work for the
    garbage collector.
    """

    record: ConsumerRecord
    table: str = ""  # of its row; empty when it has none
    row: Row = ()
    dead_letter: DeadLetter | None = None

    @property
    def place(self) -> Place:
        return self.record.partition, self.record.offset

    @property
    def user_id(self) -> str | None:
        hashed: str | None = self.row[INDEX[self.table]["user_id"]]
        return hashed

    @property
    def organization_id(self) -> str | None:
        hashed: str | None = self.row[INDEX[self.table]["organization_id"]]
        return hashed

    @property
    def timestamp_us(self) -> int:
        happened_us: int = self.row[INDEX[self.table]["timestamp"]]
        return happened_us


def decoded(record: ConsumerRecord, plain: PlainRows | None = None) -> Decoded:
    """One record -> one row, or why it is none. Never raises for any bytes. `plain` reads what needs no judgement."""
    if record.value is None:
        return Decoded(record)
    if plain is not None and (found := plain.read(record.value)):
        return Decoded(record, *found)
    try:
        event = decode(record.value)
    except Undecodable as undecodable:
        return Decoded(record, dead_letter=DeadLetter(record, undecodable.reason))
    return Decoded(record, event.table, row_of(event))


def memory_bytes(record: ConsumerRecord) -> int:
    """About what a record takes once it is decoded: its bytes, and its row's text."""
    value = record.value or b""
    return len(value) * (ASCII_FACTOR if value.isascii() else OTHER_FACTOR)


ASCII_FACTOR, OTHER_FACTOR = 2, 5  # the bytes, and text of them: one emoji makes a string take 4 bytes a character
partition_of = attrgetter("record.partition")
_partition_and_record = attrgetter("record.partition", "record")


def record_hash(record: ConsumerRecord) -> bytes:
    """By which a record is known again, and with it the log before it: SHA-256 of the value."""
    return sha256(record.value or b"").digest()


@dataclass(frozen=True, slots=True)
class Batch:
    """Records in the order of their offsets within each partition, and the lines that they start from."""

    records: Sequence[Decoded]
    lines: dict[int, Line]
    last: dict[int, ConsumerRecord] = field(init=False)  # of each partition that has records here

    def __post_init__(self) -> None:
        object.__setattr__(self, "last", dict(map(_partition_and_record, self.records)))

    def cut(self, length: int) -> "Batch":
        """The first `length` records."""
        return Batch(self.records[:length], self.lines)

    @property
    def topic_id(self) -> UUID:
        return next(iter(self.lines.values())).topic_id

    def moves(self) -> dict[int, Move]:
        """From where the lines are to behind the last records; still without fates."""
        return {
            partition: Move(self.lines[partition], record.offset + 1, record_hash(record), time_of(record.timestamp))
            for partition, record in self.last.items()
        }

    def next_offsets(self) -> dict[int, int]:
        """Where each partition goes on after the batch."""
        return {partition: record.offset + 1 for partition, record in self.last.items()}

    def lines_after(self) -> dict[int, Line]:
        """Where all lines will be once the batch is written."""
        moved = self.next_offsets()
        return {
            partition: replace(line, next_offset=moved.get(partition, line.next_offset))
            for partition, line in self.lines.items()
        }


def by_table(records: Iterable[Decoded]) -> dict[str, list[Decoded]]:
    """Those that have a row, in their order."""
    found: dict[str, list[Decoded]] = {}
    for each in records:
        if each.table:
            found.setdefault(each.table, []).append(each)
    return found


@dataclass(slots=True)
class Written:
    """What a transaction has settled: a fate for every offset that its moves pass."""

    moves: dict[int, Move]
    fates: Counter[tuple[str, str]] = field(default_factory=Counter)  # (fate, table)
    reasons: Counter[str] = field(default_factory=Counter)  # of new dead letters
    cut_at: int | None = None  # the breaker let only so many records pass

    def count(self, fate: str, table: str, partition: int, records: int = 1) -> None:
        self.moves[partition].counts[fate] += records
        self.fates[fate, table] += records

    def count_letters(self, letters: Iterable[DeadLetter], new: Iterable[DeadLetter]) -> None:
        for letter in letters:
            self.count("dead_lettered", "", letter.record.partition)
        self.reasons.update(letter.reason for letter in new)

    def settle(self) -> None:
        """Whatever is between the offsets and has no fate yet held no record, or a tombstone: skipped."""
        for move in self.moves.values():
            self.fates["skipped", ""] += move.settle()
