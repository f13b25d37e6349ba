"""Which connection works next: one slice of work at a time, for the connection that has used the least time."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager

ROUND_S = 0.002  # of work in one round of the loop; then everything else has its round first
PEERS_MAX = 1_000  # connections whose used time is remembered while they wait for nothing


class Turns:
    """A lock that is fair to connections: a sender of much work delays itself and not others.

    Time counts only between connections that are active together: a connection that was idle starts with the used time
    of the least served one, so it is neither ahead nor behind.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used_s: dict[Hashable, float] = {}
        self._floor_s = 0.0  # what the least served connection had used when it was last chosen
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        self._is_taken = False
        self._round_s = 0.0  # worked in this round of the loop
        self._is_round_counted = False

    @asynccontextmanager
    async def turn(self, peer: Hashable) -> AsyncIterator[None]:
        """Run the block while no other turn runs."""
        if self._is_taken:
            await self._wait(peer)
        self._is_taken = True
        self._floor_s = max(self._floor_s, self._standing(peer))
        started_at = self._clock()
        try:
            yield
        finally:
            worked_s = self._clock() - started_at
            self._used_s[peer] = self._standing(peer) + worked_s
            self._pass_on(worked_s)

    async def _wait(self, peer: Hashable) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(peer, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next()  # our turn came while we were leaving
            raise

    def _pass_on(self, worked_s: float) -> None:
        """Start the next turn, now or after a round of the event loop, so that one round does not hold many turns."""
        self._round_s += worked_s
        if not self._is_round_counted:
            self._is_round_counted = True
            asyncio.get_running_loop().call_soon(self._begin_round)
        if self._round_s < ROUND_S:
            self._next()

    def _begin_round(self) -> None:
        is_held = self._round_s >= ROUND_S
        self._round_s = 0.0
        self._is_round_counted = False
        if is_held:
            self._next()

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
