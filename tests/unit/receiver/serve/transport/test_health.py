"""The health service says what is so now, and tells those who watch."""

from receiver.serve.transport.health import TRACES, Watchers

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


def test_a_check_asks_and_does_not_wait_for_the_next_update() -> None:
    """A check right after /readyz said ok was told NOT_SERVING."""
    is_serving = False
    watchers = Watchers(lambda: is_serving)
    assert watchers.status(TRACES) == NOT_SERVING
    is_serving = True
    assert watchers.status("") == watchers.status(TRACES) == SERVING
    assert watchers.status("nobody") is None


def test_who_watches_is_told_once_of_each_change() -> None:
    is_serving = False
    told: list[bytes] = []
    watchers = Watchers(lambda: is_serving)
    with watchers.watching(TRACES, told.append) as is_admitted:
        assert is_admitted
        is_serving = True
        watchers.status("")
        watchers.update()
        is_serving = False
        watchers.update()
    is_serving = True
    watchers.update()
    assert told == [SERVING, NOT_SERVING]
