"""Compiles the receiver's part in C where there is a C compiler. Without one the receiver is slower, else the same."""

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
SOURCE = ROOT / "receiver/translate/speedups.c"
LIBRARY = "receiver/translate/_speedups.so"


class SpeedupsHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  hatchling's signature
        library = ROOT / LIBRARY
        library.unlink(missing_ok=True)
        compiler = shutil.which(os.environ.get("CC") or "cc")
        if compiler is None:
            self.app.display_warning("no C compiler was found: the receiver will take more CPU")
            return
        done = subprocess.run(command(compiler, library), capture_output=True, text=True, check=False)
        if done.returncode:
            self.app.display_warning(f"{SOURCE.name} was not compiled: the receiver will take more CPU\n{done.stderr}")
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def command(compiler: str, library: Path, *more: str) -> list[str]:
    """How it is compiled. It says of which source it was made, so that it is never used with another."""
    source = f'-DSOURCE="{sha256(SOURCE.read_bytes()).hexdigest()}"'
    return [compiler, "-shared", "-fPIC", "-O2", "-std=c11", source, *more, "-o", str(library), str(SOURCE)]
