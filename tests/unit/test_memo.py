"""Memory of pure functions: bounded both ways, or a sender could fill ours."""

from receiver.translate.memo import remembered


def test_short_texts_are_remembered_and_long_ones_are_not() -> None:
    """8,192 entries are nothing, 8,192 entries of 4 MiB are 32 GiB."""
    seen = []

    @remembered(entries=2, length_max=3)
    def measured(text: str, more: int) -> int:
        seen.append(text)
        return len(text) + more

    assert [measured(text, 1) for text in ("abc", "abc", "abcd", "abcd")] == [4, 4, 5, 5]
    assert seen == ["abc", "abcd", "abcd"]
    assert measured("abc", 2) == 5  # another question
    assert [measured(text, 1) for text in ("x", "y", "abc")] == [2, 2, 4]
    assert seen[4:] == ["x", "y", "abc"]  # the oldest is forgotten
