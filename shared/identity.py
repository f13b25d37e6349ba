"""raw id -> hash. Pure. The receiver hashes before anything leaves it; erase and export need the same hash."""

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, NewType

IdHash = NewType("IdHash", str)
IdHashing = Literal["hash", "prehashed"]

HASH_CHARS = 16  # 64 bits: ids collide in practice from about 5 billion on
_PREHASHED = re.compile(r"[0-9a-f]{16}")


def hash_id(raw: str, key: bytes = b"") -> IdHash:
    """The first 16 hex digits of SHA-256, or of HMAC-SHA-256 under `key`, over the id as UTF-8.

    Nothing is trimmed, folded or normalised, so that every sender's own hash of the same id agrees.
    Without a key, ids from a small space can be found by trying them all.
    """
    encoded = raw.encode()
    digest = hmac.digest(key, encoded, "sha256").hex() if key else sha256(encoded).hexdigest()
    return IdHash(digest[:HASH_CHARS])


@dataclass(frozen=True, slots=True)
class Hasher:
    """The receiver's hash. In mode `prehashed`, 16 lower-case hex digits are taken for a hash already."""

    mode: IdHashing = "hash"
    key: bytes = field(default=b"", repr=False)

    def __call__(self, raw: str) -> IdHash:
        if self.mode == "prehashed" and _PREHASHED.fullmatch(raw):
            return IdHash(raw)
        return hash_id(raw, self.key)


def hashes_of(raw: str, *, mode: IdHashing, keys: Iterable[bytes]) -> list[IdHash]:
    """Every hash that this id may be stored under: by each key (b"" is none), and itself if prehashed."""
    found = [hash_id(raw, key) for key in keys]
    if mode == "prehashed" and _PREHASHED.fullmatch(raw):
        found.append(IdHash(raw))
    return list(dict.fromkeys(found))
