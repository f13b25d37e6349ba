"""record batches -> rows by the native engine; what is not plain is read by the reference and joins the same rows."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from types import ModuleType
from typing import Any, cast

from aiokafka import ConsumerRecord, TopicPartition

from consumer.pipeline.records.parts import Part, numbers_in, offsets_of
from consumer.pipeline.records.record_batches import Fetched, FetchedRecords, records_of
from consumer.pipeline.records.reference import memory_bytes
from consumer.store.dead_letters import Place
from consumer.store.rows.decoded import Decoded, decoded
from consumer.store.rows.plain_rows import DECLINED, PlainRows
from consumer.store.rows.table_rows import Key, ReferenceRows, TableRows, latest_rows
from consumer.store.schema import DAY_US
from consumer.store.suppressions import COLUMN, Subject, subjects_of
from shared.engine import EngineName


class NativePart:
    """Records `start` to `stop` of a chunk, which is the engine's: bytes, and the rows of the plain records.

    `odd`: what the reference made of those that did not become rows of the chunk, by their number in the chunk.
    `given`: the records, where aiokafka has read them.
    """

    def __init__(
        self,
        place: TopicPartition,
        chunk: Any,
        span: tuple[int, int],
        *,
        odd: Mapping[int, Decoded],
        given: Sequence[ConsumerRecord] | None,
    ) -> None:
        self.partition: int = place.partition
        self.chunk = chunk
        self.start, self.stop = span
        self._place = place
        self._odd = odd
        self._given = given

    @property
    def first_offset(self) -> int:
        return int(self.chunk.offset(self.start))

    @property
    def next_offset(self) -> int:
        return int(self.chunk.offset(self.stop - 1)) + 1

    @property
    def memory_bytes(self) -> int:
        """Of the whole chunk: a part of it keeps all of it."""
        given = sum(len(record.value or b"") for record in self._given or ())
        return int(self.chunk.memory_bytes()) + given + sum(memory_bytes(each.record) for each in self._odd.values())

    def __len__(self) -> int:
        return self.stop - self.start

    def record(self, number: int) -> ConsumerRecord:
        return self._record(self.start + number)

    def _record(self, number: int) -> ConsumerRecord:
        if self._given is not None:
            return self._given[number]
        offset, time_ms, time_type, key, value, headers = self.chunk.record(number)
        sizes = (-1 if each is None else len(each) for each in (key, value))
        topic, partition = self._place
        return ConsumerRecord(topic, partition, offset, time_ms, time_type, key, value, None, *sizes, headers)

    def decoded(self, number: int) -> Decoded:
        """A record by its number in the chunk, by the reference."""
        return self._odd.get(number) or decoded(self._record(number))

    def all(self) -> Iterator[Decoded]:
        return map(self.decoded, range(self.start, self.stop))

    def odd(self) -> Iterator[Decoded]:
        return (each for number, each in self._odd.items() if self.start <= number < self.stop)

    def number_of(self, offset: int) -> int:
        return int(self.chunk.number_of(offset)) - self.start

    def split(self, count: int) -> tuple[Part, Part]:
        middle = self.start + count
        spans = (self.start, middle), (middle, self.stop)
        first, rest = (NativePart(self._place, self.chunk, span, odd=self._odd, given=self._given) for span in spans)
        return first, rest

    def dead_letters(self) -> list[Decoded]:
        return [each for each in self.odd() if each.dead_letter]

    def subjects(self) -> set[Subject]:
        found = {subject for each in self.odd() if each.table for subject in subjects_of(each)}
        texts = self.chunk.subjects(self.start, self.stop)
        return found.union(*({Subject(kind, text) for text in of} for kind, of in zip(COLUMN, texts, strict=True)))

    def matching(self, subjects: Collection[Subject], before_us: int | None) -> Iterator[Decoded]:
        wanted = [{subject.hash for subject in subjects if subject.kind == kind} for kind in COLUMN]
        yield from (each for each in self.odd() if each.table)
        yield from map(self.decoded, self.chunk.matching(self.start, self.stop, wanted, before_us))


class NativeRows:
    """Rows that the engine has sorted, each key once."""

    def __init__(self, rows: Any, parts: Sequence[NativePart], table: str, left_out: AbstractSet[Place]) -> None:
        self._rows = rows
        self.decoded = partial(_decoded, parts, table, left_out)
        self.counts: Counter[int] = Counter(rows.counts())

    @property
    def latest_counts(self) -> Counter[int]:
        return Counter(self._rows.latest_counts())

    def sample(self, count: int) -> list[Key]:
        keys: list[Key] = self._rows.sample(count)
        return keys

    def times(self) -> list[int]:
        days, last = self._rows.times(DAY_US)
        return [*days, last]

    def copy_data(self, *, is_staged: bool) -> bytes:
        data: bytes = self._rows.copy_data(is_staged)
        return data

    def copy_records(self, *, is_staged: bool) -> list[tuple[Any, ...]]:
        raise NotImplementedError  # there is COPY data


class NativeEngine:
    """Rust's, with the reference for what it declines."""

    name: EngineName = "native"

    def __init__(self, library: ModuleType) -> None:
        self._plain = PlainRows(library)
        self.unknown_tables = self._plain.unknown
        self.declined: Counter[str] = Counter()

    def read(self, fetched: FetchedRecords) -> Iterator[Part]:
        place, chunk, given = self._chunk(fetched)
        if not len(chunk):
            return
        odd: dict[int, Decoded] = {}
        part = NativePart(place, chunk, (0, len(chunk)), odd=odd, given=given)
        for number, reason in chunk.declined():
            self.declined[DECLINED[reason]] += 1
            found = part.decoded(number)
            table = self._plain.table_numbers.get(found.table)
            if table is None or not chunk.put(number, table, found.row):
                odd[number] = found
        yield part

    def _chunk(self, fetched: FetchedRecords) -> tuple[TopicPartition, Any, Sequence[ConsumerRecord] | None]:
        if isinstance(fetched, Fetched):
            chunk = self._plain.engine.read(fetched.data, fetched.from_offset)
            if chunk is not None:
                return fetched.place, chunk, None
            records = records_of(fetched)
            place = fetched.place
        else:
            records = fetched
            place = TopicPartition(records[0].topic, records[0].partition)
        values = [(record.offset, record.timestamp, record.value) for record in records]
        return place, self._plain.engine.read_values(values), records

    def tables(self, parts: Sequence[Part], left_out: AbstractSet[Place]) -> dict[str, TableRows]:
        ours = cast("Sequence[NativePart]", parts)
        offsets = offsets_of(left_out)
        spans = [
            (
                part.partition,
                part.chunk,
                part.start,
                part.stop,
                [part.start + number for number in numbers_in(part, offsets)],
            )
            for part in ours
        ]
        by_table = {self._plain.tables[rows.table()]: rows for rows in self._plain.engine.by_table(spans)}
        # A row that does not fit its table's COPY data is asyncpg's to refuse: then all rows of that table are.
        for_reference = {each.table for part in ours for each in part.odd() if each.table}
        for_reference |= {table for table, rows in by_table.items() if not _resolved(table, rows, ours)}
        found: dict[str, TableRows] = {
            table: NativeRows(rows, ours, table, left_out)
            for table, rows in by_table.items()
            if table not in for_reference
        }
        for table in for_reference:
            if rows := _decoded(ours, table, left_out):
                found[table] = ReferenceRows(table, rows)
        return found


def _resolved(table: str, rows: Any, parts: Sequence[NativePart]) -> bool:
    """Let the reference decide what several versions of a row come to; False when the result does not fit."""
    for conflict, places in enumerate(rows.conflicts()):
        versions = [parts[part].decoded(number) for part, number in places]
        [(row, _)] = latest_rows(table, versions).values()
        if not rows.resolve(conflict, row):
            return False
    return True


def _decoded(parts: Sequence[NativePart], table: str, left_out: AbstractSet[Place]) -> list[Decoded]:
    return [each for part in parts for each in part.all() if each.table == table and each.place not in left_out]
