"""call headers -> whether the caller may send. Decided before a byte of the body is read."""

import hmac
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog

from shared.errors import WrongSetting
from shared.logs import error_facts

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
KEY_LENGTH_MIN = 4  # shorter ones are slips, or the beginning of a file that is being written
COMMENT = "#"
_Fingerprint = tuple[int, int, int]


class Keys:
    """The accepted API keys. Without any key, every caller may send.

    The file is checked at most once a second, and read when two checks find the same change, so that a half-written
    file is not read. When the file is missing or unreadable, holds no key, or holds a key that is too short, the last
    keys stay: otherwise a rotation that writes in place would refuse callers with a valid key.
    """

    def __init__(
        self, fixed: Iterable[str], file: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fixed = tuple(key.encode() for key in fixed)
        if any(len(key) < KEY_LENGTH_MIN for key in self._fixed):
            raise WrongSetting(f"API_KEYS and OTEL_API_KEY: a key needs {KEY_LENGTH_MIN} characters or more")
        self._file = file
        self._from_file: tuple[bytes, ...] = ()
        self._clock = clock
        self._looked_at = clock()
        self._fingerprint: _Fingerprint | None = None
        self._seen: _Fingerprint | None = None  # at the last look
        self._is_warned = False
        if file is not None:
            try:
                self._read(file)
            except (OSError, ValueError) as error:
                reason = str(error) if isinstance(error, _Unusable) else type(error).__name__
                raise WrongSetting(f"API_KEYS_FILE: {file}: {reason}") from error

    @property
    def are_needed(self) -> bool:
        return bool(self._fixed or self._file)

    def accept(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the call shows a key, in `x-api-key` or as `authorization: Bearer`."""
        if not self.are_needed:
            return True
        self._look()
        return any([_is_one_of(shown, (*self._fixed, *self._from_file)) for shown in _shown(headers)])  # noqa: C419

    def _look(self) -> None:
        now = self._clock()
        if self._file is None or now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            seen, self._seen = self._seen, _fingerprint(self._file)
            if self._seen == self._fingerprint:
                self._is_warned = False
            elif self._seen == seen:
                self._read(self._file)
                self._is_warned = False
                log.info("keys_read", keys=len(self._from_file))
        except (OSError, ValueError) as error:
            if not self._is_warned:
                reason = str(error) if isinstance(error, _Unusable) else "API_KEYS_FILE cannot be read"
                log.warning("keys_kept", reason=reason, **error_facts(error))
            self._is_warned = True

    def _read(self, file: Path) -> None:
        fingerprint = _fingerprint(file)  # before the text: a change in between is seen at the next look
        lines = (line.strip() for line in file.read_text().splitlines())
        keys = tuple(line.encode() for line in lines if line and not line.startswith(COMMENT))
        if not keys:
            raise _Unusable("the file holds no key")
        if any(len(key) < KEY_LENGTH_MIN for key in keys):
            raise _Unusable(f"a key needs {KEY_LENGTH_MIN} characters or more")
        self._from_file, self._fingerprint = keys, fingerprint


class _Unusable(ValueError):  # noqa: N818  what the file is
    """The file cannot be used. The message repeats nothing of the file, so it may be logged."""


def _shown(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    shown = []
    for name, value in headers:
        if name == b"x-api-key":
            shown.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            shown.append(value[7:].strip())
    return shown


def _is_one_of(shown: bytes, keys: Sequence[bytes]) -> bool:
    """Compares every key, so that the time taken does not tell which key was similar."""
    return any([hmac.compare_digest(shown, key) for key in keys])  # noqa: C419  a generator would stop early


def _fingerprint(file: Path) -> _Fingerprint:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
