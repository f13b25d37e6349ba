"""Metrics and logs, which default SDKs send along: taken, thrown away, counted, and said once in the log."""

import structlog

from receiver import metrics

log = structlog.get_logger(__name__)

VARIABLES = {"metrics": "OTEL_METRICS_EXPORTER=none", "logs": "OTEL_LOGS_EXPORTER=none"}


class OtherSignals:
    """What becomes of requests that are not about traces. `seconds_max`: how long a body may take."""

    def __init__(self, *, are_accepted: bool, seconds_max: float) -> None:
        self.are_accepted = are_accepted
        self.seconds_max = seconds_max
        self._is_told: set[str] = set()

    def dropped(self, signal: str) -> None:
        """A request of this signal was answered with success, and nothing of it is kept."""
        metrics.unsupported_items.labels(signal).inc()
        if signal not in self._is_told:
            self._is_told.add(signal)
            log.warning("signal_dropped", signal=signal, remedy=f"set {VARIABLES[signal]} at the sender")
