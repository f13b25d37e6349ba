"""The memory budget: counts what bodies, requests, records, connections and caches hold, and admits more or refuses.

A body is counted as it arrives, so a sender that stalls holds only what it has sent. The first 64 KiB of a body never
wait for room: small requests pass while large ones queue.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from shared.errors import Transient

FREE_BYTES = 64 * 1024  # of each body, without waiting: HTTP/2's first window lets a sender send as much unasked
PATIENCE_S = 0.25
ARRIVALS_MAX = 1_000  # bodies that arrive at once; FREE_BYTES each at most come on top of the limit
FEW = 8  # bodies of one connection; half of all places are kept for connections with fewer
SMALL_BYTES = 3 * FREE_BYTES
SMALL_SHARE = 8  # an eighth of the budget is kept for requests of SMALL_BYTES at most

Holder = Literal["requests", "unfinished", "arriving", "connections", "caches"]


class BudgetFull(Transient):
    """There is no room for more bytes, or for one more body."""


class SenderStalled(Transient):
    """The body did not arrive in time while others waited."""


class Arrival:
    """One body on its way in."""

    __slots__ = ("_arrivals", "bytes", "give_way", "is_complete", "moved_at", "peer", "started_at")

    def __init__(self, arrivals: "Arrivals", peer: Hashable, give_way: Callable[[Exception], None]) -> None:
        self._arrivals = arrivals
        self.peer = peer
        self.give_way = give_way
        self.bytes = 0
        self.is_complete = False
        self.started_at = self.moved_at = time.monotonic()

    async def grow(self, size: int) -> None:
        """Count `size` more bytes, once there is room for them."""
        if not self._arrivals.take(self, size):
            await self._arrivals.wait(self, size)


class Arrivals:
    """Counts the bytes of bodies that are not complete, and of complete ones that wait for the budget.

    When there is no room, only the oldest body may grow, so that one body always completes. Of the waiting bodies, the
    one whose connection holds least is next. While others wait, a body without progress for `patience_s` is ended.
    All bodies together hold at most `bytes_max` + one request + `arrivals_max` x 64 KiB, and count in the budget.
    """

    def __init__(
        self, budget: "Budget", bytes_max: int, *, arrivals_max: int = ARRIVALS_MAX, patience_s: float = PATIENCE_S
    ) -> None:
        self._budget = budget
        self._bytes_max = bytes_max
        self._arrivals_max = arrivals_max
        self._patience_s = patience_s
        self._open: dict[Arrival, None] = {}  # in order of their beginning
        self._calls: Counter[Hashable] = Counter()
        self._held: Counter[Hashable] = Counter()
        self._waiting: dict[Arrival, tuple[int, asyncio.Future[None]]] = {}
        self.bytes = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextmanager
    def arriving(self, peer: Hashable, give_way: Callable[[Exception], None]) -> Iterator[Arrival]:
        """Count a body for as long as the block lasts.

        Raises:
            BudgetFull: too many bodies arrive, and none of them has to give way to this one.
        """
        is_modest = self._calls[peer] < FEW
        if len(self._open) >= self._arrivals_max // (1 if is_modest else 2):
            self._make_place(peer)
        arrival = Arrival(self, peer, give_way)
        self._open[arrival] = None
        self._calls[peer] += 1
        try:
            yield arrival
        finally:
            self._close(arrival)

    def take(self, arrival: Arrival, size: int) -> bool:
        """Count `size` bytes now, if they need not wait."""
        is_free = arrival.bytes + size <= FREE_BYTES
        is_oldest = next(iter(self._open)) is arrival
        if not (is_free or is_oldest or (self.bytes + size <= self._bytes_max and not self._waiting)):
            return False
        self._count(arrival, size)
        return True

    async def wait(self, arrival: Arrival, size: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting[arrival] = (size, turn)
        try:
            while not (await asyncio.wait({turn}, timeout=self._patience_s))[0]:
                self._displace(time.monotonic())
        finally:
            self._waiting.pop(arrival, None)

    def _count(self, arrival: Arrival, size: int) -> None:
        arrival.bytes += size
        arrival.moved_at = time.monotonic()
        self._held[arrival.peer] += size
        self.bytes += size
        self._budget.charge(size, "arriving")

    def _close(self, arrival: Arrival) -> None:
        self.bytes -= arrival.bytes
        self._budget.release(arrival.bytes, "arriving")
        for counts, count in ((self._held, arrival.bytes), (self._calls, 1)):
            counts[arrival.peer] -= count
            if not counts[arrival.peer]:
                del counts[arrival.peer]
        self._open.pop(arrival, None)
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            oldest = next(iter(self._open))
            next_ = oldest if oldest in self._waiting else min(self._waiting, key=lambda a: self._held[a.peer])
            size, turn = self._waiting[next_]
            if next_ is not oldest and self.bytes + size > self._bytes_max:
                return
            del self._waiting[next_]
            if not turn.done():
                self._count(next_, size)
                turn.set_result(None)

    def _displace(self, now: float) -> None:
        """End the bodies whose senders stall while others wait."""
        for arrival in list(self._open):
            if self._is_stalled(arrival, now):
                arrival.give_way(SenderStalled())

    def _is_stalled(self, arrival: Arrival, now: float) -> bool:
        is_ours = arrival.is_complete or arrival in self._waiting
        return not is_ours and now - arrival.moved_at > self._patience_s

    def _make_place(self, peer: Hashable) -> None:
        """End one stalled body: the oldest one of the connection that has most bodies on their way."""
        now = time.monotonic()
        stalled = [arrival for arrival in self._open if self._is_stalled(arrival, now)]
        if not stalled or self._calls[peer] > max(self._calls[arrival.peer] for arrival in stalled):
            raise BudgetFull("too many requests arrive at once")
        victim = max(stalled, key=lambda arrival: self._calls[arrival.peer])  # the oldest among equals
        victim.give_way(SenderStalled())
        self._open.pop(victim, None)


class Budget:
    """Counts the held bytes by holder, and admits a request while their sum stays below `bytes_max`.

    First come, first served: requests behind a large one wait, so the large one also gets its turn. A request that is
    larger than the whole budget is served alone. Small requests do not queue behind large ones: an eighth of the budget
    is reserved for them.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._large_max = bytes_max - bytes_max // SMALL_SHARE
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()
        self.held: dict[Holder, int] = dict.fromkeys(get_args(Holder), 0)
        self.bytes = 0

    async def reserve(self, size: int, *, wait_s: float, counted: int = 0) -> None:
        """Count `size` bytes, which the caller has to `release`; `counted` of them another holder is about to release.

        Raises:
            BudgetFull: there was no room for that long.
        """
        if self._has_room(size, counted) and (not self._waiting or self._may_overtake(size)):
            self.charge(size)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, counted, turn))
        try:
            await asyncio.wait({turn}, timeout=wait_s)
        except asyncio.CancelledError:
            self._withdraw(size, counted, turn)
            raise
        if not turn.done():
            self._withdraw(size, counted, turn)
            raise BudgetFull("as many bytes in flight as may be")

    def charge(self, size: int, holder: Holder = "requests") -> None:
        """Count bytes that are held already; never refuses."""
        self.held[holder] += size
        self.bytes += size

    def hold(self, size: int, holder: Holder) -> None:
        """Set how many bytes the holder has now."""
        change = size - self.held[holder]
        self.charge(change, holder)
        if change < 0:
            self._admit()

    @contextmanager
    def charging(self) -> Iterator[Callable[[int], None]]:
        """Give a function that sets how many bytes a request holds now. The end of the block releases them."""
        held_bytes = 0

        def hold(size: int) -> None:
            nonlocal held_bytes
            self.charge(size - held_bytes)
            held_bytes = size

        try:
            yield hold
        finally:
            self.release(held_bytes)

    def release(self, size: int, holder: Holder = "requests") -> None:
        self.charge(-size, holder)
        self._admit()

    def _withdraw(self, size: int, counted: int, turn: asyncio.Future[None]) -> None:
        if turn.done():
            self.release(size)
        else:
            self._waiting.remove((size, counted, turn))
            self._admit()  # those behind it may fit

    def _has_room(self, size: int, counted: int) -> bool:
        limit = self._bytes_max if size <= SMALL_BYTES else self._large_max
        return not self.held["requests"] or self.bytes - counted + size <= limit

    def _may_overtake(self, size: int) -> bool:
        """Whether a small request may pass the queue: not when the first one fits only while nothing is in flight."""
        others = self.bytes - self.held["requests"]
        return size <= SMALL_BYTES and self._waiting[0][0] + others <= self._large_max

    def _admit(self) -> None:
        while self._waiting:
            size, counted, turn = self._waiting[0]
            if not self._has_room(size, counted):
                return
            self._waiting.popleft()
            self.charge(size)
            turn.set_result(None)
