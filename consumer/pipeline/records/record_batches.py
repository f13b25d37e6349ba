"""aiokafka's fetcher -> record batches as the broker sent them, instead of an object for each record.

The one module that knows how aiokafka is made inside: its fetcher runs its own code with two classes of ours in place
of its MemoryRecords and PartitionRecords, in the consumers that ask for it and in no other. Whatever is not a plain
record batch of format 2 is read by aiokafka's own classes. Its unit test pins what this relies on.
"""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import FunctionType, MethodType
from typing import Any

import cramjam
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords

_LENGTH = struct.Struct(">qi")  # base offset; bytes behind the length
_HEADER = struct.Struct(">qiibIhi")  # as far as is looked at: up to the last offset's delta
_HEADER_BYTES = 61
_FORMAT_AT = 16  # in every format
_CONTROL = 0x20
# What aiokafka lets pass of its own reading when bytes behind a right checksum are no records.
_UNREADABLE = (ValueError, EOFError, OSError, zlib.error, cramjam.DecompressionError)


@dataclass(frozen=True, slots=True)
class Fetched:
    """One whole record batch, of which the records before `from_offset` are not wanted."""

    place: TopicPartition
    data: bytes
    from_offset: int


FetchedRecords = Fetched | list[ConsumerRecord]


def take_record_batches(consumer: AIOKafkaConsumer) -> None:
    """Let `getmany` hand out FetchedRecords, each of which counts as one of `max_records`.

    Call it between the consumer's start and its first seek. The consumer's positions move as usual.
    """
    fetcher = consumer._fetcher  # noqa: SLF001
    method = Fetcher._proc_fetch_request  # noqa: SLF001
    ours = {"MemoryRecords": _Answer, "PartitionRecords": _Batches}
    function = FunctionType(method.__code__, {**method.__globals__, **ours}, method.__name__)
    fetcher._proc_fetch_request = MethodType(function, fetcher)  # noqa: SLF001


def records_of(fetched: Fetched) -> list[ConsumerRecord]:
    """The records of a batch from `from_offset` on, read and checked by aiokafka, in any format.

    Raises:
        CorruptRecordException: the bytes are damaged.
    """
    try:
        return _timed(_own_reading(fetched.place, fetched.data, None, fetched.from_offset))
    except _UNREADABLE as error:
        raise CorruptRecordException("unreadable") from error


def _own_reading(place: TopicPartition, data: bytes, aborted: Any, from_offset: int) -> Any:
    return PartitionRecords(
        place,
        MemoryRecords(data),
        aborted,
        from_offset,
        key_deserializer=None,
        value_deserializer=None,
        check_crcs=True,
        isolation_level=READ_COMMITTED,
    )


def _timed(records: Iterable[ConsumerRecord]) -> list[ConsumerRecord]:
    """-1 where a record has no time: format 0 knows none."""
    return [record if record.timestamp is not None else replace(record, timestamp=-1) for record in records]


class _Answer:
    """What a broker sent of one partition. Stands where the fetcher makes a MemoryRecords."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._records = MemoryRecords(data)

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def size_in_bytes(self) -> int:
        return int(self._records.size_in_bytes())


class _Batches:
    """Record batches out of an answer. Stands where the fetcher makes a PartitionRecords.

    `next_fetch_offset` is the position behind what was handed out; the fetcher reads it.
    """

    def __init__(
        self, place: TopicPartition, answer: _Answer, aborted_transactions: Any, fetch_offset: int, *_: Any
    ) -> None:
        self.next_fetch_offset = fetch_offset
        self._place = place
        self._data = answer.data
        self._aborted = aborted_transactions
        self._at = 0

    def __iter__(self) -> "_Batches":
        return self

    def __next__(self) -> FetchedRecords:
        while (
            len(self._data) - self._at >= _HEADER_BYTES and not self._aborted and self._data[self._at + _FORMAT_AT] == 2
        ):
            base_offset, length, _, _, _, attributes, last_delta = _HEADER.unpack_from(self._data, self._at)
            start, end = self._at, self._at + _LENGTH.size + length
            if end - start < _HEADER_BYTES:
                break
            if end > len(self._data):  # the last one may be there in part; it is fetched again
                self._at = len(self._data)
                break
            self._at = end
            from_offset, next_offset = self.next_fetch_offset, base_offset + last_delta + 1
            self.next_fetch_offset = next_offset
            batch = Fetched(self._place, self._data[start:end], from_offset)
            # Its checksum tells whether it may be passed over; a batch that is handed out is checked by who reads it.
            if (from_offset < next_offset and not attributes & _CONTROL) or records_of(batch):
                return batch
        return self._rest()

    def _rest(self) -> list[ConsumerRecord]:
        """All that is left, by aiokafka's own reading: an older format, transactions that were aborted, damage."""
        left = self._data[self._at :]
        self._at = len(self._data)
        if not left:
            raise StopIteration
        reading = _own_reading(self._place, left, self._aborted, self.next_fetch_offset)
        records = _timed(reading)
        self.next_fetch_offset = reading.next_fetch_offset
        if not records:
            raise StopIteration
        return records
