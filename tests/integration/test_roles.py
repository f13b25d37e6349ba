"""Database roles: each can do its work, and nothing that would hurt."""

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from support.command import answered, command
from support.records import made
from support.stack import TABLES, Stack

ROOT = Path(__file__).resolve().parents[2]
PASSWORDS = {"ANALYTICS_CONSUMER_PASS": "consumer'pass", "ANALYTICS_OPERATOR_PASS": "operator-pass"}


@pytest.fixture
async def roles(stack: Stack) -> AsyncIterator[None]:
    """Made by the script that is shipped; taken away afterwards, as roles belong to the whole server."""
    script = [
        stack.postgres.bin_dir / "psql",
        stack.database_url,
        "-v",
        "ON_ERROR_STOP=1",
        "-qf",
        "deploy/postgres/roles.sql",
    ]
    await asyncio.to_thread(subprocess.run, script, cwd=ROOT, env={**os.environ, **PASSWORDS}, check=True)
    yield
    stack.close()
    for role in ("analytics_consumer", "analytics_operator"):
        await stack.fetch(f"DROP OWNED BY {role}")
        await stack.fetch(f"DROP ROLE {role}")


def as_role(stack: Stack, role: str, password: str) -> str:
    return stack.database_url.replace(stack.database_url.split("//")[1].split("@")[0], f"analytics_{role}:{password}")


async def test_the_consumer_works_as_its_role_and_cannot_drop_truncate_or_alter(stack: Stack, roles: None) -> None:
    """Whoever takes over the service must not be able to take the tables with it."""
    url = as_role(stack, "consumer", "consumer'pass")
    records = [made(random.Random(index)) for index in range(100)]
    await stack.create_topic()
    await stack.send([(record.partition(), record.value) for record in records])
    await stack.send([(0, b"{}")])
    stack.consumer(ANALYTICS_DATABASE_URL=url, RETENTION_DAYS="36500")
    await stack.settled(101)
    assert await stack.row_count() == 100
    doctor = await answered(stack, "doctor", ANALYTICS_DATABASE_URL=url)
    assert "grants" not in {finding["check"] for finding in doctor["findings"]}
    connection = await asyncpg.connect(url)
    forbidden = [
        *(f"{verb} {table}" for verb in ("DROP TABLE", "TRUNCATE") for table in TABLES),
        "ALTER TABLE user_activity ADD COLUMN x int",
        "CREATE TABLE public.x ()",
        "DELETE FROM ingest.partition_offsets",
        "DROP SCHEMA ingest CASCADE",
        "UPDATE alembic_version SET version_num = 'x'",
    ]
    for statement in forbidden:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


async def test_the_operator_erases_rewinds_and_retains_as_its_role(stack: Stack, roles: None) -> None:
    """Daily duties must not need the owner's password."""
    url = as_role(stack, "operator", "operator-pass")
    mine = "73475cb40a568e8d"
    records = [made(random.Random(index), user_id=mine) for index in range(40)]
    await stack.create_topic()
    await stack.send([(record.partition(), record.value) for record in records])
    stack.consumer()
    await stack.settled(40)
    receipt = await answered(stack, "erase", "--user-hash", mine, ANALYTICS_DATABASE_URL=url)
    assert sum(receipt["rows"].values()) == 40
    await answered(stack, "rewind", "--to-start", ANALYTICS_DATABASE_URL=url)
    await stack.settled(40)
    assert await stack.row_count() == 0
    await answered(stack, "retain", "--days", "1", ANALYTICS_DATABASE_URL=url)
    await answered(stack, "status", ANALYTICS_DATABASE_URL=url)


async def test_an_erasure_that_cannot_reach_every_copy_of_the_tables_is_refused_whole(
    stack: Stack, roles: None
) -> None:
    """A receipt for half an erasure would be a lie: what a rebuild has copied would come back with its swap."""
    url = as_role(stack, "operator", "operator-pass")
    mine = "73475cb40a568e8d"
    record = made(random.Random(1), user_id=mine)
    await stack.create_topic()
    await stack.send([(record.partition(), record.value)])
    stack.consumer()
    await stack.settled(1)
    assert (await answered(stack, "rebuild", "--rate", "0"))["swapped"]  # the old tables stay, as the owner's
    code, _, err = await command(stack, "erase", "--user-hash", mine, ANALYTICS_DATABASE_URL=url)
    assert code == 1
    assert "before_rebuild" in err
    assert await stack.row_count() == 1
    assert await stack.fetch("SELECT 1 FROM ingest.suppressions") == []
    receipt = await answered(stack, "erase", "--user-hash", mine)
    assert sum(receipt["rows"].values()) == 2


async def test_a_missing_grant_is_a_finding_of_doctor_that_names_it(stack: Stack, roles: None) -> None:
    """Otherwise it shows as a consumer that retries for ever."""
    await stack.create_topic()
    await stack.fetch("REVOKE UPDATE ON feature_usage FROM analytics_consumer")
    url = as_role(stack, "consumer", "consumer'pass")
    doctor = await answered(stack, "doctor", code=1, ANALYTICS_DATABASE_URL=url)
    assert [finding["detail"] for finding in doctor["findings"] if finding["check"] == "grants"] == [
        "this role may not UPDATE public.feature_usage"
    ]
    for revoked, name in (("SELECT", "public.alembic_version"), ("USAGE", "SCHEMA ingest")):
        await stack.fetch(f"REVOKE {revoked} ON {name} FROM analytics_consumer")
        doctor = await answered(stack, "doctor", code=1, ANALYTICS_DATABASE_URL=url)
        assert f"this role has no {revoked} on {name}" in {finding["detail"] for finding in doctor["findings"]}
        await stack.fetch(f"GRANT {revoked} ON {name} TO analytics_consumer")
