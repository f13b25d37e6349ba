"""Where an Export is on its way: told to nobody, unless tracing is on. Pure."""

from collections import Counter
from typing import Protocol


class Fates(Protocol):
    """What became of a request's spans, by reason or table."""

    ignored: Counter[str]
    rejected: Counter[str]
    published: Counter[str]


class Course:
    """One request's. Does nothing: what a receiver pays that is not traced."""

    def __init__(self, transport: str) -> None:
        """It came by `grpc` or `http`."""

    def read(self, body: bytes) -> None:
        """Its body has arrived."""

    def translated(self) -> None:
        """Every event of it is in a batch."""

    def ended(self, code: str, fates: Fates) -> None:
        """It is answered with `code`."""
