"""What doctor finds out about Postgres."""

import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg

from consumer.operations.doctor.diagnosis import Diagnosis
from consumer.pipeline.monitor import revision_number
from consumer.settings import ConsumerSettings
from consumer.store.database import (
    IDLE_IN_TRANSACTION_TIMEOUT_S,
    LOCK_TIMEOUT_S,
    STATEMENT_TIMEOUT_S,
    TransactionPooling,
    clock_skew_s,
    connect,
    error_name,
    explained,
    refuse_transaction_pooling,
    why_not_writable,
)
from consumer.store.partitions import partitions_of
from consumer.store.schema import ANALYTICS_TABLES, SCHEMA_REVISION, to_microseconds
from shared.lifecycle import stop_within

DISK_FREE_SHARE_MIN = 0.1
PARTITION_FUNCTIONS = (
    "ingest.attach_partition(regclass, timestamptz, timestamptz)",
    "ingest.drop_partition(regclass, timestamptz)",
)
CLOCK_SKEW_S_MAX = 5.0
CONSUMER_GRANTS = {
    **{f"public.{table}": ("SELECT", "INSERT", "UPDATE", "DELETE") for table in ANALYTICS_TABLES},
    "ingest.dead_letters": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "ingest.partition_offsets": ("SELECT", "INSERT", "UPDATE"),
    **{f"ingest.{table}": ("SELECT", "INSERT", "UPDATE") for table in ("suppressions", "erasures", "topic_ends")},
    **{f"ingest.{table}": ("SELECT", "INSERT") for table in ("gaps", "ledger_history")},
}


async def postgres(settings: ConsumerSettings) -> AsyncIterator[Diagnosis]:
    try:
        await refuse_transaction_pooling(settings.database_url)
    except TransactionPooling as error:
        detail, _, remedy = explained(error_name(error)).partition(": ")
        yield Diagnosis("pooler", "error", detail, remedy)
        return
    connection = await connect(settings.database_url, application_name="telemetry-doctor")
    try:
        if closed := await _closed(connection):
            for diagnosis in closed:
                yield diagnosis
            return  # the checks below would be refused, without a word of what is missing
        for check in (_revision, _grants, _partitions, _writable, _locks, _timeouts, _disk, _clock, _endpoints):
            for diagnosis in await check(connection):
                yield diagnosis
        for diagnosis in await _connections(connection, settings):
            yield diagnosis
    finally:
        await stop_within(connection.close(), 5)


async def _closed(connection: asyncpg.Connection) -> list[Diagnosis]:
    """What this role may not even look at: a schema, or the revision."""
    missing = [
        ("USAGE", f"SCHEMA {schema}")
        for schema in ("public", "ingest")
        if await connection.fetchval("SELECT has_schema_privilege(to_regnamespace($1)::oid, 'USAGE')", schema) is False
    ]
    revision = "SELECT has_table_privilege(to_regclass('public.alembic_version'), 'SELECT')"
    if not missing and await connection.fetchval(revision) is False:
        missing = [("SELECT", "public.alembic_version")]
    return [
        Diagnosis(
            "grants",
            "error",
            f"this role has no {privilege} on {name}",
            f"GRANT {privilege} ON {name} TO ...; or run deploy/postgres/roles.sql again",
        )
        for privilege, name in missing
    ]


async def _revision(connection: asyncpg.Connection) -> list[Diagnosis]:
    try:
        at = await connection.fetchval("SELECT version_num FROM public.alembic_version")
    except asyncpg.UndefinedTableError:
        at = None
    if revision_number(at) >= revision_number(SCHEMA_REVISION):
        return []
    return [
        Diagnosis("schema", "error", f"the schema is at {at}, and {SCHEMA_REVISION} is needed", "alembic upgrade head")
    ]


