"""Bodies are decompressed piece by piece: what each compression gives, what is cut short, and what never ends."""

import gzip
import os
import sys
import zlib
from collections.abc import Callable

import pytest

from receiver.budget import Arrivals, Budget
from receiver.replies import BadEncoding, TooLarge, UnknownEncoding
from receiver.serve.transport.body import PIECE_BYTES, inflated
from receiver.serve.turns import Turns

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MEBIBYTE = 1024 * 1024


def bare_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


PACKERS: list[tuple[bytes, Callable[[bytes], bytes]]] = [
    (b"gzip", gzip.compress),
    (b"gzip", lambda body: gzip.compress(body[:1000]) + gzip.compress(body[1000:])),
    (b"deflate", zlib.compress),
    (b"deflate", bare_deflate),
    (b"zstd", zstd.compress),
    (b"zstd", lambda body: zstd.compress(body[:10]) + zstd.compress(body[10:])),
]


async def unpacked(packed: bytes, encoding: bytes, size_max: int = 64 * MEBIBYTE) -> bytes:
    arrivals = Arrivals(Budget(0), MEBIBYTE)
    with arrivals.arriving("peer", lambda _: None) as arrival:
        body = await inflated(packed, encoding, arrival, turns=Turns(), size_max=size_max)
        assert arrival.bytes == (len(body) if encoding else 0)
    return body


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
async def test_a_body_is_what_was_packed(encoding: bytes, pack: Callable[[bytes], bytes]) -> None:
    """Members and frames that follow each other are one body; some senders mean bare deflate by deflate."""
    for body in (os.urandom(PIECE_BYTES + 7) + b"a" * 3 * PIECE_BYTES, b"x", b""):
        assert await unpacked(pack(body), encoding) == body


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
async def test_what_is_cut_short_or_has_noise_behind_it_is_refused(
    encoding: bytes, pack: Callable[[bytes], bytes]
) -> None:
    """Half a request would be a request with fewer spans."""
    packed = pack(os.urandom(5000))
    for wrong in (packed[:1], packed[: len(packed) // 3], packed[:-1], packed + b"\xff\xff", b"", b"\xff" * 50):
        with pytest.raises(BadEncoding):
            await unpacked(wrong, encoding)


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
async def test_a_bomb_ends_at_the_limit(encoding: bytes, pack: Callable[[bytes], bytes]) -> None:
    """A thousandth of its size on the wire."""
    with pytest.raises(TooLarge):
        await unpacked(pack(bytes(10 * MEBIBYTE)), encoding, size_max=2 * MEBIBYTE)
    assert len(await unpacked(pack(bytes(2 * MEBIBYTE)), encoding, size_max=2 * MEBIBYTE)) == 2 * MEBIBYTE


async def test_other_encodings_are_named_as_unknown() -> None:
    """The sender can change it, so it must hear which it is."""
    assert await unpacked(b"as it is", b"") == b"as it is"
    for encoding in (b"br", b"snappy", b"gzip, gzip", b"\xff"):
        with pytest.raises(UnknownEncoding):
            await unpacked(b"x", encoding)
