"""Connections to Postgres with every timeout spelled out, and the fate of each of its errors."""

from datetime import datetime
from enum import Enum
from weakref import WeakSet

import asyncpg

from consumer.store.schema import at, us_of

CONNECT_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 30
LOCK_TIMEOUT_S = 5
IDLE_IN_TRANSACTION_TIMEOUT_S = 8  # a zombie frozen inside its transaction holds the ledger's lock no longer
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
        server_settings={
            "application_name": application_name,
            "statement_timeout": f"{statement_timeout_s}s",
            "lock_timeout": f"{LOCK_TIMEOUT_S}s",
            "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_S}s",
            "tcp_keepalives_idle": "5",
            "tcp_keepalives_interval": "2",
            "tcp_keepalives_count": "3",
            "tcp_user_timeout": "10000",
            "timezone": "UTC",
            "search_path": "public",
        },
    )
    _made.add(connection)
    try:
        await connection.set_type_codec(
            "timestamptz", schema="pg_catalog", encoder=_time_encoded, decoder=_time_decoded, format="tuple"
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


def _time_encoded(time: datetime | int) -> tuple[int]:
    return ((time if isinstance(time, int) else us_of(time)) - _2000_US,)


def _time_decoded(encoded: tuple[int]) -> datetime:
    return at(encoded[0] + _2000_US)


_made: WeakSet[asyncpg.Connection] = WeakSet()


def open_connections() -> int:
    """How many this process has open now."""
    return sum(not connection.is_closed() for connection in _made)


# What asyncpg raises when the database or the way to it fails; InternalClientError when a connection was cut
# at a moment that its own state machine did not foresee (0.32).
DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


class Fate(Enum):
    """What an error of the database means for the batch that met it."""

    TRANSIENT = "retry the whole batch"
    POISON = "one record of the batch never fits"
    BUG = "stop and alert"


# Classes 08 connection, 40 serialization, deadlock, a commit of unknown end, 53 resources, 57P0x shutdown, 58
# system, 28 authorization; 55P03 and 57014 timeouts; 25006 read-only after a failover; 3D000, 42P01, 42703,
# 42501 not migrated or not granted yet; 0A000 a cached plan that a swap of tables has outdated; 25P03 the
# transaction was idle for too long.
_TRANSIENT = ("08", "40", "53", "57P", "58", "28", "55P03", "57014", "25006", "25P03", "25P04", "3D000")
_TRANSIENT_TOO = ("42P01", "42703", "42501", "0A000", "3F000")
# Class 22 bad values; 23502 and 23514 constraints; 23505 another unique index; 54001 too complex, 54000 too large.
_POISON = ("22", "23502", "23514", "23505", "54001", "54000")
# What asyncpg's encoders raise on a value that does not fit its column.
ENCODER_ERRORS = (asyncpg.DataError, UnicodeEncodeError, OverflowError, TypeError, ValueError)


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
