"""What speedups.c does to memory, whatever it is given: nothing that it should not, and no more of it with time."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from psutil import Process

from hatch_build import ROOT, command
from receiver.translate import speedups
from receiver.translate.fast_path import FastPath
from receiver.translate.pieces import Piece, Place
from support.encoding import LOGIN, PLAIN, SERVER, field, key_value, request_bytes, span_bytes
from support.mutation import Mutator
from support.repeated import HTTP, RESOURCE, STRANGE, damaged

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: there are no speedups here")


def test_what_is_forgotten_is_given_back() -> None:
    """A leak of an attribute a span would fill the memory within the hour."""
    memory, process = speedups.new(span_bytes_max=1_000, marks=[b"a.key"]), Process()
    assert memory

    def tell(attributes: int) -> int:
        for number in range(attributes):
            memory.know(key_value("k", f"{number:0200}"), Piece(Place("event_metadata"), "x" * 200))
        return process.memory_info().rss

    full = tell(2 * speedups._PIECES)
    assert tell(2 * speedups._PIECES) - full < 8 * 1024 * 1024


def test_no_bytes_make_it_read_or_write_elsewhere(tmp_path: Path) -> None:
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, which end the process at the first such access."""
    library = tmp_path / "speedups.so"
    sanitize = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    subprocess.run(command("cc", library, *sanitize), check=True)
    runtime = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONMALLOC": "malloc",  # so that a read beyond a bytes object shows
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    script = [sys.executable, __file__, str(library)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr


def _repeat_under(library: str) -> None:
    speedups.LIBRARY = Path(library)
    speedups._library = speedups._loaded()
    for name in ("_PIECES", "_KEYS", "_PATHS", "_PLANS"):
        setattr(speedups, name, 64)
    speedups._OUT_BYTES = 1_500
    fast = FastPath(PLAIN)
    plain = fast.resource(RESOURCE)
    assert plain is not None
    assert fast.speedups
    generator = random.Random(4)
    strange = [span_bytes(HTTP, kind=SERVER, more=field(9, attribute)) for attribute in STRANGE]
    paths = [span_bytes({**HTTP, "url.path": "/1" * length}, kind=SERVER) for length in range(1, 90, 3)]
    wide = [span_bytes([*LOGIN.items(), *[("k", "v")] * more], kind=SERVER) for more in range(59, 65)]
    for raw in (*strange, *paths, *wide, *damaged(5, 2_000)):
        for _ in range(3):
            with contextlib.suppress(DecodeError):
                fast.records_of([raw] * generator.randint(1, 8), plain)
        fast.marked([raw])
    full = request_bytes(*[(RESOURCE, [span_bytes(HTTP)])] * 3, (b"", []))
    for body in (full, full + full, *(Mutator(generator).request(full)[: 2 * len(full)] for _ in range(3_000))):
        speedups.cut(body, spans_max=3, pieces_max=generator.randint(1, 20))
    print("clean")  # noqa: T201  for the test above


if __name__ == "__main__":
    _repeat_under(sys.argv[1])
