"""What is released can be installed: the built wheel, in an environment of its own, against the real servers."""

import asyncio
import os
import subprocess
import sys
import sysconfig
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult

from deploy.local.kafka import KafkaBroker
from deploy.local.postgres import PostgresServer
from deploy.local.server import Launch
from deploy.local.stack import ModuleServer
from support.spans import Shop, exporter
from support.stack import Stack, eventually

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    [built] = folder.glob("*.whl")
    return built


def environment_with(folder: Path, wheel: Path, *, dependencies: Path | None) -> Path:
    """A new virtual environment with the wheel. Its dependencies: those of `dependencies`, or fetched by pip."""
    python = folder / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    with_dependencies = [wheel] if dependencies is None else ["--no-deps", "--no-index", wheel]
    subprocess.run([*pip, *with_dependencies], check=True)
    [packages] = (folder / "lib").glob("python*/site-packages")
    if dependencies is not None:  # a path in a .pth file is searched, and .pth files behind it are not read
        (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return packages


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of console scripts. Beside the wheel lies another package called `shared`."""
    folder = tmp_path_factory.mktemp("environment")
    packages = environment_with(folder, wheel, dependencies=Path(sysconfig.get_path("purelib")))
    (packages / "shared").mkdir()
    (packages / "shared/__init__.py").write_text("raise ImportError('this is the shared package of somebody else')\n")
    return folder / "bin"


@pytest.fixture
def empty_stack(kafka: KafkaBroker, postgres: PostgresServer, tmp_path: Path) -> Iterator[Stack]:
    """A stack whose database has not been migrated."""
    name = f"empty_{uuid.uuid4().hex[:12]}"
    postgres.create_database(name)
    made = Stack(kafka=kafka, postgres=postgres, database_url=postgres.url(name), folder=tmp_path)
    yield made
    made.close()
    postgres.query(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class InstalledServer(ModuleServer):
    """`telemetry PART` of an environment, in a folder that holds nothing."""

    def __init__(self, scripts: Path, part: str, stack: Stack, **ports: int | None) -> None:
        self._scripts = scripts
        super().__init__(part, stack.folder / part, stack.environment(WORKERS="2"), ports=ports)
        self.start_seconds = 60

    def _prepare(self) -> Launch:
        launch = super()._prepare()
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        return Launch((str(self._scripts / "telemetry"), self.name), launch.environment, elsewhere)


def run(scripts: Path, *arguments: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **settings}
    command = [scripts / "telemetry", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_wheel_puts_one_name_of_ours_into_site_packages(wheel: Path) -> None:
    """`shared` at the top of site-packages belongs to whoever installs last."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"telemetry_processor"}
    for needed in ("alembic.ini", "alembic/env.py", "receiver/__main__.py", "viewer/templates/base.html"):
        assert f"telemetry_processor/{needed}" in names
    migrations = {f"telemetry_processor/{path.relative_to(ROOT)}" for path in (ROOT / "alembic").rglob("*.[ps][yq]*")}
    assert {name for name in migrations if "__pycache__" not in name} <= set(names)


async def test_an_installed_wheel_migrates_and_makes_rows(installed: Path, empty_stack: Stack, tmp_path: Path) -> None:
    """From nothing but the wheel: tables, a receiver with two workers, a consumer, and rows."""
    await made_rows(installed, empty_stack, tmp_path)


@pytest.mark.long
async def test_a_wheel_and_what_pip_fetches_for_it_make_rows(wheel: Path, empty_stack: Stack, tmp_path: Path) -> None:
    """A dependency that only the tests' environment has is missing for everybody who installs."""
    environment_with(tmp_path / "environment", wheel, dependencies=None)
    await made_rows(tmp_path / "environment/bin", empty_stack, tmp_path)


async def made_rows(scripts: Path, stack: Stack, folder: Path) -> None:
    done = await asyncio.to_thread(run, scripts, "migrate", folder=folder, **stack.environment())
    assert done.returncode == 0, done.stderr
    receiver = InstalledServer(scripts, "receiver", stack, PORT=None, HTTP_PORT=None, RECEIVER_METRICS_PORT=None)
    consumer = InstalledServer(scripts, "consumer", stack, CONSUMER_METRICS_PORT=None)
    try:
        for process in (receiver, consumer):
            await asyncio.to_thread(process.start)
        shop = Shop(1)
        client = exporter(receiver.port_of("PORT"), timeout_s=20)
        spans = [shop.span({"feature.name": f"feature-{number}"}) for number in range(20)]
        assert await asyncio.to_thread(client.export, spans) is SpanExportResult.SUCCESS
        client.shutdown()

        async def are_there() -> bool:
            return await stack.row_count() == len(spans)

        await eventually(are_there, 30, "twenty rows")
    finally:
        for process in (receiver, consumer):
            await asyncio.to_thread(process.stop)


def test_the_installed_command_says_what_it_is_and_what_is_wrong(installed: Path, tmp_path: Path) -> None:
    """The first minute with it: the version, the parts, and a setting that cannot be."""
    [version] = (installed.parent / "lib").glob("python*/site-packages/telemetry_processor-*.dist-info")
    assert run(installed, "--version", folder=tmp_path).stdout.strip() == version.name.split("-")[1].removesuffix(
        ".dist"
    )
    assert "migrate" in run(installed, "--help", folder=tmp_path).stdout
    assert "--workers" in run(installed, "receiver", "run", "--help", folder=tmp_path).stdout

    good = {"ANALYTICS_DATABASE_URL": "postgresql://u:p@h/d"}
    done = run(installed, "config", "check", folder=tmp_path, **good)
    assert (done.returncode, done.stdout) == (0, "receiver: ok\nconsumer: ok\nviewer: ok\n")
    (tmp_path / ".env").write_text("KAFKA_TOPIC_PARTITION=3\nID_HASH_KEY=short-and-secret\n")
    done = run(installed, "config", "check", folder=tmp_path, **good, CONSUMER_WRITERS="0")
    assert done.returncode == 2
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["consumer"].startswith("CONSUMER_WRITERS:")
    assert "ID_HASH_KEY needs 32 bytes" in lines["receiver"]
    assert lines["viewer"] == "ok"
    assert "KAFKA_TOPIC_PARTITIONS" in lines["KAFKA_TOPIC_PARTITION"]
    assert "short-and-secret" not in done.stdout + done.stderr
    assert run(installed, "config", "check", "reciever", folder=tmp_path, **good).returncode == 2


def test_migrate_tells_a_missing_database_from_a_bad_setting(installed: Path, tmp_path: Path) -> None:
    """A job that waits for a server has another remedy than one that was told nothing."""
    assert run(installed, "migrate", folder=tmp_path).returncode == 2
    away = {"ANALYTICS_DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d", "MIGRATE_WAIT_SECONDS": "0"}
    done = run(installed, "migrate", folder=tmp_path, **away)
    assert (done.returncode, done.stderr) == (3, "migrate: no database after 0 s: ConnectionRefusedError\n")
