"""The life of a process: a stop event that SIGTERM and SIGINT set, background tasks, deadlines, backoff."""

import asyncio
import gc
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def spare_garbage_collector(*, young_objects: int = 100_000) -> None:
    """Call once everything is constructed: these objects stay, so the collector need not visit them again.

    Records and requests are freed with their last reference. Cycles wait until there are `young_objects` more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(young_objects, 20, 50)


def stop_event() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set. A second signal changes nothing: the stop has its own deadline."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event


async def sleep_or_stop(event: asyncio.Event, timeout_s: float) -> bool:
    """Sleep that ends early when the event is set: True when it was."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True


async def heartbeat(beat: Callable[[], None], every_s: float = 1.0) -> None:
    """Call `beat` for as long as the loop runs: what liveness looks at."""
    while True:
        beat()
        await asyncio.sleep(every_s)


async def stop_within(awaitable: Awaitable[T], timeout_s: float) -> bool:
    """Await a foreign stop() or commit() under a deadline; False when it did not end well in time.

    aiokafka raises CancelledError of its own from stop() when the broker is down, and its commit()
    never returns. So a cancellation counts as ours only when this task was asked to cancel.
    """
    task = asyncio.current_task()
    asked = task.cancelling() if task else 0
    try:
        async with asyncio.timeout(timeout_s):  # wait_for of Python 3.11 loses a cancel that meets the end
            await awaitable
    except asyncio.CancelledError:
        if task and task.cancelling() > asked:
            raise
        return False
    except Exception:  # noqa: BLE001  the client is given up, whatever it raises
        return False
    return True


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Run a task for as long as the block. At its end the task is cancelled and awaited, and its error is raised."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            raise error


def backoff_s(attempt: int, *, first_s: float = 0.1, most_s: float = 5.0) -> float:
    """Full jitter: a uniform part of first x 2^attempt, capped, so that many waiters do not return together."""
    return random.uniform(0.5, 1.0) * min(most_s, first_s * 2.0 ** min(attempt, 16))  # noqa: S311  not a secret
