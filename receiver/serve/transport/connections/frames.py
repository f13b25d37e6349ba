"""bytes as they arrive -> HTTP/2 frames, each payload copied once. Pure: judges nothing.

The layout is that of RFC 9113, section 4.1: length, type, flags, stream, payload.
"""

import struct
from typing import NamedTuple

HEAD_BYTES = 9
_HEAD = struct.Struct(">HBBBI")
_STREAM_BITS = 2**31 - 1  # the highest bit is reserved, and ignored


class Head(NamedTuple):
    """What stands before a frame's payload of `size` bytes."""

    size: int
    kind: int
    flags: int
    stream: int


class Unread:
    """The bytes of a connection that nobody has read yet."""

    __slots__ = ("_at", "_bytes")

    def __init__(self) -> None:
        self._bytes: bytes | bytearray = b""
        self._at = 0  # what stands before it is read

    def __len__(self) -> int:
        return len(self._bytes) - self._at

    def add(self, piece: bytes) -> None:
        """Take more bytes: without a copy when everything before them is read."""
        if not self:
            self._bytes, self._at = piece, 0
            return
        self.compact()
        assert isinstance(self._bytes, bytearray)
        self._bytes += piece

    def compact(self) -> None:
        """Let go of what is read: a few bytes of a next frame must not hold a large piece in memory."""
        if not self:
            self._bytes = b""
        elif isinstance(self._bytes, bytearray):
            del self._bytes[: self._at]
        else:
            self._bytes = bytearray(memoryview(self._bytes)[self._at :])
        self._at = 0

    def start(self, size: int) -> bytes:
        """The first bytes, `size` at most. They stay unread."""
        return bytes(self._bytes[self._at : self._at + size])

    def skip(self, size: int) -> None:
        self._at += size

    def head(self) -> Head | None:
        """The next frame's; None when not all of it is here. It stays unread."""
        if len(self) < HEAD_BYTES:
            return None
        size, low, kind, flags, stream = _HEAD.unpack_from(self._bytes, self._at)
        return Head(size << 8 | low, kind, flags, stream & _STREAM_BITS)

    def take(self, size: int, *, behind: int = 0) -> bytes:
        """The next bytes behind the first few, which are thrown away."""
        start = self._at + behind
        self._at = start + size
        if isinstance(self._bytes, bytes):
            return self._bytes[start : self._at]
        with memoryview(self._bytes) as view:
            return bytes(view[start : self._at])

    def clear(self) -> None:
        self._bytes, self._at = b"", 0


def frame(kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload
