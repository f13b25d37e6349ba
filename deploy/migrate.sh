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
exec "$python" -m telemetry_processor migrate "$@"
