"""pieces of a body -> the body. Bounds its length before and after decompression, and counts its memory."""

import asyncio
import sys
import zlib
from typing import Protocol

from receiver.budget import Arrival
from receiver.replies import BadEncoding, TooLarge, UnknownEncoding
from receiver.serve.turns import Turns

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 512 * 1024  # inflated in one step, which takes 2 ms
ENCODINGS = (b"gzip", b"deflate", b"zstd")


class Source(Protocol):
    async def receive(self) -> bytes:
        """The next piece; empty at the end. The call also tells the sender that it may send more."""


async def collected(source: Source, arrival: Arrival, *, size_max: int) -> bytes:
    """All bytes of the source.

    Raises:
        TooLarge: they are more than `size_max`.
    """
    pieces: list[bytes] = []
    size = 0
    while piece := await source.receive():
        size += len(piece)
        if size > size_max:
            raise TooLarge
        await arrival.grow(len(piece))
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def inflated(packed: bytes, encoding: bytes, arrival: Arrival, *, turns: Turns, size_max: int) -> bytes:
    """Decompress a body, half a mebibyte in each turn, so that a decompression bomb costs little.

    Raises:
        TooLarge: the result is larger than `size_max`.
        UnknownEncoding: `encoding` is not one of ENCODINGS.
        BadEncoding: the bytes are not in this encoding, or end too early.
    """
    if encoding in (b"", b"identity"):
        return packed
    if encoding not in ENCODINGS:
        raise UnknownEncoding
    unpacker = _Unpacker(packed, encoding)
    pieces: list[bytes] = []
    size = 0
    while True:
        async with turns.turn(arrival.peer):
            piece = unpacker.next()
        if not piece:
            break
        size += len(piece)
        if size > size_max:
            raise TooLarge
        await arrival.grow(len(piece))
        pieces.append(piece)
        await asyncio.sleep(0)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Unpacker:
    """Decompresses a body piece by piece. Several members or frames in a row are one body."""

    def __init__(self, packed: bytes, encoding: bytes) -> None:
        self._rest = packed
        self._encoding = encoding
        # Some senders mean bare deflate by "deflate", others zlib.
        self._bits = 31 if encoding == b"gzip" else zlib.MAX_WBITS if _is_zlib(packed) else -zlib.MAX_WBITS
        self._begin()

    def next(self) -> bytes:
        """At most PIECE_BYTES; empty at the end."""
        while not self._is_over():
            try:
                piece = self._step()
            except (zlib.error, zstd.ZstdError, EOFError, MemoryError):
                raise BadEncoding from None
            if piece:
                return piece
        return b""

    def _begin(self) -> None:
        if self._encoding == b"zstd":
            self._zstd = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
        else:
            self._zlib = zlib.decompressobj(self._bits)
        self._is_fresh = True

    def _is_over(self) -> bool:
        unpacker = self._zstd if self._encoding == b"zstd" else self._zlib
        if unpacker.eof:
            self._rest = unpacker.unused_data
            if not self._rest:
                return True
            self._begin()
        return False

    def _step(self) -> bytes:
        if self._encoding == b"zstd":
            if not self._is_fresh and self._zstd.needs_input:
                raise EOFError
            piece = self._zstd.decompress(self._rest if self._is_fresh else b"", PIECE_BYTES)
            is_stuck = not piece and not self._zstd.eof and self._zstd.needs_input
        else:
            given, piece = self._rest, self._zlib.decompress(self._rest, PIECE_BYTES)
            self._rest = self._zlib.unconsumed_tail
            is_stuck = not piece and not self._zlib.eof and (not given or not self._rest)
        self._is_fresh = False
        if is_stuck:
            raise EOFError
        return piece


_ZSTD_OPTIONS: dict[int, int] = {
    zstd.DecompressionParameter.window_log_max: 23
}  # 8 MiB, as RFC 8878 recommends to decoders


def _is_zlib(packed: bytes) -> bool:
    return len(packed) >= 2 and packed[0] & 0x0F == zlib.DEFLATED and int.from_bytes(packed[:2]) % 31 == 0
