"""records -> rows: what is still known of an event once only its row is kept."""

from pathlib import Path

import pytest
from aiokafka import ConsumerRecord

from consumer.store.rows.decoded import decoded
from consumer.store.suppressions import Subject, is_suppressed
from shared.events import TIMESTAMP_US_MAX, TIMESTAMP_US_MIN, BaseEvent
from shared.wire import decode, encode

GOLDEN = sorted((Path(__file__).parents[4] / "golden").glob("*.json"))


def record_of(event: BaseEvent) -> ConsumerRecord[bytes, bytes]:
    """Received at the end of time, so that what counts is when the event happened."""
    record = encode(event)
    received_ms = TIMESTAMP_US_MAX // 1000 + 1
    return ConsumerRecord("t", 0, 0, received_ms, 0, record.key, record.value, None, 36, len(record.value), ())


@pytest.mark.parametrize("timestamp_us", [TIMESTAMP_US_MIN, -1, 0, 1_795_460_000_123_457, TIMESTAMP_US_MAX])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_row_tells_whose_it_is_and_when_as_its_event_does(path: Path, timestamp_us: int) -> None:
    """Erasures and retention judge the row: a wrong column there keeps, or loses, somebody's data."""
    event = decode(path.read_bytes()).model_copy(update={"timestamp_us": timestamp_us, "organization_id": "ab"})
    found = decoded(record_of(event))
    assert (found.user_id, found.organization_id) == (event.user_id, "ab")
    assert found.timestamp_us == timestamp_us
    for subject in (Subject("user", str(event.user_id)), Subject("organization", "ab")):
        assert is_suppressed(found, found.record.timestamp, {subject: timestamp_us})
        assert not is_suppressed(found, found.record.timestamp, {subject: timestamp_us - 1})
