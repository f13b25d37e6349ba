"""Record batches out of aiokafka's fetcher: the records, positions and errors of aiokafka's own reading."""

import inspect
import re
from dataclasses import replace

import pytest
from aiokafka import ConsumerRecord
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from consumer.pipeline.records.record_batches import Fetched, _Answer, _Batches, records_of
from support.record_batches import (
    CONTROL,
    GZIP,
    LZ4,
    NONE,
    PLACE,
    SNAPPY,
    TRANSACTIONAL,
    ZSTD,
    batch_of,
    checked,
    with_attributes,
)

CODECS = (NONE, GZIP, SNAPPY, LZ4, ZSTD)


def old_format(magic: int, codec: int, offset: int) -> bytes:
    builder = LegacyRecordBatchBuilder(magic, codec, 1 << 20)
    for number in range(3):
        builder.append(offset + number, 1_795_460_000_000, b"key", b"old")
    return bytes(builder.build())


def answer(seed: list[tuple[str, int, int]]) -> bytes:
    """What a broker may send: batches of every kind, one after the other, with gaps between and within."""
    whole, offset = b"", 100
    for kind, codec, records in seed:
        values = [b"value %d" % number for number in range(records)]
        deltas = range(0, 2 * records, 2)
        match kind:
            case "plain":
                batch = batch_of(values, first_offset=offset, deltas=deltas, codec=codec)
            case "transactional":
                batch = with_attributes(batch_of(values, first_offset=offset, codec=codec), TRANSACTIONAL)
            case "control":
                marker = b"\0\0\0\1"
                batch = with_attributes(batch_of([b"\0" * 6], first_offset=offset, codec=NONE, key=marker), CONTROL)
            case "emptied":  # all its records were compacted away
                full = batch_of(values, first_offset=offset, codec=NONE)
                batch = checked(full[:57] + b"\0\0\0\0")
            case _:
                batch = old_format(int(kind), codec if codec < LZ4 else NONE, offset)
        whole += batch
        offset += 2 * records + 7
    return whole


def by_aiokafka(data: bytes, from_offset: int) -> tuple[list[ConsumerRecord], int, str]:
    """The records, the position behind them, and the type of the error that ended the reading."""
    reading = PartitionRecords(PLACE, MemoryRecords(data), None, from_offset, None, None, True, READ_COMMITTED)
    records: list[ConsumerRecord] = []
    try:
        records.extend(timed(record) for record in reading)
    except Exception as error:  # noqa: BLE001  whatever it raises
        return records, -1, type(error).__name__
    return records, reading.next_fetch_offset, ""


def timed(record: ConsumerRecord) -> ConsumerRecord:
    """Format 0 knows no time."""
    return record if record.timestamp is not None else replace(record, timestamp=-1)


def by_ours(data: bytes, from_offset: int) -> tuple[list[ConsumerRecord], int, str]:
    reading = _Batches(PLACE, _Answer(data), None, from_offset)
    records: list[ConsumerRecord] = []
    try:
        for each in reading:
            records += records_of(each) if isinstance(each, Fetched) else each
    except Exception as error:  # noqa: BLE001  whatever it raises
        return records, -1, type(error).__name__
    return records, reading.next_fetch_offset, ""


def answers(*kinds: str) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    batches = st.tuples(st.sampled_from(kinds), st.sampled_from(CODECS), st.integers(1, 4))
    return st.lists(batches, min_size=1, max_size=4)


NEW = answers("plain", "plain", "transactional", "control", "emptied")
OLD = answers("0", "1").filter(lambda seed: len({kind for kind, *_ in seed}) == 1)  # aiokafka reads no mixture


@given(NEW | OLD, st.integers(-5, 1000), st.integers(0, 90))
def test_an_answer_has_the_records_and_the_position_of_aiokafkas_reading(
    seed: list[tuple[str, int, int]], skipped: int, cut: int
) -> None:
    """A record passed over is lost for good; a position that does not move on fetches the same for ever."""
    whole = answer(seed)
    from_offset = 100 + min(skipped, seed[0][2] - 1)  # brokers begin with the batch that has the wanted offset
    for data in (whole, whole[: len(whole) - cut]):  # the last batch may be there in part
        expected = by_aiokafka(data, from_offset)
        assert by_ours(data, from_offset) == expected


@given(NEW, st.integers(0), st.integers(1, 255))
def test_a_damaged_answer_gives_no_record_that_aiokafka_would_not_give(
    seed: list[tuple[str, int, int]], place: int, change: int
) -> None:
    """A flipped bit on a disk or a wire must not become a row."""
    data = bytearray(answer(seed))
    data[place % len(data)] ^= change
    expected, _, error = by_aiokafka(bytes(data), 100)
    found, _, our_error = by_ours(bytes(data), 100)
    assert found == expected[: len(found)]
    assert our_error or (found, error) == (expected, "")


def test_a_batch_is_handed_out_as_bytes_and_an_odd_one_as_records() -> None:
    """All read by aiokafka would be right too, and at a third of the speed."""
    data = answer([("plain", ZSTD, 3), ("plain", NONE, 2), ("control", NONE, 1), ("1", GZIP, 3)])
    reading = _Batches(PLACE, _Answer(data), None, 102)
    first, second, rest = [*reading]
    assert isinstance(first, Fetched)
    assert (first.place, first.from_offset) == (PLACE, 102)
    assert [record.offset for record in records_of(first)] == [102, 104]
    assert isinstance(second, Fetched)
    assert isinstance(rest, list)
    assert [record.value for record in rest] == [b"old"] * 3
    aborted = _Batches(PLACE, _Answer(answer([("transactional", ZSTD, 2)])), [(-1, 100)], 100)
    assert [*aborted] == []
    assert aborted.next_fetch_offset == 102


def test_what_is_relied_on_inside_aiokafka_is_there() -> None:
    """Another release may be made otherwise; then this fails, and not a consumer at night."""
    method = Fetcher._proc_fetch_request
    assert {"MemoryRecords", "PartitionRecords"} <= {*method.__code__.co_names}
    assert (method.__code__.co_freevars, method.__defaults__, method.__kwdefaults__) == ((), None, None)
    assert [*inspect.signature(PartitionRecords).parameters] == [
        *("tp", "records", "aborted_transactions", "fetch_offset", "key_deserializer", "value_deserializer"),
        *("check_crcs", "isolation_level"),
    ]
    used_of_records = {"has_next", "size_in_bytes"}
    assert used_of_records <= {*dir(_Answer)}
    assert {*re.findall(r"_partition_records\.(\w+)", inspect.getsource(FetchResult))} == {"next_fetch_offset"}


@pytest.mark.parametrize("codec", CODECS)
def test_records_of_a_batch_are_whole(codec: int) -> None:
    """Key, value, headers and time: a dead letter keeps all of them."""
    batch = batch_of([b"a", None], first_offset=7, codec=codec, headers=[("h", b"\xff"), ("n", None)])
    first, last = records_of(Fetched(PLACE, batch, 0))
    assert (first.offset, first.key, first.value, first.headers) == (7, b"key", b"a", (("h", b"\xff"), ("n", None)))
    assert (last.offset, last.value, last.timestamp) == (8, None, 1_795_460_000_001)
