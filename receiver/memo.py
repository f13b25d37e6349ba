"""Memory of pure functions, bounded in entries and in the length of what is remembered. Pure."""

from collections.abc import Callable, Sized
from functools import lru_cache, wraps
from typing import Concatenate, ParamSpec, TypeVar, cast

Text = TypeVar("Text", bound=Sized)
More = ParamSpec("More")
Answer = TypeVar("Answer")


def remembered(
    *, entries: int, length_max: int
) -> Callable[[Callable[Concatenate[Text, More], Answer]], Callable[Concatenate[Text, More], Answer]]:
    """Remembers answers for texts of up to `length_max`; longer ones seldom repeat and could fill the memory."""

    def decorate(
        function: Callable[Concatenate[Text, More], Answer],
    ) -> Callable[Concatenate[Text, More], Answer]:
        known = cast("Callable[Concatenate[Text, More], Answer]", lru_cache(entries)(function))

        def answer(text: Text, *more: More.args, **named: More.kwargs) -> Answer:
            return (function if len(text) > length_max else known)(text, *more, **named)

        return cast("Callable[Concatenate[Text, More], Answer]", wraps(function)(answer))

    return decorate
