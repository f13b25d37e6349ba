"""What requests may hold at once: bodies that are still arriving, and memory from then to the acknowledgement.

How large a body is, nobody can know before it is there, so arriving bodies are bounded in number: a caller is
read when its turn has come, and keeps its turn until its body is counted. From then on bytes are bounded.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from shared.errors import Transient

T = TypeVar("T")

PATIENCE_S = 0.25
WAITING_MAX = 1000  # calls that wait for their turn; each holds up to 64 KiB of its body, and 20 KiB besides


class BudgetFull(Transient):
    """As much is in flight as may be."""


class SenderStalled(Transient):
    """The body did not arrive in time while others waited."""


class Reads:
    """Lets `slots` bodies arrive at a time.

    First come, first served, as bodies of up to 64 KiB arrive while their calls wait. Once the queue moves too
    slowly for that, the newest goes first: then some callers are answered in time instead of none.

    Senders who stall hold up nobody for long: when others wait and no body has been completed for `patience_s`,
    those who had at least that long give way and are told to come again.
    """

    def __init__(self, slots: int, *, patience_s: float = PATIENCE_S) -> None:
        self._free = slots
        self._patience_s = patience_s
        self._completed_at = time.monotonic()
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises BudgetFull when too many wait already."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def read(self, receive: Coroutine[Any, Any, T]) -> T:
        """What `receive` returns. To be called within one's turn.

        Raises:
            SenderStalled: the body is late, and others wait.
        """
        # grpc.aio 1.85 frees what its core writes into when a read is cancelled, so a read is left to a task
        # of its own, which ends with the call.
        read = asyncio.create_task(receive)
        _unattended.add(read)
        read.add_done_callback(_attended)
        while not (await asyncio.wait({read}, timeout=self._patience_s))[0]:
            if self._waiting and time.monotonic() - self._completed_at > self._patience_s:
                raise SenderStalled
        self._completed_at = time.monotonic()
        return read.result()

    async def _enter(self) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= WAITING_MAX:
            raise BudgetFull("too many calls wait to be read")
        turn = asyncio.get_running_loop().create_future()
        waiting = (time.monotonic(), turn)
        self._waiting.append(waiting)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._leave()  # our turn came while we were leaving
            elif waiting in self._waiting:
                self._waiting.remove(waiting)
            raise

    def _leave(self) -> None:
        while self._waiting:
            is_slow = time.monotonic() - self._waiting[0][0] > 2 * self._patience_s
            _, turn = self._waiting.pop() if is_slow else self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


_unattended: set[asyncio.Task[Any]] = set()


def _attended(read: asyncio.Task[Any]) -> None:
    _unattended.discard(read)
    if not read.cancelled():
        read.exception()  # looked at, so that nobody is told that it was not


class Budget:
    """Counts the bytes that requests and their unacknowledged records hold.

    First come, first served: so a request that fits only when nothing else is in flight gets its turn,
    because those behind it wait. One that is larger than the whole budget is served alone.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.bytes = 0

    async def reserve(self, size: int, *, wait_s: float) -> None:
        """Count `size` bytes, which the caller has to `release`.

        Raises:
            BudgetFull: there was no room for that long.
        """
        if not self._waiting and self._has_room(size):
            self.bytes += size
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await asyncio.wait({turn}, timeout=wait_s)
        except asyncio.CancelledError:
            self._withdraw(size, turn)
            raise
        if not turn.done():
            self._withdraw(size, turn)
            raise BudgetFull("as many bytes in flight as may be")

    def charge(self, size: int) -> None:
        """Count bytes that an admitted request made; never refuses."""
        self.bytes += size

    @contextmanager
    def charging(self) -> Iterator[Callable[[int], None]]:
        """A function that is told how many bytes a request holds now; at the end of the block it holds none."""
        held_bytes = 0

        def hold(size: int) -> None:
            nonlocal held_bytes
            self.charge(size - held_bytes)
            held_bytes = size

        try:
            yield hold
        finally:
            self.release(held_bytes)

    def release(self, size: int) -> None:
        self.bytes -= size
        self._admit()

    def _withdraw(self, size: int, turn: asyncio.Future[None]) -> None:
        if turn.done():
            self.release(size)
        else:
            self._waiting.remove((size, turn))
            self._admit()  # those behind it may fit

    def _has_room(self, size: int) -> bool:
        return not self.bytes or self.bytes + size <= self._bytes_max

    def _admit(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not self._has_room(size):
                return
            self._waiting.popleft()
            self.bytes += size
            turn.set_result(None)
