"""A process between us and one server: the server ends when we end, even on kill -9, and its log is bounded.

Run by its path as `python -I watch.py JSON`, so it imports nothing of this project. We hold the other end of
its standard input; end of file there means that we are gone or want the server stopped. The death of this
process in turn stops the server (Linux only).
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

LOG_BYTES_MAX = 8 << 20  # then the log moves to .1, so a server's log takes 16 MiB at most

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def signal_tree(pid: int, number: int) -> None:
    """Send a signal to a process and all that it started; a process that is gone is no error."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        if number in (signal.SIGKILL, signal.SIGSTOP):
            root.suspend()  # from here on it starts no more children, so the list below is whole
        for process in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def main() -> int:
    options = json.loads(sys.argv[1])
    # Looked up here: between fork and exec is no place to load libraries.
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    if prctl:  # what a killed postmaster leaves behind becomes our child, and sweep() finds it
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server = subprocess.Popen(
        options["command"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=options["inherited_fds"],
        user=options["user"],
        group=options["group"],
        extra_groups=[] if options["user"] is not None else None,
        start_new_session=True,
        # Bound to this thread, which lives as long as the server. After the change of user, which clears it.
        preexec_fn=prctl and (lambda: prctl(_PR_SET_PDEATHSIG, options["stop_signal"])),  # noqa: PLW1509
    )
    assert server.stdout is not None
    pump = threading.Thread(target=_copy, args=(server.stdout, Path(options["log"])), daemon=True)
    pump.start()
    stop = (server, options["stop_signal"], options["stop_seconds"])
    threading.Thread(target=_stop_at_end_of_file, args=stop, daemon=True).start()
    code = server.wait()
    _sweep()
    pump.join(1)
    return code if code >= 0 else 128 - code


def _copy(source: BinaryIO, log: Path) -> None:
    file = log.open("ab", buffering=0)
    while chunk := os.read(source.fileno(), 1 << 16):
        if file.tell() + len(chunk) > LOG_BYTES_MAX:
            file.close()
            log.replace(log.with_name(log.name + ".1"))
            file = log.open("ab", buffering=0)
        file.write(chunk)


def _stop_at_end_of_file(server: subprocess.Popen[bytes], stop_signal: int, stop_seconds: float) -> None:
    os.read(0, 1)  # not sys.stdin, whose lock, held by this thread, aborts the interpreter's exit
    server.send_signal(stop_signal)
    time.sleep(stop_seconds)  # this thread ends with the process, as soon as the server has ended
    signal_tree(server.pid, signal.SIGKILL)


def _sweep() -> None:
    left = psutil.Process().children(recursive=True)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


if __name__ == "__main__":
    sys.exit(main())
