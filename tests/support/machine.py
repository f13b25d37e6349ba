"""How late this machine is: a shared one with two cores may give a process its turn a second after it is due."""

import threading
import time
from types import TracebackType
from typing import Self

_NAP_S = 0.01
# An answer takes so many turns: the client's loop, grpc's threads on both sides, the receiver's loop, the broker.
_TURNS = 10


class Lateness:
    """Measures, while it is open, how much later than it asked a thread of ours was woken.

    A claim of a time is then a claim of that time plus `allowance_s`: some hundredths of a second where nothing
    else runs, and more where an answer waits for the machine and not for us.
    """

    def __init__(self) -> None:
        self._worst_s = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def allowance_s(self) -> float:
        return _TURNS * self._worst_s

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.is_set():
            asked_at = time.monotonic()
            time.sleep(_NAP_S)
            self._worst_s = max(self._worst_s, time.monotonic() - asked_at - _NAP_S)
