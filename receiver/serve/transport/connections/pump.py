"""Which connection reads next: connections with more to read share a few milliseconds of each round of the loop."""

import asyncio
from collections import deque
from typing import Protocol

ROUND_S = 0.005  # of reading, for all connections together, in each round of the loop


class Reader(Protocol):
    @property
    def is_known(self) -> bool:
        """Whether the connection has made requests and read replies, as a client does."""

    def go_on(self) -> None:
        """Read the next slice."""


class Pump:
    """Gives each connection a slice of reading in turn; connections that behave like clients come first."""

    def __init__(self) -> None:
        self._known: deque[Reader] = deque()
        self._strange: deque[Reader] = deque()
        self._used_s = 0.0  # in this round of the loop
        self._is_called = False

    @property
    def has_time(self) -> bool:
        return self._used_s < ROUND_S

    def used(self, seconds: float) -> None:
        self._used_s += seconds
        self._call()

    def enqueue(self, connection: Reader) -> None:
        (self._known if connection.is_known else self._strange).append(connection)
        self._call()

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._is_called = False
        self._used_s = 0.0
        for queue in (self._known, self._strange):
            for _ in range(len(queue)):
                if not self.has_time:
                    break
                queue.popleft().go_on()
        if self._known or self._strange:
            self._call()
