"""A call's answer, where its time is over at an awkward moment: the sender's next attempt goes on from there."""

from collections.abc import Hashable
from pathlib import Path

import pytest

from receiver.budget import Arrival, Arrivals, Budget
from receiver.publish.publisher import Publisher
from receiver.serve.auth import Keys
from receiver.serve.export import Export
from receiver.serve.turns import Turns
from receiver.serve.unfinished import Begun, key_of
from receiver.settings import ReceiverSettings
from shared.probes import Health
from shared.settings import load
from support.encoding import PLAIN
from support.engines import engines
from support.otlp import features, request

MEBIBYTE = 1024 * 1024


class Caller:
    """A call whose body is there at once."""

    transport = "grpc"
    peer: Hashable = "sender"
    headers = ()

    def __init__(self, body: bytes) -> None:
        self._body = body

    def remaining_s(self) -> None:
        return None

    async def read(self, _: Arrival) -> bytes:
        return self._body

    def give_way(self, _: Exception) -> None:
        raise AssertionError("its body is there")


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def export(turns: Turns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Export:
    monkeypatch.chdir(tmp_path)  # no .env of the clone is read
    monkeypatch.setenv("PUBLISH_TIMEOUT_MS", "100")
    settings = load(ReceiverSettings)
    budget, engine = Budget(64 * MEBIBYTE), engines(PLAIN)[0]
    return Export(
        settings,
        keys=Keys(()),
        arrivals=Arrivals(budget, MEBIBYTE),
        budget=budget,
        turns=turns,
        engine=engine,
        publisher=Publisher(settings, engine=engine, budget=budget, health=Health("broker")),
    )


async def test_an_attempt_that_gets_no_turn_at_all_keeps_what_the_earlier_ones_have_done(
    export: Export, turns: Turns
) -> None:
    """A large body arrives in the last moment of its attempt: half a translation was thrown away there."""
    body = request(features(300))
    translation = engines(PLAIN)[0].open(body)
    export.unfinished.keep(await key_of(body), len(body), Begun(translation))
    async with turns.turn("another"):
        reply = await export.answer(Caller(body))
    assert reply.code == "UNAVAILABLE"
    begun = await export.unfinished.take(body)
    assert begun is not None
    assert begun.translation is translation


async def test_a_first_attempt_that_gets_no_turn_leaves_nothing_behind(export: Export, turns: Turns) -> None:
    """There is nothing to go on from, and what is kept takes memory from others."""
    body = request(features(300))
    async with turns.turn("another"):
        assert (await export.answer(Caller(body))).code == "UNAVAILABLE"
    assert await export.unfinished.take(body) is None
