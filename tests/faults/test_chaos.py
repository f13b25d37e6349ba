"""The short form of `make chaos`: one fault of each kind, under load, and not an event missing or doubled."""

from pathlib import Path

import pytest
from chaos import ON_THEIR_WAY_MIN, chaos


async def test_a_fault_of_each_kind_under_load_loses_and_doubles_nothing(folder: Path) -> None:
    """What is promised for one fault must hold for one after another; `make chaos` is the long form."""
    own = folder / "chaos"
    own.mkdir(mode=0o755)
    figures = await chaos(own, seconds=0, seed=7, at_least_each=1, rate=800, has_maintenance=False)
    assert figures.faults.total() >= 18
    assert figures.least_on_their_way >= ON_THEIR_WAY_MIN
    assert figures.acknowledged > 5_000
    assert (figures.missing, figures.doubled, figures.wrong, figures.dead_letters, figures.unbalanced) == (0,) * 5
    assert max(figures.rss_mib.values()) < 400


@pytest.mark.long
@pytest.mark.timeout(1_200)
async def test_a_fault_of_each_kind_with_three_brokers_loses_and_doubles_nothing(folder: Path) -> None:
    """Two of three killed, and a disk wiped, besides all that one broker is put through."""
    own = folder / "chaos-3"
    own.mkdir(mode=0o755)
    figures = await chaos(own, seconds=0, seed=8, at_least_each=1, rate=500, brokers=3)
    assert figures.faults.total() >= 20
    assert figures.rebuilt >= 1
    assert figures.retained >= 1_000
    assert (figures.missing, figures.doubled, figures.wrong, figures.dead_letters, figures.unbalanced) == (0,) * 5
