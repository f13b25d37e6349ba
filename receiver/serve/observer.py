"""The stages of an Export. Each stage calls a method that does nothing, unless tracing is on. Pure."""

from collections import Counter
from typing import Protocol


class Fates(Protocol):
    """How many spans of a request were ignored, rejected or published, by reason or table."""

    ignored: Counter[str]
    rejected: Counter[str]
    published: Counter[str]


class Observer:
    """Hears of each stage of one request, and ignores it. serve/tracing.py has the subclass that makes spans."""

    def __init__(self, transport: str) -> None:
        """A request has arrived. `transport` is `grpc` or `http`."""

    def received(self, body: bytes) -> None:
        """The whole body has arrived."""

    def translated(self) -> None:
        """Every event of the request is in a batch."""

    def answered(self, code: str, fates: Fates) -> None:
        """The request was answered with `code`."""