async def _grants(connection: asyncpg.Connection) -> list[Diagnosis]:
    found = []
    for table, privileges in CONSUMER_GRANTS.items():
        for privilege in privileges:
            may = await connection.fetchval("SELECT has_table_privilege(to_regclass($1), $2)", table, privilege)
            if may is False:  # None: there is no such table, which the revision tells
                found.append(
                    Diagnosis(
                        "grants",
                        "error",
                        f"this role may not {privilege} {table}",
                        f"GRANT {privilege} ON {table} TO ...",
                    )
                )
    return found


async def _partitions(connection: asyncpg.Connection) -> list[Diagnosis]:
    """Findings about partitions: the role may not create them, or none exists for tomorrow."""
    found = [
        Diagnosis(
            "grants",
            "error",
            f"this role may not execute {function}",
            f"GRANT EXECUTE ON FUNCTION {function} TO ...; or run deploy/postgres/roles.sql again",
        )
        for function in PARTITION_FUNCTIONS
        if await connection.fetchval("SELECT has_function_privilege(to_regprocedure($1)::oid, 'EXECUTE')", function)
        is False
    ]
    tomorrow_us = to_microseconds(datetime.now(UTC) + timedelta(days=1))
    for table in ANALYTICS_TABLES:
        partitions = await partitions_of(connection, "public", table)
        if partitions and partitions[-1].upper <= tomorrow_us:
            found.append(
                Diagnosis(
                    "partitions",
                    "warning",
                    f"{table} has no partition for tomorrow, so its rows will go to the default one",
                    "start a consumer, which makes them; if one runs, partitions_put_off in its log says why it failed",
                )
            )
    return found


async def _endpoints(connection: asyncpg.Connection) -> list[Diagnosis]:
    """Services of which the receiver's bound on endpoints replaced segments within the last day."""
    try:
        rows = await connection.fetch(
            """
            SELECT coalesce(service_name, '(no service.name)') AS service, min(endpoint) AS example
            FROM public.endpoint_usage
            WHERE timestamp > now() - interval '1 day' AND endpoint LIKE '%{other}%'
            GROUP BY 1 ORDER BY count(*) DESC LIMIT 5
            """
        )
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InsufficientPrivilegeError):
        return []  # the revision and the grants tell
    if not rows:
        return []
    services = ", ".join(f"{row['service']} (as {row['example']})" for row in rows)
    return [
        Diagnosis(
            "endpoints",
            "warning",
            f"these services send raw paths without a template, and too many different ones: {services}",
            "set http.route in them, as their framework's instrumentation does; or raise ENDPOINTS_PER_SERVICE",
        )
    ]


async def _writable(connection: asyncpg.Connection) -> list[Diagnosis]:
    if why_not := await why_not_writable(connection):
        return [Diagnosis("read_only", "error", why_not, "connect to the primary, or end what made it read-only")]
    return []


async def _locks(connection: asyncpg.Connection) -> list[Diagnosis]:
    """Who holds locks on our tables that keep others waiting, the longest transaction first."""
    rows = await connection.fetch(
        """
        SELECT blocker.pid, blocker.application_name, blocker.state, count(*) AS waiting,
            extract(epoch FROM now() - blocker.xact_start)::int AS seconds
        FROM pg_stat_activity AS waiter CROSS JOIN LATERAL unnest(pg_blocking_pids(waiter.pid)) AS blocking (pid)
        JOIN pg_stat_activity AS blocker ON blocker.pid = blocking.pid
        WHERE waiter.datname = current_database() AND blocker.xact_start IS NOT NULL
        GROUP BY 1, 2, 3, 5 ORDER BY seconds DESC LIMIT 3
        """
    )
    found = [
        Diagnosis(
            "lock",
            "error",
            f"session {row['pid']} ({row['application_name'] or 'no name'}, {row['state']}) holds a lock for "
            f"{row['seconds']} s, and {row['waiting']} wait for it",
            f"end its transaction, or: SELECT pg_terminate_backend({row['pid']})",
        )
        for row in rows
    ]
    return found or await _held(connection)


