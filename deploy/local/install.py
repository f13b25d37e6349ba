"""A lock file -> the packages of it in this environment, with a count as they come. Standard library only."""

import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path

EVERY_S = 2.0
PIP = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off")


def install(lock: Path) -> int:
    """Install what `lock` pins; pip's exit code. Its errors are shown in full."""
    total = len(re.findall(r"^[a-z0-9][a-z0-9._-]*==", lock.read_text(), re.MULTILINE))
    command = [*PIP, "--require-hashes", "-r", str(lock)]
    found: set[str] = set()
    is_done = threading.Event()
    ticker = threading.Thread(target=_tell, args=(is_done, lambda: _line(found, total)), daemon=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        ticker.start()
        assert pip.stdout is not None
        for line in pip.stdout:
            if line.startswith(("Collecting ", "Requirement already satisfied: ")):
                found.add(re.sub(r".*?(?:Collecting|satisfied:) ([\w.-]+).*", r"\1", line.strip()))
            elif line.startswith(("ERROR", "WARNING", "  ERROR")) or "error:" in line:
                sys.stdout.write("\n" + line)
    is_done.set()
    ticker.join()
    return pip.returncode


def _line(found: set[str], total: int) -> str:
    installed = sum(1 for _ in Path(sysconfig.get_path("purelib")).glob("*.dist-info"))
    return f"  fetched {min(len(found), total)} of {total} packages, installed {min(installed, total)}"


def _tell(is_done: threading.Event, line: Callable[[], str]) -> None:
    """On a terminal one line that changes, elsewhere a line whenever it has changed."""
    last = ""
    while True:
        is_last = is_done.wait(EVERY_S)
        if (now := line()) != last:
            sys.stdout.write(f"\r{now}" if sys.stdout.isatty() else f"{now}\n")
            sys.stdout.flush()
            last = now
        if is_last:
            sys.stdout.write("\n" if sys.stdout.isatty() else "")
            return


if __name__ == "__main__":
    sys.exit(install(Path(sys.argv[1])))
