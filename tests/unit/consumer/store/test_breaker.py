"""The breaker: dead letters may be an exception, never the rule."""

import pytest

from consumer.store.dead_letters import Breaker


def test_it_stops_at_the_record_that_would_be_one_too_many() -> None:
    """Judged record by record: a batch of 10,000 bad ones must not pass whole."""
    breaker = Breaker(max_ratio=0.5, window=10)
    assert breaker.judge([True] * 5) is None
    assert breaker.judge([True] * 10_000) == 5
    assert breaker.judge([False] * 3 + [True] * 100) == 8


def test_only_what_was_settled_counts_and_only_within_the_window() -> None:
    """A retried batch must not be judged twice, nor last week's letters today."""
    breaker = Breaker(max_ratio=0.5, window=10)
    assert breaker.judge([True] * 5) is None
    assert breaker.judge([True] * 5) is None
    breaker.settled([True] * 5)
    assert breaker.judge([True]) == 0
    breaker.settled([False] * 6)
    assert breaker.judge([True]) is None
    assert breaker.judge([True] * 7) == 5  # the four old ones leave the window as four new ones enter


def test_a_window_that_slides_within_one_batch_forgets_as_it_goes() -> None:
    """Five bad ones, ten good ones, five bad ones: never more than half of ten."""
    assert Breaker(max_ratio=0.5, window=10).judge([True] * 5 + [False] * 10 + [True] * 5) is None


@pytest.mark.parametrize("count", [1, 1_000])
def test_a_ratio_of_one_switches_it_off(count: int) -> None:
    """Somebody may prefer dead letters to a stopped consumer."""
    assert Breaker(max_ratio=1, window=10).judge([True] * count) is None
