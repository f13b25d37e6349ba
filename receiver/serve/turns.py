"""Who works next: one slice of work at a time, and the connection that has had least time is next."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

PEERS_MAX = 1_000  # remembered although nothing of theirs waits


class Turns:
    """A lock that is fair by connection: a sender of much work queues behind itself.

    A connection's time counts only against connections that work at the same moment: one that was idle begins
    where the least served one stands, neither ahead nor behind.
    """

    def __init__(self) -> None:
        self._used_s: dict[Hashable, float] = {}
        self._floor_s = 0.0  # what the least served connection had used when it was last chosen
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        self._is_taken = False

    @asynccontextmanager
    async def turn(self, peer: Hashable) -> AsyncIterator[None]:
        """Nothing else works within the block."""
        if self._is_taken:
            await self._wait(peer)
        self._is_taken = True
        self._floor_s = max(self._floor_s, self._standing(peer))
        started_at = time.monotonic()
        try:
            yield
        finally:
            self._used_s[peer] = max(self._used_s.get(peer, 0.0), self._floor_s) + time.monotonic() - started_at
            self._next()

    async def _wait(self, peer: Hashable) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(peer, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next()  # our turn came while we were leaving
            raise

    def _next(self) -> None:
        while self._waiting:
            peer = min(self._waiting, key=self._standing)
            queue = self._waiting[peer]
            turn = queue.popleft()
            if not queue:
                del self._waiting[peer]
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False
        if len(self._used_s) > PEERS_MAX:
            self._used_s.clear()

    def _standing(self, peer: Hashable) -> float:
        return max(self._used_s.get(peer, 0.0), self._floor_s)
