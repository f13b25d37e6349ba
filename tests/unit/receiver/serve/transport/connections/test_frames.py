"""Frames are the same however their bytes arrive."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from receiver.serve.transport.connections.frames import HEAD_BYTES, Unread, frame

frames = st.lists(
    st.tuples(st.integers(0, 255), st.binary(max_size=300), st.integers(0, 255), st.integers(0, 2**31 - 1)), max_size=8
)


def taken(unread: Unread) -> list[tuple[int, bytes, int, int]]:
    found = []
    while (head := unread.head()) is not None and len(unread) >= HEAD_BYTES + head.size:
        found.append((head.kind, unread.take(head.size, behind=HEAD_BYTES), head.flags, head.stream))
    return found


@given(sent=frames, data=st.data())
def test_the_same_frames_are_taken_from_whatever_pieces(
    sent: list[tuple[int, bytes, int, int]], data: st.DataObject
) -> None:
    """TCP knows no frames: a piece may hold many, or end in the middle of a head."""
    whole = b"".join(frame(kind, payload, flags=flags, stream=stream) for kind, payload, flags, stream in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    unread, found = Unread(), []
    for start, end in pairwise([0, *cuts, len(whole)]):
        unread.add(whole[start:end])
        found += taken(unread)
        if data.draw(st.booleans()):
            unread.compact()
    assert found == sent
    assert not unread


def test_the_reserved_bit_of_a_stream_is_ignored() -> None:
    """RFC 9113, section 4.1."""
    unread = Unread()
    unread.add(frame(0, b"", stream=2**31 + 5))
    head = unread.head()
    assert head is not None
    assert head.stream == 5
