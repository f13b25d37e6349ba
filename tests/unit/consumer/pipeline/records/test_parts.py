"""Record batches -> rows: the native engine has for a whole batch what the reference has, whatever the bytes."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from consumer.pipeline.batch import Batch, engine_of
from consumer.pipeline.records.parts import Engine, Part
from consumer.pipeline.records.record_batches import Fetched
from consumer.pipeline.records.reference import ReferenceEngine
from consumer.store.dead_letters import Place
from consumer.store.ledger import Line
from consumer.store.rows import plain_rows
from consumer.store.suppressions import Subject
from consumer.topic_identity import NO_TOPIC_ID
from support.copy_data import rows_of
from support.damaged_records import damaged
from support.record_batches import GZIP, LOG_APPEND_TIME, NONE, PLACE, SNAPPY, ZSTD, batch_of, checked, with_attributes

GOLDEN = [path.read_bytes() for path in sorted((Path(__file__).parents[4] / "golden").glob("*.json"))]
REFERENCE = ReferenceEngine()
ENGINE = engine_of()  # the reference again where the native one was not built


def version_of(value: bytes, seed: int) -> bytes:
    """Another version of the same row, perhaps without the ids that the first one told."""
    dice, fields = random.Random(seed), json.loads(value)
    for name in ("user_id", "organization_id", "session_id"):
        if dice.random() < 0.5 and (name, fields["table"]) != ("user_id", "user_activity"):
            fields.pop(name, None)
    fields["deployment_type"] = dice.choice(("cloud", "here"))
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


PLAIN = st.sampled_from(GOLDEN)
VALUES = st.lists(
    PLAIN
    | st.builds(version_of, PLAIN, st.integers(0, 3))
    | st.builds(damaged, PLAIN, st.integers(0))
    | st.none()
    | st.sampled_from([b"", b"{}", GOLDEN[0].replace(b"{}", b'{"a":"\\u0000"}')]),
    min_size=1,
    max_size=12,
)


@dataclass(frozen=True)
class Known:
    """All that the pipeline learns of a batch."""

    offsets: list[Place]
    records: list[Any]
    letters: list[tuple[Place, str]]
    subjects: set[Subject]
    rows: dict[str, list[tuple[Any, ...]]]
    counts: dict[str, tuple[dict[int, int], dict[int, int]]]
    times: dict[str, tuple[set[int], int]]


def parts_of(engine: Engine, batches: list[bytes], from_offset: int) -> list[Part]:
    return [part for batch in batches for part in engine.read(Fetched(PLACE, batch, from_offset))]


def known(engine: Engine, parts: list[Part], left_out: set[Place]) -> Known:
    tables = engine.tables(parts, left_out)
    records = [part.record(number) for part in parts for number in range(len(part))]
    letters = [each for part in parts for each in part.dead_letters()]
    rows = {}
    for table, found in tables.items():
        data = found.copy_data(is_staged=True)
        rows[table] = found.copy_records(is_staged=True) if data is None else rows_of(table, data, is_staged=True)
        bare = found.copy_data(is_staged=False)
        bare_rows = found.copy_records(is_staged=False) if bare is None else rows_of(table, bare)
        assert bare_rows == [row[:-1] for row in rows[table]]
        assert sorted(found.sample(100)) == sorted({(row[0], _time(table, row)) for row in rows[table]})
        assert len(found.sample(3)) <= 3
    return Known(
        offsets=[(record.partition, record.offset) for record in records],
        records=records,
        letters=[(each.place, each.dead_letter.reason) for each in letters if each.dead_letter],
        subjects={subject for part in parts for subject in part.subjects()},
        rows=rows,
        counts={table: (dict(found.counts), dict(found.latest_counts)) for table, found in tables.items()},
        times={table: ({*found.times()[:-1]}, found.times()[-1]) for table, found in tables.items()},
    )


def _time(table: str, row: tuple[Any, ...]) -> int:
    time_us: int = row[plain_rows.INDEX[table]["timestamp"]]
    return time_us


def batches_of(listed: list[list[bytes | None]], codecs: list[int], *, is_append_time: bool) -> list[bytes]:
    """With gaps, as compaction leaves them."""
    batches, offset = [], 1_000
    for values, codec in zip(listed, codecs, strict=False):
        deltas = range(0, 3 * len(values), 3)
        batch = batch_of(values, first_offset=offset, deltas=deltas, codec=codec, headers=[("event_type", b"x")])
        batches.append(with_attributes(batch, LOG_APPEND_TIME) if is_append_time else batch)
        offset += 3 * len(values)
    return batches


CODECS = st.lists(st.sampled_from([NONE, ZSTD, ZSTD, GZIP, SNAPPY]), min_size=3, max_size=3)


@given(st.lists(VALUES, min_size=1, max_size=3), CODECS, st.booleans(), st.integers(0, 40), st.integers(0))
def test_a_batch_is_the_same_to_both_engines(
    listed: list[list[bytes | None]], codecs: list[int], is_append_time: bool, skipped: int, seed: int
) -> None:
    """A record with a row by one and a dead letter by the other would make a replay change what is stored."""
    batches = batches_of(listed, codecs, is_append_time=is_append_time)
    dice = random.Random(seed)
    parts = [parts_of(engine, batches, 1_000 + skipped) for engine in (REFERENCE, ENGINE)]
    expected, found = (known(engine, each, set()) for engine, each in zip((REFERENCE, ENGINE), parts, strict=True))
    assert found == expected
    left_out = {place for place in expected.offsets if dice.random() < 0.3}
    assert known(ENGINE, parts[1], left_out) == known(REFERENCE, parts[0], left_out)


@given(VALUES.filter(lambda values: len(values) > 1), st.integers(0))
def test_a_batch_may_end_anywhere_within_a_record_batch(values: list[bytes | None], seed: int) -> None:
    """What is settled and what is not yet must add up: the breaker and the limits of a batch cut there."""
    [batch] = batches_of([values], [ZSTD], is_append_time=False)
    lines = {PLACE.partition: Line(PLACE.partition, NO_TOPIC_ID, 0, next_offset=1_000)}
    cuts = []
    for engine in (REFERENCE, ENGINE):
        [part] = parts_of(engine, [batch], 0)
        whole = Batch([part], lines)
        length = 1 + seed % (whole.count - 1)
        first, rest = whole.cut(length), part.split(length)[1]
        assert (first.count, len(rest)) == (length, whole.count - length)
        assert first.next_offsets() == {PLACE.partition: 1_000 + 3 * (length - 1) + 1}
        assert first.moves() == whole.cut(length).moves()
        dead = {each.place for each in first.dead_letters()}
        assert [*map(bool, first.are_at(dead))].count(True) == len(dead)
        cuts.append((known(engine, [*first.parts], set()), known(engine, [rest], set()), first.are_at(dead)))
    assert cuts[0] == cuts[1]


@given(VALUES, st.sampled_from([NONE, NONE, ZSTD, GZIP, SNAPPY]), st.integers(0), st.integers(1, 255), st.booleans())
def test_a_damaged_batch_is_refused_by_both_or_read_the_same(
    values: list[bytes | None], codec: int, place: int, change: int, is_checked: bool
) -> None:
    """Behind a right checksum a producer may have written anything; behind a wrong one nothing is to be believed."""
    [batch] = batches_of([values], [codec], is_append_time=False)
    changed = bytearray(batch)
    changed[17 + place % (len(batch) - 17)] ^= change  # what stands before decides where a batch begins and ends
    data = checked(bytes(changed)) if is_checked else bytes(changed)
    outcomes: list[Any] = []
    for engine in (REFERENCE, ENGINE):
        try:
            outcomes.append(known(engine, parts_of(engine, [data], 0), set()))
        except KafkaError:
            outcomes.append("corrupt")
    assert outcomes[0] == outcomes[1]


def test_records_are_matched_by_subject_and_by_time() -> None:
    """Missed here, an erased person's record is stored again."""
    [batch] = batches_of([[*GOLDEN, None, b"{}"]], [ZSTD], is_append_time=False)
    for engine in (REFERENCE, ENGINE):
        [*parts] = parts_of(engine, [batch], 0)
        rows = [each for part in parts for each in part.matching([], 2**62)]
        assert len(rows) == len(GOLDEN)
        for subject in {subject for part in parts for subject in part.subjects()}:
            column = {"user": "user_id", "organization": "organization_id"}[subject.kind]
            theirs = {each.place for each in rows if getattr(each, column) == subject.hash}
            assert theirs
            assert theirs <= {each.place for part in parts for each in part.matching([subject], None)}
        early = min(each.timestamp_us for each in rows)
        first = {each.place for each in rows if each.timestamp_us <= early}
        assert first <= {each.place for part in parts for each in part.matching([], early + 1)}


def test_what_the_engine_declines_is_counted_by_reason() -> None:
    """A consumer that lags for it must say so."""
    [batch] = batches_of([[GOLDEN[0], b"{}", GOLDEN[0].replace(b'":', b'": ', 5)]], [ZSTD], is_append_time=False)
    engine = engine_of()
    parts_of(engine, [batch], 0)
    assert dict(engine.declined) == ({"table": 2} if engine.name == "native" else {})


def test_a_table_that_the_engine_does_not_know_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever adds a kind of column must not have to teach the engine first."""
    layout = plain_rows._layout

    def without_one(model: Any, table: Any) -> Any:
        if table.name == "endpoint_usage":
            raise plain_rows.Unknown
        return layout(model, table)

    monkeypatch.setattr(plain_rows, "_layout", without_one)
    engine = engine_of()
    batches = batches_of([[*GOLDEN, *(version_of(value, 1) for value in GOLDEN)]], [ZSTD], is_append_time=False)
    expected = known(REFERENCE, parts_of(REFERENCE, batches, 0), set())
    assert known(engine, parts_of(engine, batches, 0), set()) == expected
    assert [*engine.unknown_tables] == (["endpoint_usage"] if engine.name == "native" else [])
