"""Long requests whose deadline passed: their translation continues until the sender's next attempt.

A sender repeats a request that was not answered in time. Without this module, a request that takes longer than one
attempt would never be answered. A request is published once all of it is translated. When the acknowledgement comes too
late for an attempt, the next attempt waits for the same batches, so nothing is published twice.
"""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import sha256

from receiver.budget import Budget
from receiver.replies import TooMuchToHold
from receiver.serve.turns import Turns
from receiver.translate.engines.engine import Translation

REQUESTS_MAX = 8
# An exporter waits at most 45 s between two attempts (30 s, and half of that as jitter), and the body of one attempt
# may arrive too late.
KEEP_S = 120.0
SLICE_S = 0.005  # of translation; other requests wait no longer for it in one round of the loop
KEPT_SLICE_S = 0.001  # beside bodies that arrive: the next attempt's 64 MiB come in some 250 pieces


@dataclass(frozen=True, slots=True)
class Begun:
    """The progress of an attempt: its translation, and its batches once they are published."""

    translation: Translation
    batches: frozenset[asyncio.Future[bool]] = frozenset()  # none: nothing of it is published


@dataclass(slots=True, eq=False)
class _Kept:
    begun: Begun | None  # None: the request was found to be too much
    body_bytes: int
    counted_bytes: int = 0
    is_done: bool = False
    since: float = field(default_factory=time.monotonic)


class Unfinished:
    """A few translations, by the SHA-256 of their request. They count in the budget.

    A kept translation stays until its sender repeats the request, or for two minutes. It is not displaced by another
    one: otherwise two senders of long requests would discard each other's work for ever.
    """

    def __init__(self, budget: Budget, turns: Turns, *, held_max: int, slice_s: float = KEPT_SLICE_S) -> None:
        self._budget = budget
        self._turns = turns
        self._held_max = held_max
        self._slice_s = slice_s
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._has_work = asyncio.Event()

    def check(self, body_bytes: int, translation: Translation) -> None:
        """Raises TooMuchToHold when the request and its records are more than one request may hold."""
        if body_bytes + translation.held_bytes > self._held_max:
            raise TooMuchToHold

    async def take(self, body: bytes) -> Begun | None:
        """Take over the progress of an earlier attempt with the same bytes; None when there is none.

        Raises:
            TooMuchToHold: since that attempt the request was found to be too large.
        """
        if not any(kept.body_bytes == len(body) for kept in self._kept.values()):
            return None
        kept = self._drop(await key_of(body))
        if kept is not None and kept.begun is None:
            raise TooMuchToHold
        return None if kept is None else kept.begun

    def keep(self, key: bytes, body_bytes: int, begun: Begun) -> None:
        """Continue an attempt's translation, if there is room beside the kept ones."""
        self.forget()
        size = body_bytes + begun.translation.held_bytes
        if len(self._kept) < REQUESTS_MAX and self._budget.held["unfinished"] + size <= self._held_max:
            self._drop(key)
            kept = self._kept[key] = _Kept(begun, body_bytes)
            self._count(kept)
            self._has_work.set()

    def forget(self) -> None:
        """Drop translations whose senders did not repeat the request within KEEP_S."""
        old = [key for key, kept in self._kept.items() if time.monotonic() - kept.since > KEEP_S]
        for key in old:
            self._drop(key)

    async def run(self) -> None:
        """Translate the kept requests, oldest first, one slice at a time. Connections get turns in between."""
        while True:
            await self._has_work.wait()
            work = next(((key, kept) for key, kept in self._kept.items() if not kept.is_done), None)
            if work is None:
                self._has_work.clear()
                continue
            async with self._turns.turn(self):
                self._step(*work)
            await asyncio.sleep(0)

    def _step(self, key: bytes, kept: _Kept) -> None:
        if self._kept.get(key) is not kept or kept.begun is None:
            return  # its sender took it meanwhile
        try:
            kept.is_done = kept.begun.translation.step(self._slice_s)
            self.check(kept.body_bytes, kept.begun.translation)
        except TooMuchToHold:
            kept.begun, kept.is_done = None, True
        except Exception:  # noqa: BLE001  a bug of ours: the sender's next attempt meets it, and is told so
            self._drop(key)
            return
        self._count(kept)

    def _drop(self, key: bytes) -> _Kept | None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._budget.release(kept.counted_bytes, "unfinished")
        return kept

    def _count(self, kept: _Kept) -> None:
        size = 0 if kept.begun is None else kept.body_bytes + kept.begun.translation.held_bytes
        self._budget.hold(self._budget.held["unfinished"] + size - kept.counted_bytes, "unfinished")
        kept.counted_bytes = size


async def key_of(body: bytes) -> bytes:
    """The SHA-256 of a body. Runs in a thread: 64 MiB take 40 ms or more."""
    return await asyncio.to_thread(lambda: sha256(body).digest())
