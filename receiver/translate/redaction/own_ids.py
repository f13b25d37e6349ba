"""a span's raw user and organization ids -> the hashes that replace them wherever the span holds them. Pure."""

from collections.abc import Callable, Iterator

from receiver.translate.redaction.normal import normal_form

_DIGITS_MAX = 19  # of an int64
CHARS_MIN = 4  # a shorter id equals too many texts that mean something else


class OwnIds:
    """The raw ids of one span, from every attribute that may name one, also if another attribute filled the column."""

    __slots__ = ("_hashed", "_hashes")

    def __init__(self, hashed: Callable[[str], str]) -> None:
        self._hashed = hashed
        self._hashes: dict[str, str] = {}

    def add(self, raw: str) -> None:
        if len(raw) >= CHARS_MIN:
            hashed = self._hashed(raw)
            plain = normal_form(raw).strip()
            number = [repr(float(plain))] if plain.isascii() and plain.isdigit() and len(plain) <= _DIGITS_MAX else []
            for form in (raw, plain, *number):
                self._hashes.setdefault(form, hashed)

    def hash_of(self, text: str) -> str | None:
        """The hash to store instead of the text; None when neither the text nor its normal form is an own id."""
        if not self._hashes:
            return None
        return self._hashes.get(text) or self._hashes.get(normal_form(text).strip())

    def hash_of_number(self, number: float) -> str | None:
        if not self._hashes:
            return None
        found = self._hashes.get(str(number))
        return found or (self._hashes.get(str(int(number))) if float(number).is_integer() else None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._hashes)

    def __bool__(self) -> bool:
        return bool(self._hashes)