async def _held(connection: asyncpg.Connection) -> list[Diagnosis]:
    """A lock that stops every write, even if nobody waits at this moment: writers give up after some seconds."""
    rows = await connection.fetch(
        """
        SELECT DISTINCT holder.pid, holder.application_name, held.relation::regclass::text AS name,
            extract(epoch FROM now() - holder.xact_start)::int AS seconds
        FROM pg_locks AS held JOIN pg_stat_activity AS holder USING (pid)
        JOIN pg_class AS class ON class.oid = held.relation
        JOIN pg_namespace AS nsp ON nsp.oid = class.relnamespace
        WHERE held.granted
            AND held.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
            AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND (nsp.nspname = 'ingest' OR nsp.nspname = 'public' AND class.relname = ANY ($1::text[]))
            AND now() - holder.xact_start > interval '5 s'
        ORDER BY seconds DESC LIMIT 3
        """,
        list(ANALYTICS_TABLES),
    )
    return [
        Diagnosis(
            "lock",
            "warning",
            f"session {row['pid']} ({row['application_name'] or 'no name'}) has locked {row['name']} for "
            f"{row['seconds']} s",
            f"end its transaction, or: SELECT pg_terminate_backend({row['pid']})",
        )
        for row in rows
    ]


async def _timeouts(connection: asyncpg.Connection) -> list[Diagnosis]:
    """The limits that the consumer asks for, as they are in force: a pooler may drop them without a word."""
    wanted = {
        "statement_timeout": STATEMENT_TIMEOUT_S,
        "lock_timeout": LOCK_TIMEOUT_S,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT_S,
    }
    rows = await connection.fetch("SELECT name, setting::int FROM pg_settings WHERE name = ANY ($1)", list(wanted))
    return [
        Diagnosis(
            "timeouts",
            "error",
            f"{row['name']} is {row['setting']} ms instead of {wanted[row['name']]} s",
            "a connection pooler drops the setting: connect to Postgres directly, see docs/scaling.md",
        )
        for row in rows
        if row["setting"] != wanted[row["name"]] * 1000
    ]


async def _disk(connection: asyncpg.Connection) -> list[Diagnosis]:
    """Free space of the data folder, where a database on this host lets us see it."""
    try:
        folder = await connection.fetchval("SELECT current_setting('data_directory')")
        is_local = await connection.fetchval(
            "SELECT inet_server_addr() IS NULL OR host(inet_server_addr()) LIKE '127.%'"
        )
        free = shutil.disk_usage(folder) if is_local else None
    except (asyncpg.InsufficientPrivilegeError, OSError):
        return []
    if free is None or free.free > DISK_FREE_SHARE_MIN * free.total:
        return []
    return [
        Diagnosis(
            "disk",
            "warning",
            f"{free.free / 2**30:.1f} GiB of {free.total / 2**30:.1f} GiB are free where Postgres keeps its data",
            "use a larger volume, or delete rows: docs/operate.md, Postgres: disk full",
        )
    ]


async def _connections(connection: asyncpg.Connection, settings: ConsumerSettings) -> list[Diagnosis]:
    """A finding when Postgres has no room for the connections of one more consumer."""
    needed = settings.consumer_writers + 2
    allowed = int(
        await connection.fetchval(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        )
    )
    used = int(await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"))
    if used < 0.9 * allowed and used + needed <= allowed:
        return []
    return [
        Diagnosis(
            "connections",
            "warning",
            f"{used} of {allowed} connections are in use, and one more consumer needs {needed}",
            "raise max_connections, or lower CONSUMER_WRITERS; each consumer needs CONSUMER_WRITERS + 2",
        )
    ]


async def _clock(connection: asyncpg.Connection) -> list[Diagnosis]:
    skew_s = await clock_skew_s(connection)
    if abs(skew_s) < CLOCK_SKEW_S_MAX:
        return []
    return [
        Diagnosis(
            "clock",
            "warning",
            f"the database's clock differs from this host's by {skew_s:+.1f} s",
            "run NTP on both",
        )
    ]
