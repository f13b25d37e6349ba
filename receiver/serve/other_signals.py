"""Metrics and logs, which SDKs send by default: answered with success, dropped, counted, and logged once."""

import structlog

from receiver import metrics

log = structlog.get_logger(__name__)

VARIABLES = {"metrics": "OTEL_METRICS_EXPORTER=none", "logs": "OTEL_LOGS_EXPORTER=none"}


class OtherSignals:
    """Drops requests with metrics or logs. `seconds_max`: how long a body may take to arrive."""

    def __init__(self, *, are_accepted: bool, seconds_max: float) -> None:
        self.are_accepted = are_accepted
        self.seconds_max = seconds_max
        self._is_told: set[str] = set()

    def dropped(self, signal: str) -> None:
        """Count a request that was answered with success and dropped; log the first one of each signal."""
        metrics.unsupported_items.labels(signal).inc()
        if signal not in self._is_told:
            self._is_told.add(signal)
            log.warning("signal_dropped", signal=signal, remedy=f"set {VARIABLES[signal]} at the sender")
