"""Which database errors mean what: one wrong line here is a lost record or a consumer that never moves again."""

import asyncpg
import pytest

from consumer.store.database import Fate, fate_of


@pytest.mark.parametrize(
    ("state", "fate"),
    [
        *(
            (state, Fate.TRANSIENT)
            for state in ["08000", "08003", "08006", "40001", "40003", "40P01", "53100", "53300", "55P03"]
        ),
        *(
            (state, Fate.TRANSIENT)
            for state in ["57014", "57P01", "57P02", "57P03", "58030", "25006", "28P01", "3D000"]
        ),
        *((state, Fate.TRANSIENT) for state in ["42P01", "42703", "42501", "0A000", "25P03"]),
        *((state, Fate.POISON) for state in ["22001", "22003", "22021", "22P02", "22P05", "23502", "23505", "23514"]),
        ("54001", Fate.POISON),
        *((state, Fate.BUG) for state in ["42601", "21000", "23503", "XX000"]),
    ],
)
def test_a_state_has_its_fate(state: str, fate: Fate) -> None:
    """Transient trouble must never make a dead letter, nor a bad row an endless retry."""
    assert fate_of(asyncpg.PostgresError.new({"C": state, "M": "text"})) is fate


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        (asyncpg.InterfaceError("connection is closed"), Fate.TRANSIENT),
        (ConnectionResetError(), Fate.TRANSIENT),
        (TimeoutError(), Fate.TRANSIENT),
        (asyncpg.DataError("value out of range"), Fate.POISON),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogate"), Fate.POISON),
        (OverflowError(), Fate.POISON),
        (TypeError(), Fate.POISON),
        (KeyError(), Fate.BUG),
    ],
)
def test_an_error_without_a_state_is_judged_by_its_type(error: Exception, fate: Fate) -> None:
    """asyncpg's encoders raise plain Python errors on values that do not fit."""
    assert fate_of(error) is fate
