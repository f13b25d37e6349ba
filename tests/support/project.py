"""A copy of the project, changed as a page of the docs says."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".local", "__pycache__", ".*_cache")


class Copy:
    """Follows a section to the letter: its diffs, and the commands of its block that migrates, if it has one."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **environment, "PYTHONPATH": str(folder)}
        shutil.copytree(ROOT, folder, ignore=NOT_COPIED)

    async def follow(self, section: str, *, patches: int) -> None:
        found = re.findall(r"```diff\n(.*?)```", section, re.DOTALL)
        assert len(found) == patches
        for patch in found:
            (self.folder / "step.diff").write_text(patch)
            await self.run("git", "apply", "step.diff")
        migrating = [block for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) if "autogenerate" in block]
        for line in "\n".join(migrating).strip().splitlines():
            arguments = [part.strip('"') for part in re.findall(r'"[^"]*"|\S+', line)]
            assert arguments[0] == "alembic"
            await self.python(*arguments)

    async def run(self, *command: str, code: int = 0) -> str:
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout

    async def python(self, *arguments: str, code: int = 0) -> str:
        return await self.run(sys.executable, "-m", *arguments, code=code)


def sections(page: str, *, levels: int = 2) -> dict[str, str]:
    """A page of the docs by its headings of so many levels."""
    parts = re.split(rf"^#{{1,{levels}}} (.+)$", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
