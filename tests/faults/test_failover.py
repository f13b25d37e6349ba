"""A failover to a standby that lags: commits vanish, and what they held comes back from the topic."""

import asyncio
import json
import os
import pwd
import random
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from test_consumer_faults import FATES, readiness

from deploy.local.postgres import USER, PostgresServer
from support.proxy import Proxy
from support.records import Made, made
from support.stack import TABLES, Stack, eventually

Migrate = Callable[[PostgresServer], Awaitable[str]]


@pytest.fixture
def own_postgres(folder: Path) -> Iterator[PostgresServer]:
    with PostgresServer(folder / f"primary-{time.monotonic_ns()}") as server:
        yield server


def standby_of(primary: PostgresServer, folder: Path) -> PostgresServer:
    """A streaming replica, started."""
    folder.mkdir(mode=0o755)
    standby = PostgresServer(folder)
    password = (primary.folder / "password").read_text()
    command = [primary.bin_dir / "pg_basebackup", "-h", "127.0.0.1", "-p", str(primary.port), "-U", USER]
    command += ["-D", folder / "data", "-R", "--checkpoint=fast", "--no-sync"]
    subprocess.run(command, env={**os.environ, "PGPASSWORD": password}, check=True, timeout=60)
    shutil.copy(primary.folder / "password", folder / "password")
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in [folder / "password", folder / "data", *(folder / "data").rglob("*")]:
            os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    standby.start()
    return standby


async def test_commits_that_vanish_in_a_failover_come_back_from_the_topic(
    stack: Stack, own_postgres: PostgresServer, migrate: Migrate, folder: Path
) -> None:
    """The ledger went with the rows, so the consumer begins where the standby knows it to be."""
    url = await migrate(own_postgres)
    standby = await asyncio.to_thread(standby_of, own_postgres, folder / f"standby-{time.monotonic_ns()}")
    stack.postgres, stack.database_url = own_postgres, url
    generator = random.Random(12)
    records = [made(generator) for _ in range(900)]

    async def send(part: list[Made]) -> None:
        await stack.send([(each.partition(), each.value) for each in part])

    try:
        await stack.create_topic()
        async with Proxy(url).running() as proxy:
            consumer = await asyncio.to_thread(stack.consumer, ANALYTICS_DATABASE_URL=proxy.url)
            await send(records[:300])
            await stack.settled(300)
            await asyncio.sleep(1)  # the standby has these
            await asyncio.to_thread(standby.query, "ALTER SYSTEM SET primary_conninfo = ''")
            await asyncio.to_thread(standby.query, "SELECT pg_reload_conf()")

            async def is_cut_off() -> bool:
                return not await asyncio.to_thread(standby.query, "SELECT pid FROM pg_stat_wal_receiver")

            await eventually(is_cut_off, 20, "the standby lags from here on")
            await send(records[300:600])
            await stack.settled(600)
            await asyncio.to_thread(own_postgres.kill)
            stack.database_url = standby.url("analytics")
            proxy.lead_to(stack.database_url)

            async def tells_of_a_standby() -> bool:
                status, text = await asyncio.to_thread(readiness, consumer)
                return status == 503 and "standby" in json.dumps(json.loads(text)["why_not"])

            await send(records[600:700])
            await eventually(tells_of_a_standby, 40, "a standby told by readiness")
            assert await stack.row_count() == 300  # the others' commits are gone
            await stack.fetch("SELECT pg_promote()")
            await send(records[700:])
            await stack.settled(900, 90)
            rows = {table: await stack.rows(table) for table in TABLES}
            assert [each for each in records if not each.matches(rows[each.table][each.id])] == []
            assert sum(map(len, rows.values())) == 900
            for line in await stack.ledger():
                assert line["next_offset"] - line["first_offset"] == sum(line[fate] for fate in FATES)
                assert (line["duplicates"], line["epoch"]) == (0, 0)
            assert await stack.fetch("SELECT 1 FROM ingest.gaps") == []
            assert consumer.is_running
    finally:
        stack.close()
        standby.kill()
