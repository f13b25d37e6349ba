"""Spans where they stand in a request's body: bytes are made of one only when it is asked for. Pure."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from struct import Struct
from typing import overload

PLACE = Struct("=II")  # where a span starts, and how long it is


class Spans(Sequence[bytes]):
    """Spans of one body. So are its slices."""

    __slots__ = ("body", "places")

    def __init__(self, body: bytes, places: bytes) -> None:
        self.body = body
        self.places = places

    @classmethod
    def of(cls, raws: Sequence[bytes]) -> "Spans":
        """Of spans that are bytes each, if they are."""
        if isinstance(raws, Spans):
            return raws
        sizes = [*map(len, raws)]
        return cls(b"".join(raws), b"".join(map(PLACE.pack, accumulate(sizes, initial=0), sizes)))

    def picked(self, which: Iterable[int]) -> "Spans":
        """Those at these positions."""
        size = PLACE.size
        return Spans(self.body, b"".join([self.places[size * at : size * (at + 1)] for at in which]))

    def __len__(self) -> int:
        return len(self.places) // PLACE.size

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> "Spans": ...
    def __getitem__(self, at: int | slice) -> "bytes | Spans":
        which = range(len(self))[at]  # of slices those without a step
        if isinstance(which, range):
            return Spans(self.body, self.places[PLACE.size * which.start : PLACE.size * which.stop])
        start, size = PLACE.unpack_from(self.places, PLACE.size * which)
        return self.body[start : start + size]


def sizes_of(spans: Sequence[bytes]) -> Iterable[int]:
    """In bytes."""
    return memoryview(spans.places).cast("I")[1::2] if isinstance(spans, Spans) else map(len, spans)
