"""Who reads next: connections that have more to read share a few milliseconds of each round of the loop."""

import asyncio
from collections import deque
from typing import Protocol

ROUND_S = 0.005  # of reading, for all connections together, in each round of the loop


class Reader(Protocol):
    @property
    def is_known(self) -> bool:
        """It asks and listens as clients do."""

    def go_on(self) -> None:
        """Its turn to read."""


class Pump:
    """Who reads next: a connection that has been served before those that only took, and each a slice at a time."""

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
