"""Put a rebuild's shadow in the live tables' place, in one short transaction."""

import asyncio
import time

import asyncpg

from consumer.operations.operation import Operation, Refused, say
from consumer.rebuild.kept import refuse_what_would_be_lost, settings_of, statistics_of, triggers_of, views_of
from consumer.rebuild.shadow import GENERATION, OLD, SHADOW, reached
from consumer.store import rollups, suppressions
from consumer.store.ledger import LIVE
from consumer.store.schema import ANALYTICS_TABLES, LINE_COLUMNS

SWAP_LOCK_TIMEOUT_S = 2.0
SWAP_WAIT_S = 3.0
CATCH_UP_S = 30.0
SWAP_ATTEMPTS = 10


async def swap(operation: Operation) -> float:
    """Put the shadow in the live tables' place; how long writers stood still, in milliseconds.

    A failed attempt blocks writers for the lock timeout or SWAP_WAIT_S at most. A shadow that is behind blocks nobody.
    """
    for attempt in range(1, SWAP_ATTEMPTS + 1):
        try:
            return await _try_swap(operation)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, _NotReached) as error:
            say(f"swap, attempt {attempt} of {SWAP_ATTEMPTS}: {type(error).__name__.strip('_')}")
            await asyncio.sleep(attempt)
    raise Refused("the tables were too busy to be swapped; nothing was changed. --resume tries again")


class _NotReached(Exception):  # noqa: N818  an attempt's outcome
    pass


async def _try_swap(operation: Operation) -> float:
    database = operation.database
    shadows = [f"ONLY {SHADOW}.{name}" for name in ANALYTICS_TABLES]  # ONLY: everybody comes by way of the parents
    lives = [f"ONLY public.{name}" for name in ANALYTICS_TABLES]
    async with database.transaction():
        await database.execute(f"SET LOCAL lock_timeout = '{int(SWAP_LOCK_TIMEOUT_S * 1000)}ms'")
        # Readers and writers go on, and nobody alters the tables any more: what they have beside rows is known now.
        await database.execute(f"LOCK TABLE {', '.join(lives)} IN SHARE UPDATE EXCLUSIVE MODE")
        await refuse_what_would_be_lost(operation)
        statements = [*await settings_of(operation), *await triggers_of(operation), *await views_of(operation)]
        statements += await statistics_of(operation, OLD)
        await _delete_erased(operation)
        await database.execute(f"CREATE SCHEMA {OLD}")
        if not await reached(operation, None, CATCH_UP_S):  # nobody waits for this
            raise _NotReached
        started_at = time.monotonic()
        live = await _lock_lines(operation, LIVE)  # writers wait from here on
        if not await reached(operation, live, SWAP_WAIT_S):
            raise _NotReached
        await _lock_lines(operation, GENERATION)
        await suppressions.lock(database)
        await database.execute(f"LOCK TABLE {', '.join(lives + shadows)} IN ACCESS EXCLUSIVE MODE")
        await _delete_erased(operation)  # once more: those erased in between
        for name in ANALYTICS_TABLES:
            await database.execute(f"ALTER TABLE public.{name} SET SCHEMA {OLD}")
            await database.execute(f"ALTER TABLE {SHADOW}.{name} SET SCHEMA public")
        for statement in statements:
            await database.execute(statement)
        await rollups.mark_days(database, None)
        await _promote_lines(operation)
        await database.execute(f"DROP SCHEMA {SHADOW}")
    return (time.monotonic() - started_at) * 1000


async def _delete_erased(operation: Operation) -> None:
    """Rows of people who were erased since the shadow was filled, by a role that could not reach it."""
    if not await operation.database.fetchval("SELECT EXISTS (SELECT 1 FROM ingest.suppressions)"):
        return
    for name in ANALYTICS_TABLES:
        await operation.database.execute(
            f"""
            DELETE FROM {SHADOW}.{name} AS row USING ingest.suppressions AS erased
            WHERE row.timestamp <= erased.erased_at
                AND (erased.kind, erased.hash) IN (('user', row.user_id), ('organization', row.organization_id))
            """  # noqa: S608  our own names
        )


async def _lock_lines(operation: Operation, generation: str) -> dict[int, int]:
    rows = await operation.database.fetch(
        """
        SELECT partition, next_offset FROM ingest.partition_offsets
        WHERE generation = $1 AND topic = $2 ORDER BY partition FOR UPDATE
        """,
        generation,
        operation.topic,
    )
    return {row["partition"]: row["next_offset"] for row in rows}


async def _promote_lines(operation: Operation) -> None:
    """The live lines end, and the shadow's go on as the live ones, an epoch later: so live consumers load anew."""
    columns = ", ".join(LINE_COLUMNS)
    await operation.database.execute(
        f"""
        WITH ended AS (
            DELETE FROM ingest.partition_offsets WHERE generation = $1 AND topic = $2 RETURNING *
        )
        INSERT INTO ingest.ledger_history ({columns}, reason) SELECT {columns}, 'replaced by a rebuild' FROM ended
        """,  # noqa: S608  our own names
        LIVE,
        operation.topic,
    )
    await operation.database.execute(
        """
        UPDATE ingest.partition_offsets AS line SET generation = $1, epoch = 1 + coalesce((
            SELECT max(epoch) FROM ingest.ledger_history AS past
            WHERE past.topic = line.topic AND past.partition = line.partition AND past.generation = $1
        ), 0)
        WHERE generation = $2 AND topic = $3
        """,
        LIVE,
        GENERATION,
        operation.topic,
    )
