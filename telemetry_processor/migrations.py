"""The database -> its newest revision: waits until Postgres answers, then runs alembic with our own configuration."""

import asyncio
import sys
import time

from alembic.config import main as alembic

from consumer.store.database import DATABASE_ERRORS, connect
from shared.database_settings import DatabaseSettings
from shared.settings import load
from telemetry_processor import FOLDER

FAILED, NO_DATABASE = 1, 3


def migrated(arguments: list[str], *, wait_s: float) -> int:
    """Run alembic's command `arguments`; the exit code.

    Raises:
        WrongSetting: the database's address is missing or bad.
    """
    url = load(DatabaseSettings).database_url
    deadline = time.monotonic() + wait_s
    while (failure := asyncio.run(_failure_of(url))) is not None:
        if time.monotonic() > deadline:
            sys.stderr.write(f"migrate: no database after {wait_s:g} s: {type(failure).__name__}\n")
            return NO_DATABASE
        time.sleep(1)
    try:
        alembic(argv=["-c", str(FOLDER / "alembic.ini"), *arguments], prog="telemetry migrate")
    except SystemExit as ended:  # how alembic says that it refused, with a code of its own
        return FAILED if ended.code else 0
    return 0


async def _failure_of(url: str) -> BaseException | None:
    try:
        connection = await connect(url, application_name="telemetry-migrate")
    except DATABASE_ERRORS as error:
        return error
    await connection.close()
    return None
