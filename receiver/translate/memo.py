"""Memory of pure functions, bounded in entries and in the length of what is remembered. Pure."""

from collections.abc import Callable, Hashable, Sized
from functools import lru_cache, wraps
from typing import Protocol, TypeVar, TypeVarTuple, cast


class Text(Hashable, Sized, Protocol):
    """str or bytes."""


T = TypeVar("T", bound=Text)
More = TypeVarTuple("More")
Answer = TypeVar("Answer")


def remembered(
    *, entries: int, length_max: int
) -> Callable[[Callable[[T, *More], Answer]], Callable[[T, *More], Answer]]:
    """Remembers answers for texts of up to `length_max`; longer ones seldom repeat and could fill the memory."""

    def decorate(function: Callable[[T, *More], Answer]) -> Callable[[T, *More], Answer]:
        known = cast("Callable[[T, *More], Answer]", lru_cache(entries)(function))

        @wraps(function)
        def answer(text: T, *more: *More) -> Answer:
            return (known if len(text) <= length_max else function)(text, *more)

        return answer

    return decorate
