"""The recipes of docs/add-a-table.md and docs/contributing.md fit the code of today; other tests run what they make."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from consumer.pipeline.monitor import revision_number
from consumer.store.schema import SCHEMA_REVISION
from support.project import sections

ROOT = Path(__file__).resolve().parents[2]
TABLES = sections("add-a-table.md")
CHANGES = sections("contributing.md", levels=3)
RECIPES = {
    "an attribute name": [TABLES["Add an attribute name"]],
    "a column": [TABLES["Add a column"]],
    "a table and a rule": [TABLES["Add an analytics table"], TABLES["Add a rule"]],
    "a new version": [TABLES["Add a column"], TABLES["A new version of an event"]],
    "a reject reason": [CHANGES["A reject reason"]],
    "a metric": [CHANGES["A metric"]],
    "a command": [CHANGES["A command"]],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_patches_of_a_recipe_apply(recipe: str, tmp_path: Path) -> None:
    """A newcomer copies the patch; a line that has moved stops him at the first step."""
    for patch in re.findall(r"```diff\n(.*?)```", "".join(RECIPES[recipe]), re.DOTALL):
        for name in re.findall(r"^--- a/(\S+)$", patch, re.MULTILINE):
            if not (tmp_path / name).exists():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tmp_path / name)
        done = subprocess.run(
            ["git", "apply", "-"], cwd=tmp_path, input=patch, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("title", ["Add a column", "Add an analytics table"])
def test_the_revision_of_a_recipe_comes_after_the_newest_one(title: str) -> None:
    """Revisions are compared by number: with an older one, a consumer that starts too early does not wait."""
    [needed] = re.findall(r'^\+SCHEMA_REVISION = "(\w+)"', TABLES[title], re.MULTILINE)
    [made] = re.findall(r"--rev-id (\w+)", TABLES[title])
    assert made == needed
    assert revision_number(made) == revision_number(SCHEMA_REVISION) + 1
