"""Translations that are kept for the sender's next attempt: they go on, they end, and none undoes another's work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from receiver.budget import Budget
from receiver.replies import TooMuchToHold
from receiver.serve.turns import Turns
from receiver.serve.unfinished import Begun, Unfinished, key_of
from support.encoding import PLAIN
from support.engines import engines
from support.otlp import features, request

KIBIBYTE = 1024


@asynccontextmanager
async def working(budget: Budget, *, held_max: int) -> AsyncIterator[Unfinished]:
    unfinished = Unfinished(budget, Turns(), held_max=held_max, slice_s=0.001)
    task = asyncio.create_task(unfinished.run())
    yield unfinished
    task.cancel()
    await asyncio.wait({task})


def opened(body: bytes) -> Begun:
    return Begun(engines(PLAIN)[0].open(body))


async def until_idle(unfinished: Unfinished) -> None:
    async with asyncio.timeout(20):
        while any(not kept.is_done for kept in unfinished._kept.values()):  # noqa: ASYNC110  a condition with a deadline
            await asyncio.sleep(0.01)


async def test_a_translation_goes_on_while_its_sender_waits() -> None:
    """The sender's next attempt has as little time as the last one: it finds all its records ready."""
    budget, body = Budget(1024 * KIBIBYTE), request(features(300))
    async with working(budget, held_max=10_000 * KIBIBYTE) as unfinished:
        unfinished.keep(await key_of(body), len(body), opened(body))
        await until_idle(unfinished)
        assert budget.held["unfinished"] > len(body)
        begun = await unfinished.take(body)
        assert begun is not None
        assert begun.translation.published().total() == 300
        assert budget.held["unfinished"] == 0
        assert await unfinished.take(body) is None


async def test_a_second_long_request_does_not_undo_the_first() -> None:
    """Two senders whose requests displaced each other would both begin anew for ever."""
    budget = Budget(1024 * KIBIBYTE)
    first, second = request(features(300)), request(features(300))
    async with working(budget, held_max=10_000 * KIBIBYTE) as unfinished:
        unfinished.keep(await key_of(first), len(first), opened(first))
        await until_idle(unfinished)
        unfinished.keep(await key_of(second), 9_999 * KIBIBYTE, opened(second))
        assert await unfinished.take(second) is None
        assert await unfinished.take(first) is not None


async def test_a_request_that_turns_out_too_large_is_refused_at_the_next_attempt() -> None:
    """And what was made of it is let go at once."""
    budget, body = Budget(1024 * KIBIBYTE), request(features(300))
    async with working(budget, held_max=len(body) + 20 * KIBIBYTE) as unfinished:
        unfinished.keep(await key_of(body), len(body), opened(body))
        await until_idle(unfinished)
        assert budget.held["unfinished"] == 0
        with pytest.raises(TooMuchToHold):
            await unfinished.take(body)
        assert await unfinished.take(body) is None  # the limits may be others tomorrow


async def test_an_attempt_gets_the_batches_of_the_one_before() -> None:
    """It waits for their acknowledgement. To publish anew would store every record twice in the topic."""
    budget, body = Budget(1024 * KIBIBYTE), request(features(300))
    batches = frozenset({asyncio.get_running_loop().create_future()})
    async with working(budget, held_max=10_000 * KIBIBYTE) as unfinished:
        unfinished.keep(await key_of(body), len(body), Begun(opened(body).translation, batches))
        await until_idle(unfinished)
        begun = await unfinished.take(body)
        assert begun is not None
        assert begun.batches == batches
