"""Times to Postgres and back: our connections take microseconds since 1970 as well as datetimes."""

from datetime import UTC, datetime

import pytest

from consumer.store.database import _time_decoded, _time_encoded
from consumer.store.schema import at, us_of
from shared.events import TIMESTAMP_US_MAX, TIMESTAMP_US_MIN


@pytest.mark.parametrize("timestamp_us", [TIMESTAMP_US_MIN, -1, 0, 1_795_460_000_123_457, TIMESTAMP_US_MAX])
def test_a_time_is_exact_to_the_microsecond(timestamp_us: int) -> None:
    """Floats are wrong in one of twelve random stamps."""
    encoded = _time_encoded(timestamp_us)
    assert _time_encoded(at(timestamp_us)) == encoded
    assert us_of(_time_decoded(encoded)) == timestamp_us


def test_postgres_counts_from_2000() -> None:
    assert _time_encoded(datetime(2000, 1, 1, tzinfo=UTC)) == (0,)
    assert _time_decoded((0,)) == datetime(2000, 1, 1, tzinfo=UTC)
