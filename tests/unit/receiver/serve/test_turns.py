"""Whose work is next: a connection that asks for much waits for its own."""

import asyncio
import itertools

from receiver.serve.turns import Turns


async def test_a_connection_with_much_work_queues_behind_itself() -> None:
    """Twenty slices of one sender stand in the queue; a neighbour that comes last is served second."""
    turns = Turns()
    order: list[str] = []

    async def work(peer: str) -> None:
        async with turns.turn(peer):
            order.append(peer)
            await asyncio.sleep(0.002)

    greedy = [asyncio.create_task(work("greedy")) for _ in range(20)]
    await asyncio.sleep(0)
    neighbour = asyncio.create_task(work("neighbour"))
    await asyncio.gather(*greedy, neighbour)
    assert order.index("neighbour") == 1
    assert len(order) == 21


async def test_a_connection_that_was_idle_has_no_credit_for_it() -> None:
    """Else one that rests for an hour would keep all others out for as long."""
    ticks = itertools.count()
    turns = Turns(clock=lambda: next(ticks) * 0.003)  # each turn takes as long
    order: list[str] = []

    async def work(peer: str) -> None:
        async with turns.turn(peer):
            order.append(peer)

    for _ in range(10):
        await work("busy")
    tasks = [asyncio.create_task(work(peer)) for peer in ("busy", "busy", "busy", "rested", "rested", "rested")]
    await asyncio.gather(*tasks)
    assert order[10:] == ["busy", "rested", "busy", "rested", "busy", "rested"]


async def test_who_leaves_takes_no_turn_along() -> None:
    """Also in the moment in which the turn comes."""
    turns = Turns()
    is_over = asyncio.Event()

    async def work(peer: str) -> None:
        async with turns.turn(peer):
            await is_over.wait()

    first, second, third = (asyncio.create_task(work(peer)) for peer in "abc")
    await asyncio.sleep(0)
    is_over.set()
    await first
    second.cancel()
    await asyncio.wait_for(third, 1)
    async with asyncio.timeout(1):
        await work("d")
