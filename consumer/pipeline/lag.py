"""The lag in records and in seconds, and the time until it is gone: the metrics that alerts use."""

import math
import time
from collections import deque
from collections.abc import Mapping

from aiokafka import TopicPartition

from consumer import metrics
from consumer.pipeline.peek import Peek
from shared.errors import BrokerUnavailable

RATE_WINDOW_S = 60.0


class Lag:
    """Measured every few seconds, whatever the loop is doing."""

    def __init__(self, topic: str, *, peek: Peek, retention_s: float) -> None:
        self._topic = topic
        self._peek = peek
        self._retention_s = retention_s
        self._at: dict[int, int] = {}  # next offsets at the last measurement
        self._waiting: dict[int, tuple[int, float]] = {}  # offset of the first waiting record, and when it was received
        self._rates: deque[tuple[float, int]] = deque()

    async def measure(
        self, next_offsets: Mapping[int, int], ends: Mapping[int, int], record_times: Mapping[int, float]
    ) -> None:
        """Lag that grows while consumption stalls: by the clock of the receiver that got the first waiting record.

        `record_times`: when the last settled record of a partition was received.
        """
        for partition in self._at.keys() - next_offsets.keys():  # another consumer's now
            for gauge in (metrics.lag_records, metrics.lag_seconds):
                gauge.remove(str(partition))
            self._waiting.pop(partition, None)
        lags = {partition: max(0, ends.get(partition, at) - at) for partition, at in next_offsets.items()}
        await self._look_at_waiting(next_offsets, {partition for partition, lag in lags.items() if lag}, record_times)
        oldest_s = 0.0
        for partition, lag in lags.items():
            metrics.lag_records.labels(str(partition)).set(lag)
            seconds = max(0.0, time.time() - self._waiting[partition][1]) if lag and partition in self._waiting else 0.0
            if not lag or partition in self._waiting:  # else nobody could tell: the last answer stays
                metrics.lag_seconds.labels(str(partition)).set(seconds)
            oldest_s = max(oldest_s, seconds)
        metrics.retention_used_ratio.set(oldest_s / self._retention_s)
        if next_offsets.keys() != self._at.keys():
            self._rates.clear()  # what other partitions did tells nothing of these
        self._at = dict(next_offsets)
        self._measure_drain(sum(lags.values()))

    async def _look_at_waiting(
        self, next_offsets: Mapping[int, int], behind: set[int], record_times: Mapping[int, float]
    ) -> None:
        """Find out when the first waiting record of each partition was received.

        While a partition moves, the time of its last settled record is close enough. When it stands still, the waiting
        record is read: on a quiet partition the last settled record may be days older.
        """
        unknown = {}
        for partition in behind:
            offset = next_offsets[partition]
            if (known := self._waiting.get(partition)) and known[0] == offset:
                continue
            self._waiting.pop(partition, None)
            if offset != self._at.get(partition, offset) and partition in record_times:
                self._waiting[partition] = (-1, record_times[partition])  # -1: look again when it stands still
            else:
                unknown[TopicPartition(self._topic, partition)] = offset
        try:
            found = await self._peek(unknown)
        except BrokerUnavailable:
            return
        for place, record in found.items():
            if record is not None:
                self._waiting[place.partition] = (unknown[place], record.timestamp / 1000)

    def _measure_drain(self, lag: int) -> None:
        """Estimate the time from the change of the lag within the last minute."""
        now = time.monotonic()
        self._rates.append((now, lag))
        while now - self._rates[0][0] > RATE_WINDOW_S:
            self._rates.popleft()
        then, lag_then = self._rates[0]
        if not lag:
            metrics.drain_seconds.set(0)
        elif now == then:
            metrics.drain_seconds.set(math.nan)  # nobody knows yet
        else:
            falls = (lag_then - lag) / (now - then)
            metrics.drain_seconds.set(lag / falls if falls > 0 else -1)
