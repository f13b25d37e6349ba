"""One line an event, readable or JSON, and never so many that they are a second outage."""

import json
import logging
import os
import pty
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from shared.logs import LINES_MAX, WINDOW_S, RateLimit

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import logging, sys, structlog
from shared import logs
logs.configure("INFO", process="receiver", log_format=sys.argv[1])
log = structlog.get_logger("receiver.publish.publisher")
for number in range(1000):
    log.error("batch_failed", partition=number)
    logging.getLogger("aiokafka.conn").warning("no broker at attempt %d", number)
log.info("broker_connected")
log.info("receiver_stopped")
"""


@cache
def lines_of(log_format: str) -> list[str]:
    """What a process says whose every batch fails, and which then recovers."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, log_format], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_an_error_that_repeats_is_logged_at_a_bounded_rate_and_the_rest_is_counted() -> None:
    """At 2,000 batches a second an outage of the broker would fill the disk, which is the next outage."""
    lines = [json.loads(line) for line in lines_of("json")]
    ours = [line for line in lines if line["event"] == "batch_failed"]
    assert [line["partition"] for line in ours] == list(range(LINES_MAX))
    theirs = [line for line in lines if line.get("logger") == "aiokafka.conn"]
    assert len(theirs) == LINES_MAX
    *_, recovered, stopped = lines
    assert recovered["event"] == "broker_connected"
    assert recovered["held_back"] == {"batch_failed": 1000 - LINES_MAX, "aiokafka.conn": 1000 - LINES_MAX}
    assert "held_back" not in stopped  # told once


def test_after_the_window_the_same_event_is_heard_again() -> None:
    """An outage of hours must be seen in the log of its last minute as well."""
    now = 100.0
    limit = RateLimit(clock=lambda: now)

    def passes(event: str) -> bool:
        record = logging.LogRecord("receiver", logging.ERROR, "", 0, {"event": event}, None, None)  # type: ignore[arg-type]
        return limit.filter(record)

    assert sum(passes("batch_failed") for _ in range(50)) == LINES_MAX
    assert passes("broker_lost")
    now += WINDOW_S - 1
    assert not passes("batch_failed")
    now += 1
    assert sum(passes("batch_failed") for _ in range(50)) == LINES_MAX


def test_the_setting_decides_whether_lines_are_for_machines() -> None:
    """A collector of logs reads JSON, a person at a file does not."""
    assert all(json.loads(line)["process"] == "receiver" for line in lines_of("json"))
    readable = lines_of("console")
    assert not any(line.startswith("{") for line in readable)
    assert "batch_failed" in readable[0]
    assert "\x1b" not in "".join(readable)  # no colours in a file
    assert lines_of("auto")[0].startswith("{")


@pytest.mark.parametrize(("log_format", "is_json"), [("auto", False), ("json", True)])
def test_a_terminal_gets_readable_lines_unless_told_otherwise(log_format: str, is_json: bool) -> None:
    """The first start of a newcomer is at a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, log_format], cwd=ROOT, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 65536):
            said += chunk
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(ours)
    assert process.wait(60) == 0
    assert (b'"event": "batch_failed"' in said) is is_json
    assert b"batch_failed" in said


def test_a_library_says_where_and_never_what() -> None:
    """grpc, asyncio and asyncpg repeat headers, paths and rows in their lines: a key, a token, an e-mail address."""
    script = """
import asyncio, logging, threading, warnings
from shared import logs
logs.configure("DEBUG", process="receiver", log_format="json")
class Fragile:
    def __del__(self):
        raise ValueError("canary")
def fail(*_):
    raise ValueError("canary")
try:
    fail()
except ValueError:
    logging.getLogger("grpc._cython.cygrpc").exception("metadata %s", "canary")
logging.getLogger("asyncio").error("path canary")
logging.getLogger("asyncpg.pool").error("canary", extra={"detail": "canary"})
logging.getLogger("somebody.new").critical("canary")
warnings.warn("canary")
Fragile()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
async def main():
    asyncio.get_running_loop().call_soon(fail)
    task = asyncio.create_task(asyncio.sleep(0, fail))
    await asyncio.sleep(0)
asyncio.run(main())
logging.getLogger("aiokafka.conn").warning("broker 1 at 127.0.0.1:9092 is gone")
fail()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert "canary" not in done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    foreign = [line for line in lines if line["event"] == "library_line"]
    assert [line["logger"] for line in foreign][:4] == [
        "grpc._cython.cygrpc",
        "asyncio",
        "asyncpg.pool",
        "somebody.new",
    ]
    assert (foreign[0]["error"], foreign[0]["level"], foreign[0]["at"]) == ("ValueError", "error", "<string>:13")
    assert {"py.warnings", "asyncio"} <= {line["logger"] for line in foreign[4:]}
    events = [line["event"] for line in lines]
    assert "broker 1 at 127.0.0.1:9092 is gone" in events
    assert {"thread_crashed", "error_ignored", "process_crashed"} <= set(events)
