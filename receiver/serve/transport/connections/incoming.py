"""A message as it comes in: its head, and a body that somebody awaits piece by piece."""

import asyncio
from typing import Generic, TypeVar

P = TypeVar("P")


class Incoming(Generic[P]):
    """The part that a request of HTTP/1.1 and a stream of HTTP/2 share. P: a piece of the body, as each keeps it."""

    def __init__(self, named: dict[bytes, bytes]) -> None:
        self.named = named
        self.is_complete = False
        self._pieces: list[P] = []
        self._arrival: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    def header(self, name: bytes) -> bytes:
        """Of several the first; empty when there is none."""
        return self.named.get(name, b"")

    def completed(self) -> None:
        """The whole body is there."""
        self.is_complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the reading with this error, unless the body is there."""
        if not self.is_complete:
            self._error = error
            self._wake()

    async def _arrived(self) -> None:
        """Return once there is a piece, or the body is complete.

        Raises:
            whatever `fail` was called with.
        """
        while not self._pieces and not self.is_complete and self._error is None:
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
