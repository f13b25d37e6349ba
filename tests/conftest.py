"""Real servers for every test that needs them: one Kafka and one Postgres a run, a database and topics a test.

A server that cannot start fails the tests; nothing is skipped.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from deploy.local.kafka import KafkaBroker
from deploy.local.postgres import PostgresServer
from support.stack import Stack

ROOT = Path(__file__).resolve().parents[1]

# Generated cases: few in each run, and others in the next one; many with --hypothesis-profile=thorough.
for name, examples in (("quick", 25), ("thorough", 1000)):
    settings.register_profile(name, max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("quick")

# Hundreds of processes of the product are started: none has to compile its modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A broker of a test lives for seconds: its start counts, and no compiler's second look would ever pay.
KafkaBroker.jvm_options = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")

# grpc (1.85) hooks into every fork of a process that uses it, and such a child once died before it could exec.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that Postgres can reach when the tests run as root and it runs as nobody."""
    path = Path(tempfile.mkdtemp(prefix="telemetry-tests-"))
    path.chmod(0o755)
    KafkaBroker.formatted_folders = path / "formatted"
    yield path
    KafkaBroker.formatted_folders = None
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def kafka(folder: Path) -> Iterator[KafkaBroker]:
    with KafkaBroker(folder / "kafka") as broker:
        yield broker


@pytest.fixture(scope="session")
def postgres(folder: Path) -> Iterator[PostgresServer]:
    with PostgresServer(folder / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres: PostgresServer) -> str:
    """A database at the newest revision, which each test's own is cloned from in a few milliseconds."""
    postgres.create_database("template_migrated")
    environment = {**os.environ, "ANALYTICS_DATABASE_URL": postgres.url("template_migrated")}
    subprocess.run([sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, env=environment, check=True)
    return "template_migrated"


@pytest.fixture
def database_url(postgres: PostgresServer, migrated_template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgres.query(f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"')
    yield postgres.url(name)
    postgres.query(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def stack(kafka: KafkaBroker, postgres: PostgresServer, database_url: str, tmp_path: Path) -> Iterator[Stack]:
    """The test's own database, topics and consumer group on the run's servers, and the processes it starts."""
    made = Stack(kafka=kafka, postgres=postgres, database_url=database_url, folder=tmp_path)
    yield made
    made.close()


@pytest.fixture
def migrate() -> Callable[[PostgresServer], Awaitable[str]]:
    """Make a migrated database on a server of the test's own; gives its URL."""

    async def migrated(server: PostgresServer) -> str:
        server.create_database("analytics")
        environment = {**os.environ, "ANALYTICS_DATABASE_URL": server.url("analytics")}
        command = [sys.executable, "-m", "alembic", "upgrade", "head"]
        await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=environment, check=True)
        return server.url("analytics")

    return migrated
