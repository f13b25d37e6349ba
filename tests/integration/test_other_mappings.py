"""The engine reads the mapping as data: with other columns, keys, limits and tables it says what the reference says."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.engine import is_native_built

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "other_mapping.py"


async def told(seed: int, requests: int) -> dict[str, Any]:
    """What the script counts; it takes a process of its own, as the mapping is read when modules are imported."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), str(seed), str(requests)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode() + out.decode()
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.skipif(not is_native_built(), reason="without the native engine there are no two engines to compare")
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
async def test_another_mapping_means_the_same_to_both_engines(seed: int) -> None:
    found = await told(seed, 15)
    assert (found["differ"], found["internal"]) == (0, 0)
    assert found["records"] > found["spans"] / 4
    assert sum(found["declined"].values()) < found["spans"] * 0.85  # the engine answers for the others by itself


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.skipif(not is_native_built(), reason="without the native engine there are no two engines to compare")
async def test_a_hundred_other_mappings_mean_the_same_to_both_engines() -> None:
    found = [await told(seed, 60) for seed in range(100, 200)]
    assert {(each["differ"], each["internal"]) for each in found} == {(0, 0)}
