"""A package of ours is built everywhere, and with its C part where that can be compiled."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("compiler", "is_compiled"),
    [
        pytest.param("cc", True, marks=pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")),
        ("no-such-compiler", False),
        ("false", False),
    ],
)
def test_a_wheel_has_the_c_part_where_there_is_a_compiler(compiler: str, *, is_compiled: bool, tmp_path: Path) -> None:
    """Whoever has none, or a broken one, gets the same receiver, and a word on why it is slower."""
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for package in ("receiver", "consumer", "shared"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    environment = {**os.environ, "CC": compiler}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    [wheel] = (tmp_path / "dist").iterdir()
    assert ("receiver/translate/_speedups.so" in ZipFile(wheel).namelist()) == is_compiled
    assert wheel.name.endswith("py3-none-any.whl") != is_compiled
    assert ("will take more CPU" in done.stderr + done.stdout) != is_compiled
