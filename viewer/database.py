"""A question -> rows: bounded connections, a limit of time, answers kept for seconds, cancelled when nobody waits."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg

from viewer import metrics

CONNECTIONS_MAX = 4
STATEMENT_TIMEOUT_S = 10
QUEUE_TIMEOUT_S = 15.0  # for a connection, while others' questions run
CONNECT_TIMEOUT_S = 5.0
KEPT_S = 10.0
KEPT_MAX = 200  # answers; the largest is a page's table of 2,000 rows
ROWS_MAX = 2_000

Rows = Sequence[dict[str, Any]]

# asyncpg (0.32) raises the internal error when a connection of the pool was cut while it was idle.
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


class NoAnswer(Exception):  # noqa: N818  an outcome, shown in the place of the chart
    """A question that Postgres did not answer. `text` says what happened and what to do."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text


class WrongQuestion(NoAnswer):
    """The address asks for what is not: a time zone, a step."""


class Database:
    """Answers questions by at most CONNECTIONS_MAX connections. Cancelling `ask` cancels the query in Postgres."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()
        self._kept: OrderedDict[tuple[str, tuple[Any, ...]], tuple[float, Rows]] = OrderedDict()

    async def ask(self, function: str, sql: str, values: Sequence[Any] = ()) -> Rows:
        """The answer, or one of the last KEPT_S seconds.

        Raises:
            NoAnswer: with a text for the reader.
        """
        key = (sql, tuple(tuple(value) if isinstance(value, list) else value for value in values))
        if (kept := self._kept.get(key)) and self._clock() - kept[0] < KEPT_S:
            return kept[1]
        try:
            with metrics.query_seconds.labels(function).time():
                rows = await self._fetch(sql, values)
        except FAILURES as error:
            failure = failure_of(error)
            metrics.query_failures.labels(failure.reason).inc()
            raise failure from error
        self._kept[key] = (self._clock(), rows)
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return rows

    async def is_reachable(self) -> bool:
        try:
            return bool(await asyncio.wait_for(self._fetch("SELECT 1 AS one", ()), 2))
        except FAILURES:
            return False

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()

    async def _fetch(self, sql: str, values: Sequence[Any]) -> Rows:
        pool = await self._opened()
        try:
            connection = await pool.acquire(timeout=QUEUE_TIMEOUT_S)
        except (
            asyncpg.PostgresError,
            asyncpg.InternalClientError,
        ) as error:  # a refused login, no such database, too many connections
            raise ConnectionError from error
        try:
            async with connection.transaction(readonly=True):
                cursor = await connection.cursor(sql, *values)
                return [dict(row) for row in await cursor.fetch(ROWS_MAX)]
        finally:
            await asyncio.shield(pool.release(connection))

    async def _opened(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=CONNECTIONS_MAX,
                    max_inactive_connection_lifetime=60,
                    timeout=CONNECT_TIMEOUT_S,
                    command_timeout=STATEMENT_TIMEOUT_S + 5,
                    setup=_limited,
                    server_settings={"application_name": "telemetry-viewer"},
                )
            return self._pool


async def _limited(connection: Any) -> None:
    """Set the limits of a session. The pool resets a connection on release, so this runs at every acquire."""
    await connection.execute(
        f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'; SET lock_timeout = '2s'; SET timezone = 'UTC';"
        " SET idle_in_transaction_session_timeout = '15s'; SET default_transaction_read_only = on"
    )


def failure_of(error: Exception) -> NoAnswer:
    """What a reader is told; never the error's own text, which repeats data."""
    match error:
        case asyncpg.InvalidParameterValueError() | asyncpg.DataError():
            return WrongQuestion("refused", "The address asks for something that does not exist: check zone and steps.")
        case asyncpg.QueryCanceledError() | asyncpg.LockNotAvailableError():
            return NoAnswer(
                "timeout", f"No answer within {STATEMENT_TIMEOUT_S} s. Choose a shorter range, or filter by service."
            )
        case asyncpg.UndefinedFunctionError() | asyncpg.InvalidSchemaNameError() | asyncpg.UndefinedTableError():
            return NoAnswer(
                "not_migrated", "The schema analytics is missing or older than the page: run alembic upgrade head."
            )
        case asyncpg.InsufficientPrivilegeError():
            return NoAnswer(
                "no_right", "The page's role may not run this function: run deploy/postgres/reader.sql as the owner."
            )
        case asyncpg.PostgresError() if not isinstance(
            error, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError
        ):
            return NoAnswer("refused", "Postgres refused this query. Its log says why.")
    return NoAnswer(
        "unreachable", "Postgres cannot be reached, refuses the page's login, or is busy. Try again in a moment."
    )
