"""call metadata -> may this caller send? Decided before a byte of the body is read."""

import hmac
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog

from shared.errors import WrongSetting
from shared.logs import error_facts

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
_Fingerprint = tuple[int, int, int]


class Keys:
    """The keys that open the door; none at all, and it stands open.

    The file is looked at once a second at most. When it vanishes, is empty or cannot be read, the last keys
    stay: a rotation that writes in place would otherwise refuse callers who are in the right.
    """

    def __init__(
        self, fixed: Iterable[str], file: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fixed = tuple(key.encode() for key in fixed)
        self._file = file
        self._from_file: tuple[bytes, ...] = ()
        self._clock = clock
        self._looked_at = clock()
        self._fingerprint: _Fingerprint | None = None
        self._is_warned = False
        if file is not None:
            try:
                self._read(file)
            except (OSError, ValueError) as error:
                raise WrongSetting(f"API_KEYS_FILE: {file} holds no keys: {type(error).__name__}") from error

    @property
    def are_needed(self) -> bool:
        return bool(self._fixed or self._file)

    def accept(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether the call shows a key, in `x-api-key` or as `authorization: Bearer`."""
        if not self.are_needed:
            return True
        self._look()
        return any([_is_one_of(shown, (*self._fixed, *self._from_file)) for shown in _shown(metadata)])  # noqa: C419

    def _look(self) -> None:
        now = self._clock()
        if self._file is None or now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            if _fingerprint(self._file) != self._fingerprint:
                self._read(self._file)
                log.info("keys_read", keys=len(self._from_file))
            self._is_warned = False
        except (OSError, ValueError) as error:
            if not self._is_warned:
                log.warning("keys_kept", reason="API_KEYS_FILE cannot be read or is empty", **error_facts(error))
            self._is_warned = True

    def _read(self, file: Path) -> None:
        fingerprint = _fingerprint(file)  # before the text: a change in between is seen at the next look
        keys = tuple(line.strip().encode() for line in file.read_text().splitlines() if line.strip())
        if not keys:
            raise ValueError("empty")
        self._from_file, self._fingerprint = keys, fingerprint


def _shown(metadata: Iterable[tuple[str, str | bytes]]) -> list[bytes]:
    shown = []
    for name, value in metadata:
        text = value if isinstance(value, bytes) else value.encode()
        if name == "x-api-key":
            shown.append(text.strip())
        elif name == "authorization" and text[:7].lower() == b"bearer ":
            shown.append(text[7:].strip())
    return shown


def _is_one_of(shown: bytes, keys: Sequence[bytes]) -> bool:
    """Every key is compared, so that the time taken tells nothing about which one was near."""
    return any([hmac.compare_digest(shown, key) for key in keys])  # noqa: C419  a generator would stop early


def _fingerprint(file: Path) -> _Fingerprint:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
