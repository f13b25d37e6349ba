"""Behind PgBouncer: session mode works, transaction mode is refused in words. Debian: apt-get install pgbouncer."""

import asyncio
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from test_consumer_faults import not_ready

from deploy.local.postgres import PostgresServer
from deploy.local.server import Launch, Server
from shared.probes import is_listening
from support.command import answered, command
from support.records import made
from support.stack import Stack

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


class PgBouncer(Server):
    """One pooler in front of a Postgres of ours; logs in as the role that the client names, with its password."""

    name = "pgbouncer"

    def __init__(self, folder: Path, postgres: PostgresServer, database_url: str, mode: str) -> None:
        super().__init__(folder, {"pooler": None})
        self._postgres, self._mode = postgres, mode
        self._login = urlsplit(database_url)

    @property
    def url(self) -> str:
        login = self._login.netloc.rpartition("@")[0]
        return urlunsplit(self._login._replace(netloc=f"{login}@127.0.0.1:{self.port_of('pooler')}"))

    def _prepare(self) -> Launch:
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "pgbouncer was not found. On Debian: apt-get install pgbouncer"
        (self.folder / "users").write_text(f'"{self._login.username}" "{self._login.password}"\n')
        settings = self.folder / "pgbouncer.ini"
        settings.write_text(
            f"""[databases]
* = host=127.0.0.1 port={self._postgres.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port_of("pooler")}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {self.folder / "users"}
pool_mode = {self._mode}
default_pool_size = 20
ignore_startup_parameters = extra_float_digits
"""
        )
        self.folder.chmod(0o755)
        as_nobody = ("-u", "nobody") if os.geteuid() == 0 else ()
        return Launch((program, *as_nobody, str(settings)), dict(os.environ), self.folder)

    def _answers(self) -> bool:
        return is_listening("127.0.0.1", self.port_of("pooler"))


@contextmanager
def pooled(stack: Stack, mode: str) -> Iterator[PgBouncer]:
    with PgBouncer(stack.folder / "pgbouncer", stack.postgres, stack.database_url, mode) as pooler:
        yield pooler


async def test_session_mode_stores_erases_and_audits(stack: Stack) -> None:
    """Timeouts, temporary tables and locks belong to a session, and the session is the consumer's own."""
    await stack.create_topic(partitions=2)
    generator = random.Random(6)
    with pooled(stack, "session") as pooler:
        stack.consumer(ANALYTICS_DATABASE_URL=pooler.url)
        await stack.send([(number % 2, made(generator).value) for number in range(500)])
        await stack.settled(500)
        assert await stack.row_count() == 500
        [row] = await stack.fetch("SELECT user_id FROM feature_usage WHERE user_id IS NOT NULL LIMIT 1")
        await answered(stack, "erase", "--user-hash", row["user_id"], "--yes", ANALYTICS_DATABASE_URL=pooler.url)
        assert (await answered(stack, "audit", ANALYTICS_DATABASE_URL=pooler.url))["ok"]
        [settings] = await stack.fetch(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'telemetry-consumer%'"
        )
        assert settings["count"] > 0


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_that_changes_sessions_is_refused_in_words_and_writes_nothing(stack: Stack, mode: str) -> None:
    """Each transaction could meet another session, so timeouts and locks would be lost without a word."""
    await stack.create_topic(partitions=1)
    generator = random.Random(7)
    await stack.send([(0, made(generator).value) for _ in range(20)])
    with pooled(stack, mode) as pooler:
        consumer = stack.consumer(is_awaited=False, ANALYTICS_DATABASE_URL=pooler.url)
        await not_ready(consumer, "session mode")
        code, _, said = await command(stack, "status", ANALYTICS_DATABASE_URL=pooler.url)
        assert code == 1
        assert "session mode" in said
        found = await answered(stack, "doctor", code=1, ANALYTICS_DATABASE_URL=pooler.url)
        assert "pooler" in {each["check"] for each in found["findings"]}
        assert await stack.row_count() == 0
        await asyncio.to_thread(consumer.stop)
    stack.consumer()
    await stack.settled(20)
    assert await stack.row_count() == 20
