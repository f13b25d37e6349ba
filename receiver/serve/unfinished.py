"""Requests whose time ran out before they were translated: the next attempt with the same bytes goes on from there.

A sender repeats a request that was not answered in time. Without this, a request that takes longer than one attempt
would never be answered. Nothing of it was published, so nothing is published twice.
"""

import time
from collections import OrderedDict
from hashlib import sha256

from receiver.serve.budget import Budget
from receiver.translate.engine import Translation

REQUESTS_MAX = 8
KEEP_S = 120.0  # an exporter waits 30 s at most between two attempts
SHARE = 2  # of the budget: a half, so that 84,000 spans with escaped paths are kept (30 MiB, and 60 MiB of records)


class Unfinished:
    """A few translations that were interrupted, by the SHA-256 of their request. Their bytes count in the budget."""

    def __init__(self, budget: Budget, *, bytes_max: int) -> None:
        self._budget = budget
        self._bytes_max = bytes_max // SHARE
        self.bytes = 0
        self._kept: OrderedDict[bytes, tuple[Translation, int, float]] = OrderedDict()

    def take(self, body: bytes) -> Translation | None:
        """The translation of these bytes, as far as it came; None when there is none. It is the caller's now."""
        if not self._kept:
            return None
        kept = self._drop(sha256(body).digest())
        self.forget()
        return kept

    def keep(self, body: bytes, translation: Translation) -> None:
        size = len(body) + translation.held_bytes
        if size > self._bytes_max:
            return
        key = sha256(body).digest()
        self._drop(key)
        self._kept[key] = translation, size, time.monotonic()
        self._count(size)
        self.forget()

    def forget(self) -> None:
        """The oldest, while there are too many, too large, or too old ones."""
        while self._kept:
            key, (_, _, since) = next(iter(self._kept.items()))
            is_old = time.monotonic() - since > KEEP_S
            if not is_old and len(self._kept) <= REQUESTS_MAX and self.bytes <= self._bytes_max:
                return
            self._drop(key)

    def _drop(self, key: bytes) -> Translation | None:
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        self._count(-kept[1])
        return kept[0]

    def _count(self, size: int) -> None:
        self.bytes += size
        if size > 0:
            self._budget.charge(size)
        else:
            self._budget.release(-size)
