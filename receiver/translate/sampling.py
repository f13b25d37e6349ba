"""a span's tracestate -> how many spans it stands for. Pure.

OpenTelemetry's consistent probability sampling: `ot=th:<hex>` holds the share of dropped spans, as a threshold of 56
bits whose trailing zeros may be left out.
"""

import re

_THRESHOLD_DIGITS = 14
_ALL = 1 << 4 * _THRESHOLD_DIGITS
_STATE_BYTES_MAX = 4096  # W3C asks for 512 at least
_VENDOR = re.compile(rb"(?:^|,)[ \t]*ot=([^,]*)")
_THRESHOLD = re.compile(rb"(?:^|;)th:([0-9a-f]{1,14})(?=;|[ \t]*$)")


def weight_of(trace_state: bytes) -> float:
    """2^56 / (2^56 - threshold); 1 when there is no threshold, or a malformed one."""
    vendor = _VENDOR.search(trace_state[:_STATE_BYTES_MAX])
    threshold = _THRESHOLD.search(vendor[1]) if vendor else None
    if threshold is None:
        return 1.0
    thrown_away = int(threshold[1].ljust(_THRESHOLD_DIGITS, b"0"), 16)
    return _ALL / (_ALL - thrown_away)
