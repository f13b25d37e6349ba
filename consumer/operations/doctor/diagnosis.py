"""One thing that doctor found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Diagnosis:
    check: str
    severity: Literal["error", "warning"]
    detail: str
    remedy: str
