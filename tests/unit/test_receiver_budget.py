"""What may be in flight at once: who is let in, in which order, and that nothing leaks."""

import asyncio
from collections.abc import Callable

import pytest

from receiver.serve.budget import Budget, BudgetFull, Reads, SenderStalled


class Body:
    """A body that arrives when the test says so."""

    def __init__(self) -> None:
        self.arrival: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.is_asked = False

    async def read(self) -> str:
        self.is_asked = True
        return await self.arrival


async def rounds(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def read(reads: Reads, body: Body) -> str:
    async with reads.turn():
        return await reads.read(body.read())


def started(reads: Reads, count: int) -> list[tuple[Body, asyncio.Task[str]]]:
    bodies = [Body() for _ in range(count)]
    return [(body, asyncio.create_task(read(reads, body))) for body in bodies]


async def test_no_more_bodies_arrive_than_there_are_slots() -> None:
    """Each may be of the largest size, and nobody knows before it is there."""
    reads = Reads(2, patience_s=60)
    calls = started(reads, 5)
    await rounds()
    assert sum(body.is_asked for body, _ in calls) == 2
    assert reads.waiting == 3
    for _ in range(5):
        for body, _ in calls:
            if body.is_asked and not body.arrival.done():
                body.arrival.set_result("body")
        await rounds()
    assert [await call for _, call in calls] == ["body"] * 5
    assert reads.waiting == 0


async def order_of(reads: Reads, *, wait_s: float) -> list[int]:
    """In which order three callers are read who came while a fourth held the only slot for this long."""
    calls = started(reads, 4)
    await rounds()
    await asyncio.sleep(wait_s)
    order = []
    for _ in range(4):
        (now,) = [index for index, (body, _) in enumerate(calls) if body.is_asked and not body.arrival.done()]
        order.append(now)
        calls[now][0].arrival.set_result("body")
        await rounds()
    await asyncio.gather(*(call for _, call in calls))
    return order


async def test_callers_are_read_in_the_order_they_came() -> None:
    """What came first has had the most time to arrive."""
    assert await order_of(Reads(1, patience_s=60), wait_s=0) == [0, 1, 2, 3]


async def test_in_a_slow_queue_the_newest_goes_first() -> None:
    """Behind stalled senders, or under more load than there is room for, the oldest are lost anyway."""
    reads = Reads(1, patience_s=0.05)
    reads._completed_at = float("inf")  # nobody gives way here
    assert await order_of(reads, wait_s=0.15) == [0, 3, 2, 1]


async def test_a_stalled_sender_gives_way_to_those_who_wait() -> None:
    """Else a few sockets that say nothing keep everybody out."""
    reads = Reads(1, patience_s=0.05)
    (stalled, call), (honest, other) = started(reads, 2)
    honest.arrival.set_result("body")
    with pytest.raises(SenderStalled):
        await call
    assert await other == "body"
    assert not stalled.arrival.cancelled()  # grpc's core writes into a read: it must not be cancelled


async def test_a_slow_sender_has_time_when_nobody_waits() -> None:
    """A slow link is no fault."""
    reads = Reads(1, patience_s=0.01)
    ((slow, call),) = started(reads, 1)
    asyncio.get_running_loop().call_later(0.1, slow.arrival.set_result, "body")
    assert await call == "body"


async def test_callers_who_leave_take_no_slot_along() -> None:
    """A leaked slot is capacity lost for good."""
    reads = Reads(1, patience_s=60)
    calls = started(reads, 6)
    await rounds()
    for body, call in (calls[0], calls[2], calls[5]):
        call.cancel()
        await rounds()
        body.arrival.cancel()
    await rounds()
    for body, _ in calls:
        if not body.arrival.done():
            body.arrival.set_result("body")
    rest = [await calls[index][1] for index in (1, 3, 4)]
    assert rest == ["body"] * 3
    late = Body()
    late.arrival.set_result("body")
    assert await read(reads, late) == "body"


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
