#!/bin/sh
# Wait for the database, then bring it to the newest revision. Works from any folder; safe to run again.
#
#   deploy/migrate.sh                 alembic upgrade head
#   deploy/migrate.sh downgrade -1    any other command of alembic
#
# The address comes from ANALYTICS_DATABASE_URL or ANALYTICS_DB_*, the environment over .env in the root.
# MIGRATE_WAIT_SECONDS (60) bounds the wait. Exit: 0 done, 1 the migration failed, 2 a bad setting, 3 no database.
set -eu

cd -- "$(dirname -- "$0")/.."
if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi

"$python" - "${MIGRATE_WAIT_SECONDS:-60}" <<'PYTHON'
import asyncio
import sys
import time

from consumer.store.database import DATABASE_ERRORS, connect
from consumer.settings import DatabaseSettings
from shared.errors import WrongSetting
from shared.settings import load


async def is_there(url: str) -> bool:
    connection = await connect(url, application_name="telemetry-migrate")
    await connection.close()
    return True


try:
    url = load(DatabaseSettings).database_url
    deadline = time.monotonic() + float(sys.argv[1])
except (WrongSetting, ValueError) as error:
    print(f"migrate: {error}", file=sys.stderr)
    sys.exit(2)
while True:
    try:
        asyncio.run(is_there(url))
        break
    except DATABASE_ERRORS as error:
        if time.monotonic() > deadline:
            print(f"migrate: no database after {sys.argv[1]} s: {type(error).__name__}", file=sys.stderr)
            sys.exit(3)
    time.sleep(1)
PYTHON

if [ "$#" -eq 0 ]; then set -- upgrade head; fi
"$python" -m alembic "$@" || exit 1
