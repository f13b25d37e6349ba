"""Commands that can be trusted at night: an error is named, a wrong value refused, a deletion asked for."""

import asyncio
import os
import pty
import random
import socket
import sys
from pathlib import Path

import asyncpg
import pytest

from support.command import answered, command, commands
from support.records import made
from support.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
MINE = "73475cb40a568e8d"  # the hash of 42


async def test_an_error_of_a_reached_database_is_named_and_is_no_failure_to_connect(stack: Stack) -> None:
    """At 3 am "no answer" sends people to the network, and the migration was what was missing."""
    await stack.fetch("ALTER TABLE ingest.dead_letters RENAME TO elsewhere")
    code, _, err = await command(stack, "dead-letters", "list")
    assert (code, "not migrated" in err, "alembic upgrade head" in err, "no answer" in err) == (1, True, True, False)
    await stack.fetch("ALTER TABLE ingest.elsewhere RENAME TO dead_letters")
    name = stack.database_url.rpartition("/")[2]
    await stack.fetch(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    code, _, err = await command(stack, "erase", "--user-hash", MINE)
    assert (code, "read-only" in err, "25006" in err) == (1, True, True)
    connection = await asyncpg.connect(stack.database_url)
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    await connection.execute("BEGIN; LOCK TABLE ingest.dead_letters IN ACCESS EXCLUSIVE MODE")
    code, _, err = await command(stack, "dead-letters", "list")
    assert (code, "lock timeout" in err) == (1, True)
    await connection.close()


async def test_a_role_without_rights_is_told_so(stack: Stack) -> None:
    await stack.fetch("DROP ROLE IF EXISTS without_rights")
    await stack.fetch("CREATE ROLE without_rights LOGIN PASSWORD 'x'")
    place = stack.database_url.rpartition("@")[2]
    url = f"postgresql://without_rights:x@{place}"
    code, _, err = await command(stack, "dead-letters", "list", ANALYTICS_DATABASE_URL=url)
    assert (code, "no right" in err) == (1, True)
    found = await answered(stack, "audit", code=1, ANALYTICS_DATABASE_URL=url)
    assert "no right" in found["findings"][0]["detail"]


async def test_a_hash_is_sixteen_hex_digits_or_refused_before_anything_is_asked(stack: Stack) -> None:
    """`e` was in every dead letter, and a raw id stayed in the compacted topic for ever."""
    wrong = ["e", "ALICE@example.com", "73475CB40A568E8D", "73475cb40a568e8", "", f"{MINE} "]
    given = [(*to, hashed) for hashed in wrong for to in (("erase", "--user-hash"), ("export", "--organization-hash"))]
    answers = await commands(stack, *given, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
    for arguments, (code, out, err) in zip(given, answers, strict=True):
        assert (code, out, "16 lower-case hex digits" in err) == (2, "", True), (arguments, err)


OUT_OF_RANGE = [
    ("retain", "--days", "99999999"),
    ("retain", "--days", "0"),
    ("dead-letters", "list", "--reason", "bogus"),
    ("dead-letters", "list", "--limit", "0"),
    ("dead-letters", "redrive", "--rate", "nan"),
    ("dead-letters", "show", "1"),
    ("rebuild", "--rate", "-1"),
    ("rebuild", "--rate", "inf"),
    ("rewind", "--to-offset", "0:99999999999999999999"),
    ("rewind", "--to-offset", "0:0", "--to-offset", "0:0"),
    ("rewind", "--to-time", "yesterday"),
    ("health", "--url", "localhost"),
    ("health", "--url", "file:///etc/hostname"),
    ("gaps", "ack", "0"),
    ("gaps", "ack", "7"),
]


async def test_a_value_out_of_range_is_a_sentence_and_code_2(stack: Stack) -> None:
    """Not a traceback, and not an answer to another question."""
    await stack.create_topic(partitions=1)
    for arguments, (code, out, err) in zip(OUT_OF_RANGE, await commands(stack, *OUT_OF_RANGE), strict=True):
        assert (code, out, "Traceback" in err) == (2, "", False), (arguments, err)
        assert err, arguments


async def test_a_rewind_to_a_time_before_1970_goes_to_the_start(stack: Stack) -> None:
    """Kafka's times begin in 1970, and its client raises on an earlier one."""
    await stack.create_topic(partitions=1)
    code, out, err = await command(stack, "rewind", "--to-time", "0001-01-01", "--dry-run", "--json")
    assert (code, "Traceback" in err, '"dry_run": true' in out) == (0, False, True), err


async def test_a_taken_metrics_port_is_a_sentence_and_code_2(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = await command(stack, "run", CONSUMER_METRICS_PORT=port)
    last = err.splitlines()[-1]
    assert (code, "Traceback" in err) == (2, False)
    assert f"CONSUMER_METRICS_PORT {port}" in last


def at_a_terminal(stack: Stack, *arguments: str, says: str) -> tuple[int, str]:
    """Exit code and what a person at a terminal sees, who answers the question."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        environment = {**os.environ, **stack.environment()}
        os.execve(sys.executable, [sys.executable, "-m", "consumer", *arguments], environment)
    seen, is_answered = b"", False
    while True:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # the terminal is closed with its last process
            break
        if b"[y/N]" in seen and not is_answered:
            is_answered = True
            os.write(terminal, f"{says}\n".encode())
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_what_deletes_asks_at_a_terminal_with_counts(stack: Stack) -> None:
    """A wrong id, a wrong number of days: the dry run is shown before, and not only to those who think of it."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(4), "feature_usage", user_id=MINE).value) for _ in range(3)])
    stack.consumer()
    await stack.settled(3)
    code, seen = await asyncio.to_thread(at_a_terminal, stack, "erase", "--user-hash", MINE, says="n")
    assert (code, "1 rows of feature_usage would be deleted" in seen) == (1, True)
    assert await stack.row_count() == 1
    assert await stack.fetch("SELECT 1 FROM ingest.suppressions") == []
    code, seen = await asyncio.to_thread(at_a_terminal, stack, "rewind", "--to-start", says="n")
    assert (code, "3 records to read" in seen) == (1, True)
    code, seen = await asyncio.to_thread(at_a_terminal, stack, "retain", "--days", "1", says="n")
    assert (code, "would be deleted" in seen) == (1, True)
    code, seen = await asyncio.to_thread(at_a_terminal, stack, "rebuild", "--drop-old", says="n")
    assert (code, "no old tables" in seen) == (1, True)
    assert await stack.row_count() == 1
    code, seen = await asyncio.to_thread(at_a_terminal, stack, "erase", "--user-hash", MINE, says="y")
    assert (code, await stack.row_count()) == (0, 0)
    code, seen = await asyncio.to_thread(at_a_terminal, stack, "erase", "--user-hash", MINE, "--yes", says="n")
    assert (code, "[y/N]" in seen, "nothing is stored" in seen) == (0, False, True)


@pytest.mark.parametrize("program", ["consumer", "receiver"])
async def test_both_programs_tell_their_version_and_give_examples_lines_of_their_own(program: str) -> None:
    async def said(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", program, *arguments), cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    assert (await said("--version")).strip()[0].isdigit()
    examples = [line for line in (await said("run", "--help")).splitlines() if f"python -m {program}" in line]
    assert any(line.strip().endswith("run") or "run --workers" in line for line in examples[1:])
