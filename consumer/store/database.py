"""Connections to Postgres with every timeout spelled out, and the fate of each of its errors."""

from datetime import UTC, datetime
from enum import Enum
from weakref import WeakSet

import asyncpg

from consumer.store.schema import from_microseconds, to_microseconds

CONNECT_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 30
LOCK_TIMEOUT_S = 5
IDLE_IN_TRANSACTION_TIMEOUT_S = 8  # a zombie frozen inside its transaction holds the ledger's lock no longer
CLOCK_SKEW_S_MAX = 60.0
_2000_US = 946_684_800_000_000  # Postgres counts from there


async def connect(
    url: str, *, application_name: str, statement_timeout_s: int = STATEMENT_TIMEOUT_S
) -> asyncpg.Connection:
    """One connection whose every wait has a limit, on both sides.

    A plain connection and not a pool: asyncpg's pool runs RESET ALL at each release, and writers keep a
    temporary table each. A timestamptz is given as datetime or as microseconds since 1970 UTC, which is the faster
    by far; it comes back as datetime.

    Raises:
        asyncpg.PostgresError, OSError, TimeoutError: see `fate_of`.
    """
    connection = await asyncpg.connect(
        url,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=statement_timeout_s + 5 if statement_timeout_s else None,
        server_settings={"application_name": application_name, "timezone": "UTC"},
    )
    _made.add(connection)
    try:
        await connection.execute(_SETTINGS.format(statement_timeout_s=statement_timeout_s))
        await connection.set_type_codec(
            "timestamptz", schema="pg_catalog", encoder=_time_encoded, decoder=_time_decoded, format="tuple"
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


# Not as startup parameters: a pooler refuses those that it does not know.
_SETTINGS = f"""
    SET statement_timeout = '{{statement_timeout_s}}s';
    SET lock_timeout = '{LOCK_TIMEOUT_S}s';
    SET idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_TIMEOUT_S}s';
    SET tcp_keepalives_idle = 5;
    SET tcp_keepalives_interval = 2;
    SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 10000;
    SET search_path = public;
"""


def counting(delete: str) -> str:
    """The DELETE as a query for the number of its rows."""
    return f"WITH gone AS ({delete} RETURNING 1) SELECT count(*) FROM gone"  # noqa: S608  our own statement


async def refuse_transaction_pooling(url: str) -> None:
    """A pooler that gives every transaction another session loses timeouts, temporary tables and locks.

    Told by two connections that come to one session, or by one connection that comes to several.

    Raises:
        TransactionPooling
        asyncpg.PostgresError, OSError, TimeoutError: see `fate_of`.
    """
    made: list[asyncpg.Connection] = []
    try:
        for _ in range(2):
            made.append(await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S, statement_cache_size=0))  # noqa: PERF401  what was made is closed even if the next fails
        seen = [{await each.fetchval("SELECT pg_backend_pid()") for _ in range(3)} for each in made]
    finally:
        for connection in made:
            connection.terminate()
    if seen[0] & seen[1] or any(len(pids) > 1 for pids in seen):
        raise TransactionPooling("a session for each transaction")


class TransactionPooling(asyncpg.InterfaceError):
    """A pooler in transaction or statement mode stands between this process and Postgres."""


def _time_encoded(time: datetime | int) -> tuple[int]:
    return ((time if isinstance(time, int) else to_microseconds(time)) - _2000_US,)


def _time_decoded(encoded: tuple[int]) -> datetime:
    return from_microseconds(encoded[0] + _2000_US)


_made: WeakSet[asyncpg.Connection] = WeakSet()


def open_connections() -> int:
    """How many this process has open now."""
    return sum(not connection.is_closed() for connection in _made)


# What asyncpg raises when the database or the way to it fails; InternalClientError when a connection was cut
# at a moment that its own state machine did not foresee (0.32).
DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


async def why_not_writable(connection: asyncpg.Connection) -> str:
    """Why the server's settings forbid writing, in words; "" when they do not."""
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        return f"a standby: {explained('25006')}"
    if await connection.fetchval("SELECT current_setting('transaction_read_only')::bool"):
        return explained("25006")
    return ""


async def clock_skew_s(connection: asyncpg.Connection) -> float:
    """Seconds by which the server's clock is ahead of this host's, to within the time of a round trip."""
    before = datetime.now(UTC)
    theirs: datetime = await connection.fetchval("SELECT clock_timestamp()")
    after = datetime.now(UTC)
    if before <= theirs <= after:
        return 0.0
    return (theirs - after).total_seconds() if theirs > after else (theirs - before).total_seconds()


async def check_clock(connection: asyncpg.Connection) -> None:
    """Call before rows are deleted or left out for their age. When the clocks differ, neither happens.

    Raises:
        ClocksDiffer
    """
    if abs(await clock_skew_s(connection)) > CLOCK_SKEW_S_MAX:
        raise ClocksDiffer("clocks differ")


