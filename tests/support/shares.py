"""Tables of cases that are too long for each run: one case of six, and all of them in the long form."""

import zlib
from collections.abc import Sequence
from typing import TypeVar

import pytest

SHARES = [6, pytest.param(1, marks=pytest.mark.long)]
T = TypeVar("T")


def one_in(share: int, cases: Sequence[T], place: str = "") -> Sequence[T]:
    """Every `share`th case, from a first one that depends on the `place`, so that each case is met somewhere."""
    return cases[zlib.crc32(place.encode()) % share :: share]
