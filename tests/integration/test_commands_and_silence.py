"""The operator's commands at a Postgres that takes long, and at one that has stopped answering at all."""

import asyncio
import random
from asyncio.subprocess import Process

import asyncpg
import pytest

from consumer.operations import erase, operation
from consumer.settings import ConsumerSettings
from consumer.store.suppressions import Subject
from support.command import started
from support.records import made
from support.stack import Stack, eventually

MINE = "73475cb40a568e8d"  # the hash of 42


async def frozen_under(stack: Stack, *commands: Process) -> None:
    """Postgres stops answering, and each command says so, in its time."""
    stack.postgres.pause()
    try:
        said = await asyncio.wait_for(asyncio.gather(*(process.communicate() for process in commands)), 75)
    finally:
        stack.postgres.resume()
    for process, (_, err) in zip(commands, said, strict=True):
        assert process.returncode == 3, err
        assert err.decode().splitlines()[-1].startswith("not reached: Postgres: no answer"), err
        assert b"Traceback" not in err


@pytest.mark.long
async def test_a_command_whose_statement_freezes_with_postgres_says_so(stack: Stack) -> None:
    """A frozen machine keeps its connections: without a bound the operator would wait for ever."""
    blocking = await asyncpg.connect(stack.database_url)
    await blocking.execute("BEGIN; LOCK TABLE user_activity IN ACCESS EXCLUSIVE MODE")
    subject = ("--user-hash", MINE)
    commands = [await started(stack, "export", *subject), await started(stack, "erase", *subject)]

    async def are_waiting() -> bool:
        sql = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return len(await stack.fetch(sql)) == len(commands)

    await eventually(are_waiting, 60, "each command at its statement", every_s=0.05)
    try:
        await frozen_under(stack, *commands)
    finally:
        blocking.terminate()


@pytest.mark.long
async def test_a_rebuild_under_which_postgres_freezes_says_so(stack: Stack) -> None:
    """It has two connections more, those of its writer, which wait as well."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(index)).value) for index in range(500)])
    stack.consumer()
    await stack.settled(500)
    rebuild = await started(stack, "rebuild", "--rate", "20")

    async def is_under_way() -> bool:
        lines = [line for line in await stack.ledger() if line["generation"] == "rebuild"]
        return bool(lines) and lines[0]["next_offset"] > 0

    await eventually(is_under_way, 60, "the rebuild under way")
    await frozen_under(stack, rebuild)


async def test_a_statement_may_take_long_while_postgres_answers(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours, in an erasure or a rebuild. A refusal is an answer as well, as where all connections are taken."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(operation, "PROBE_EVERY_S", 0.1)
    async with operation.database_alone(ConsumerSettings(), "export") as connection:
        await connection.execute("SELECT pg_sleep(2)")
        database = stack.database_url.rpartition("/")[2]
        await asyncio.to_thread(stack.postgres.query, f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        await connection.execute("SELECT pg_sleep(2)")


async def test_an_export_waits_for_its_reader(stack: Stack) -> None:
    """`export | less`: a transaction that does nothing for seconds is cut elsewhere, so that no zombie holds a lock."""
    await stack.fetch(
        """
        INSERT INTO user_activity (id, user_id, event_type, timestamp, deployment_type)
        SELECT gen_random_uuid(), $1, 'login', now(), 'cloud' FROM generate_series(1, 200)
        """,
        MINE,
    )
    connection = await asyncpg.connect(
        stack.database_url, server_settings={"idle_in_transaction_session_timeout": "200ms"}
    )
    try:
        lines = erase.export(connection, [Subject("user", MINE)])
        read = [await anext(lines)]
        await asyncio.sleep(0.6)
        read += [line async for line in lines]
    finally:
        await connection.close()
    assert len(read) == 200