class ClocksDiffer(asyncpg.InterfaceError):
    """This host and Postgres differ by more than CLOCK_SKEW_S_MAX about what time it is."""


class Fate(Enum):
    """What an error of the database means for the batch that met it."""

    TRANSIENT = "retry the whole batch"
    POISON = "one record of the batch never fits"
    BUG = "stop and alert"


# Classes 08 connection, 40 serialization, deadlock, a commit of unknown end, 53 resources, 57P0x shutdown, 58
# system, 28 authorization; 55P03 and 57014 timeouts; 25006 read-only after a failover; 3D000, 42P01, 42703,
# 42883, 42P10, 42501 not migrated or not granted yet; 0A000 a cached plan that a swap of tables has outdated; 25P03 the
# transaction was idle for too long.
_TRANSIENT = ("08", "40", "53", "57P", "58", "28", "55P03", "57014", "25006", "25P03", "25P04", "3D000")
_TRANSIENT_TOO = ("42P01", "42703", "42883", "42P10", "42501", "0A000", "3F000")
# Class 22 bad values; 23502 and 23514 constraints; 23505 another unique index; 54001 too complex, 54000 too large.
_POISON = ("22", "23502", "23514", "23505", "54001", "54000")
# What asyncpg's encoders raise on a value that does not fit its column.
ENCODER_ERRORS = (asyncpg.DataError, UnicodeEncodeError, OverflowError, TypeError, ValueError)


# What an operator must know of an error, by SQLSTATE: its name, and what to do.
_EXPLAINED = {
    "42P01": ("not migrated, a table is missing", "run `alembic upgrade head`"),
    "42703": ("not migrated, a column is missing", "run `alembic upgrade head`"),
    "42883": ("not migrated, a function is missing", "run `alembic upgrade head`"),
    "42P10": ("not migrated, a key is another one", "run `alembic upgrade head`"),
    "3F000": ("not migrated, a schema is missing", "run `alembic upgrade head`"),
    "42501": ("no right", "`consumer doctor` names the missing grant; deploy/postgres/roles.sql gives them all"),
    "25006": ("read-only", "the server is a standby or set to read-only: connect to the primary, or end read-only"),
    "55P03": ("lock timeout", "another session holds a lock: `consumer doctor` names it. End it, then try again"),
    "40P01": ("deadlock", "try again"),
    "40001": ("serialization failure", "try again"),
    "53100": ("disk full", "make room on the server's volume; docs/operate.md says how"),
    "53200": ("out of memory", "give the server more memory, or lower CONSUMER_BATCH_ROWS"),
    "53300": ("too many connections", "raise max_connections, or stop some clients"),
    "57014": ("statement timeout", "the server is slow or busy: `consumer doctor` names who holds locks"),
    "25P03": ("transaction idle for too long", "try again"),
    "28P01": ("wrong password", "check ANALYTICS_DATABASE_URL"),
    "28000": ("login refused", "check the user, pg_hba.conf and sslmode"),
    "3D000": ("no such database", "check the name in ANALYTICS_DATABASE_URL, or create it"),
    "57P03": ("starting up or shutting down", "wait"),
    "57P01": ("shut down", "start the server"),
    "ClocksDiffer": (
        "the clocks of this host and of Postgres are more than a minute apart",
        "run NTP on both; until then no row expires and no erasure is carried out",
    ),
    "TransactionPooling": (
        "ANALYTICS_DATABASE_URL leads to a connection pooler in transaction mode",
        "use its session mode, or connect to Postgres itself: docs/scaling.md, Connections",
    ),
    "08P01": ("protocol violation", "is a connection pooler between? docs/scaling.md says which modes work"),
}
_OUT_OF_REACH = ("08", "28", "3D000", "57P", "53300")


def error_name(error: BaseException) -> str:
    """The SQLSTATE, else the type; never the text, which repeats the data."""
    return getattr(error, "sqlstate", None) or type(error).__name__


def explained(name: str) -> str:
    """A name of `error_name` in words, with what to do."""
    if name not in _EXPLAINED:
        return name
    meaning, remedy = _EXPLAINED[name]
    return f"{meaning} ({name if name.isalpha() else f'SQLSTATE {name}'}): {remedy}"


def is_out_of_reach(error: BaseException) -> bool:
    """Whether the connection failed. False when the server was reached and refused a statement."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_OUT_OF_REACH)
    return not isinstance(error, (*ENCODER_ERRORS, ClocksDiffer, TransactionPooling))


def fate_of(error: BaseException) -> Fate:
    """Decide by SQLSTATE, else by type. Never by text: texts repeat the data."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        if state.startswith(_TRANSIENT + _TRANSIENT_TOO):
            return Fate.TRANSIENT
        return Fate.POISON if state.startswith(_POISON) else Fate.BUG
    if isinstance(error, ENCODER_ERRORS):  # DataError is an InterfaceError, so before it
        return Fate.POISON
    if isinstance(error, DATABASE_ERRORS):
        return Fate.TRANSIENT
    return Fate.BUG
