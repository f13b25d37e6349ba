"""What may be in flight at once: who is let in, in which order, and that nothing leaks."""

import asyncio
from collections.abc import Callable

import pytest

from receiver.budget import Arrivals, Budget, BudgetFull, SenderStalled

KIBIBYTE = 1024


class Sender:
    """A body that grows when the test says so."""

    def __init__(self, arrivals: Arrivals, peer: str) -> None:
        self.error: Exception | None = None
        self._opened = arrivals.arriving(peer, self._give_way)
        self.arrival = self._opened.__enter__()

    def _give_way(self, error: Exception) -> None:
        self.error = error
        self.close()

    def grow(self, size: int) -> asyncio.Task[None]:
        return asyncio.create_task(self.arrival.grow(size))

    def close(self) -> None:
        self._opened.__exit__(None, None, None)


async def rounds(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_bodies_that_arrive_hold_no_more_than_they_may() -> None:
    """The limit, and what the oldest needs to end: without that nobody would ever be done."""
    arrivals = Arrivals(Budget(0), 1000 * KIBIBYTE, patience_s=60)
    first, second, third = (Sender(arrivals, peer) for peer in "abc")
    await second.grow(600 * KIBIBYTE)
    waiting = third.grow(600 * KIBIBYTE)
    await rounds()
    assert not waiting.done()
    assert arrivals.waiting == 1
    await first.grow(2000 * KIBIBYTE)  # the oldest
    assert arrivals.bytes == 2600 * KIBIBYTE
    first.close()
    await rounds()
    assert not waiting.done()
    second.close()
    await waiting
    third.close()
    assert (arrivals.bytes, arrivals.waiting) == (0, 0)


async def test_a_small_body_never_waits() -> None:
    """A neighbour of large senders sends small requests."""
    arrivals = Arrivals(Budget(0), 100 * KIBIBYTE, patience_s=60)
    large, other, small = Sender(arrivals, "large"), Sender(arrivals, "other"), Sender(arrivals, "small")
    await large.grow(1000 * KIBIBYTE)
    waiting = other.grow(100 * KIBIBYTE)
    await rounds()
    async with asyncio.timeout(1):
        await small.grow(64 * KIBIBYTE)
    assert not waiting.done()
    waiting.cancel()


async def test_room_goes_to_the_connection_that_holds_least() -> None:
    """Twenty bodies of one connection do not keep out the one of another."""
    arrivals = Arrivals(Budget(0), 1000 * KIBIBYTE, patience_s=60)
    oldest = Sender(arrivals, "greedy")
    await oldest.grow(900 * KIBIBYTE)
    greedy = [Sender(arrivals, "greedy").grow(200 * KIBIBYTE) for _ in range(5)]
    await rounds()
    neighbour = Sender(arrivals, "neighbour").grow(200 * KIBIBYTE)
    await rounds()
    oldest.close()
    await rounds()
    assert neighbour.done()
    for task in greedy:
        task.cancel()


async def test_a_stalled_sender_gives_way_to_those_who_wait() -> None:
    """Else a few sockets that say nothing keep everybody out."""
    arrivals = Arrivals(Budget(0), 1000 * KIBIBYTE, patience_s=0.05)
    stalled = [Sender(arrivals, f"stalled {number}") for number in range(10)]
    for sender in stalled:
        await sender.grow(100 * KIBIBYTE)
    honest = Sender(arrivals, "honest")
    async with asyncio.timeout(2):
        await honest.grow(500 * KIBIBYTE)
    assert all(isinstance(sender.error, SenderStalled) for sender in stalled)
    assert arrivals.bytes == 500 * KIBIBYTE


async def test_a_slow_sender_has_time_when_nobody_waits() -> None:
    """A slow link is no fault."""
    arrivals = Arrivals(Budget(0), 1000 * KIBIBYTE, patience_s=0.01)
    slow = Sender(arrivals, "slow")
    await slow.grow(100 * KIBIBYTE)
    await asyncio.sleep(0.1)
    assert slow.error is None


async def test_of_too_many_bodies_the_connection_with_most_loses_one_that_stalls() -> None:
    """A thousand calls without a body are cheap to open; whoever comes then must be served."""
    arrivals = Arrivals(Budget(0), 1000 * KIBIBYTE, arrivals_max=20, patience_s=0.5)
    greedy = [Sender(arrivals, "greedy") for _ in range(10)]
    with pytest.raises(BudgetFull):
        Sender(arrivals, "greedy")  # half of the places, and nobody stalls yet
    others = [Sender(arrivals, str(number)) for number in range(10)]
    with pytest.raises(BudgetFull):
        Sender(arrivals, "neighbour")
    await asyncio.sleep(0.6)
    neighbour = Sender(arrivals, "neighbour")
    again = Sender(arrivals, "greedy")  # queues behind itself
    assert [sender.error is None for sender in (*greedy[:3], *others, neighbour, again)] == [False, False, *[True] * 13]


async def test_callers_who_leave_take_no_room_along() -> None:
    """Room that leaks is capacity lost for good."""
    arrivals = Arrivals(Budget(0), 1000 * KIBIBYTE, patience_s=60)
    first = Sender(arrivals, "first")
    await first.grow(1000 * KIBIBYTE)
    senders = [Sender(arrivals, str(number)) for number in range(6)]
    tasks = [sender.grow(500 * KIBIBYTE) for sender in senders]
    await rounds()
    for number in (0, 2, 5):
        tasks[number].cancel()
        await rounds()
        senders[number].close()
    first.close()
    await rounds()
    for number in (1, 3, 4):
        assert tasks[number].done()
        senders[number].close()
        await rounds()
    assert (arrivals.bytes, arrivals.waiting) == (0, 0)


class Holder:
    """A request that holds bytes until it is told to end."""

    def __init__(self, budget: Budget, size: int, *, wait_s: float = 60) -> None:
        self.end = asyncio.Event()
        self.is_in = False
        self.task = asyncio.create_task(self._hold(budget, size, wait_s))

    async def _hold(self, budget: Budget, size: int, wait_s: float) -> None:
        await budget.reserve(size, wait_s=wait_s)
        try:
            self.is_in = True
            await self.end.wait()
        finally:
            budget.release(size)


async def test_the_budget_holds() -> None:
    """It is what keeps the process alive under any load."""
    budget = Budget(100)
    holders = [Holder(budget, 40) for _ in range(4)]
    await rounds()
    assert [holder.is_in for holder in holders] == [True, True, False, False]
    assert budget.bytes == 80
    for holder in holders:
        holder.end.set()
    await asyncio.gather(*(holder.task for holder in holders))
    assert budget.bytes == 0


async def test_a_request_larger_than_the_budget_is_served_alone() -> None:
    """It would be told to retry for ever otherwise."""
    budget = Budget(100)
    small = Holder(budget, 10)
    large = Holder(budget, 1000)
    await rounds()
    assert not large.is_in
    later = Holder(budget, 10)
    await rounds()
    assert not later.is_in, "it overtook the large one, which steady traffic would then keep out for good"
    small.end.set()
    await rounds()
    assert (large.is_in, later.is_in) == (True, False)
    large.end.set()
    await rounds()
    assert later.is_in
    later.end.set()
    await later.task


async def test_without_room_the_answer_comes_in_time() -> None:
    """A client that waits for its own deadline sees DEADLINE_EXCEEDED and no delay to retry after."""
    budget = Budget(100)
    holder = Holder(budget, 100)
    await rounds()
    with pytest.raises(BudgetFull):
        await Holder(budget, 1, wait_s=0.01).task
    behind = Holder(budget, 1)
    holder.end.set()
    await rounds()
    assert behind.is_in
    behind.end.set()
    await behind.task
    assert budget.bytes == 0


@pytest.mark.parametrize("leave", [asyncio.Task.cancel, lambda task: task.get_loop().call_soon(task.cancel)])
async def test_a_request_that_leaves_gives_its_bytes_back(leave: Callable[[asyncio.Task[None]], object]) -> None:
    """Also when it leaves in the moment that it is let in."""
    budget = Budget(100)
    first = Holder(budget, 100)
    await rounds()
    second = Holder(budget, 100)
    await rounds()
    first.end.set()
    leave(second.task)
    await asyncio.wait({first.task, second.task})
    assert budget.bytes == 0


async def test_small_requests_do_not_queue_behind_large_ones() -> None:
    """An eighth of the budget is theirs; a neighbour of large senders has small requests."""
    budget = Budget(8 * 1024 * KIBIBYTE)
    large = [Holder(budget, 3 * 1024 * KIBIBYTE) for _ in range(4)]
    await rounds()
    assert [holder.is_in for holder in large] == [True, True, False, False]
    small = [Holder(budget, 192 * KIBIBYTE) for _ in range(8)]
    await rounds()
    assert all(holder.is_in for holder in small)
    for holder in (*large, *small):
        holder.end.set()
    await asyncio.gather(*(holder.task for holder in (*large, *small)))
    assert budget.bytes == 0


async def test_records_of_an_admitted_request_count() -> None:
    """They outlive their request when the broker is slow."""
    budget = Budget(100)
    budget.charge(90)
    holder = Holder(budget, 20)
    await rounds()
    assert not holder.is_in
    budget.release(90)
    await rounds()
    assert holder.is_in
    holder.end.set()
    await holder.task
