"""raw id -> hash: every sender and every language must come to the same 16 digits."""

import hashlib

import pytest

from shared.identity import Hasher, hash_id, hashes_of

KEY = b"0123456789abcdef0123456789abcdef"


def test_unkeyed_and_keyed_hashes_are_the_documented_ones() -> None:
    """Backends hash by themselves; a different digest splits a person in two."""
    assert hash_id("42") == "73475cb40a568e8d"
    assert hash_id("42", KEY) == "3b12d0412db185c9"


@pytest.mark.parametrize("raw", ["a", " a ", "Ä", "A\u0308", "\u0000", "x" * 10_000])
def test_an_id_is_hashed_as_it_is(raw: str) -> None:
    """Trimming or normalising here would disagree with the senders' own hash."""
    assert hash_id(raw) == hashlib.sha256(raw.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("raw", "passes"),
    [
        ("73475cb40a568e8d", True),
        ("73475CB40A568E8D", False),
        ("73475cb40a568e8", False),
        ("73475cb40a568e8d0", False),
        ("73475cb40a568e8d\n", False),
        ("g3475cb40a568e8d", False),
    ],
)
def test_prehashed_passes_sixteen_lower_case_hex_digits_and_nothing_else(raw: str, passes: bool) -> None:
    """Anything else might be a raw id."""
    assert (Hasher("prehashed")(raw) == raw) is passes
    assert Hasher("hash")(raw) != raw


def test_an_erasure_finds_every_hash_that_an_id_may_have() -> None:
    """After a key change the old rows still carry the old hash."""
    assert hashes_of("42", mode="hash", keys=[KEY, b""]) == ["3b12d0412db185c9", "73475cb40a568e8d"]
    assert hashes_of("73475cb40a568e8d", mode="prehashed", keys=[b""])[1:] == ["73475cb40a568e8d"]
