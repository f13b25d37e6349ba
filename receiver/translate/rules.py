"""settings -> the rules of translation. Pure."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import translate as glob_pattern

from receiver.translate import mapping
from receiver.translate.metadata import AllowList
from shared.identity import Hasher

ENDPOINT_EXCLUDE = ("/health", "/healthz", "/livez", "/readyz", "/metrics", "/favicon.ico")


@dataclass(frozen=True, eq=False)
class Rules:
    """Every setting on which the translation of a span depends. Compared by identity: a process has one."""

    hashed: Hasher
    deployment_type: str = "self-hosted"
    infer_events: bool = True
    identity_by_trace: bool = True
    endpoint_exclude: Sequence[str] = ENDPOINT_EXCLUDE
    endpoints_per_service: int = 0
    metadata_attributes: Sequence[str] = mapping.METADATA_ATTRIBUTES
    span_bytes_max: int = 4 * 1024 * 1024
    span_attributes_max: int = 1024
    allowed: AllowList = field(init=False, repr=False)
    is_excluded: Callable[[str], bool] = field(init=False, repr=False)
    has_deciding_key: Callable[[bytes], bool] = field(init=False, repr=False)
    has_shared_key: Callable[[bytes], bool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        excluded = re.compile("|".join(map(glob_pattern, self.endpoint_exclude)) or "(?!)")
        for name, value in (
            ("allowed", AllowList(self.metadata_attributes)),
            ("is_excluded", lambda path: excluded.match(path) is not None),
            ("has_deciding_key", _holds_one_of(mapping.deciding_keys(infer_events=self.infer_events))),
            ("has_shared_key", _holds_one_of(mapping.SHARED_KEYS)),
        ):
            object.__setattr__(self, name, value)


def _holds_one_of(keys: Sequence[bytes]) -> Callable[[bytes], bool]:
    """A test whether bytes hold one of the keys. A key that contains another key needs no search of its own."""
    least = [key for key in keys if not any(other in key and other != key for other in keys)]

    def holds(raw: bytes) -> bool:
        find = raw.find
        for key in least:  # noqa: SIM110  a generator would double the cost of a span that is skipped
            if find(key) >= 0:
                return True
        return False

    return holds
