"""Closed days that are added up: the functions of schema `analytics` answer the same from sums and from rows."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from consumer.store import rollups
from support.analytics import BASE, Event, insert, random_events
from support.command import answered
from support.records import Made, made
from support.stack import Stack, eventually

DAY = timedelta(days=1)
KEPT_DAYS = 20_000  # BASE is long ago one day
MORE = "organization => $3, service => $4, deployment => $5"
QUESTIONS = [
    *(f"active_users($1, $2, '{step}', {MORE})" for step in ("day", "week", "month")),
    *(f"active_users($1, $2, zone => '{zone}', {MORE})" for zone in ("America/New_York", "Asia/Kolkata")),
    *(f"{name}($1, $2, {MORE})" for name in ("stickiness", "retention", "funnel_steps", "feature_adoption")),
    *(f"{name}($1, $2, {MORE})" for name in ("organizations", "models", "endpoint_health", "releases", "overview")),
    f"feature_adoption($1, $2, 'Asia/Kolkata', {MORE})",
    *(f"requests_over_time($1, $2, '{step}', {MORE})" for step in ("hour", "day", "week", "month")),
    "choices($1, $2)",
]
FILTERS: list[tuple[Any, ...]] = [(None, None, None), ("acme", None, None), (None, "shop", "cloud")]
RANGES = [(BASE, BASE + 40 * DAY), (BASE + 3.3 * DAY, BASE + 33.7 * DAY), (BASE - 9 * DAY, BASE + 200 * DAY)]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE analytics.settings SET smallest_group = 1")
    yield connection
    await connection.close()


async def answers(connection: asyncpg.Connection, ranges: list[tuple[datetime, datetime]] = RANGES) -> dict[Any, Any]:
    """What every function says, for ranges of whole and of broken days, filtered and not."""
    told = {}
    for since, until in ranges:
        for question in QUESTIONS:
            for chosen in FILTERS if "$3" in question else [()]:
                rows = await connection.fetch(f"SELECT * FROM analytics.{question}", since, until, *chosen)
                key = (question, since, until, chosen)
                told[key] = [tuple(round(x, 6) if isinstance(x, float) else x for x in row) for row in rows]
    return told


async def from_rows(connection: asyncpg.Connection, **more: Any) -> dict[Any, Any]:
    """The same with no day added up."""
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("DELETE FROM analytics.rolled_days")
    told = await answers(connection, **more)
    await transaction.rollback()
    return told


async def roll_up(connection: asyncpg.Connection) -> int:
    return await rollups.roll_up(connection, asyncio.Event(), keep_days=KEPT_DAYS)


async def roll_up_again(connection: asyncpg.Connection) -> None:
    """Without waiting until the sums are five minutes old."""
    await connection.execute("UPDATE analytics.rolled_days SET rolled_at = now() - interval '1 hour'")
    await roll_up(connection)


async def counted(connection: asyncpg.Connection) -> set[str]:
    days = await connection.fetchval("SELECT analytics.counted_days('-infinity', 'infinity')")
    return {day.isoformat() for day in days}


async def wrong(connection: asyncpg.Connection) -> list[Any]:
    return [row[0] for row in await connection.fetch("SELECT ingest.wrong_days(1000)")]


@pytest.mark.parametrize("seed", [1, 2])
async def test_sums_and_rows_give_the_same_answers(database: asyncpg.Connection, seed: int) -> None:
    """With every day added up, and with some of them marked because of rows that came late."""
    dice = random.Random(seed)
    events = random_events(dice, 1200)
    late_days = {(BASE + dice.randrange(60) * DAY).date() for _ in range(9)}
    late = [event for event in events if event.at.date() in late_days and dice.random() < 0.5]
    await insert(database, [event for event in events if event not in late])
    assert await roll_up(database) > 40
    assert await answers(database) == await from_rows(database)
    before = await counted(database)
    async with database.transaction():
        await rollups.mark_days(database, sorted(late_days))
        await insert(database, late)
    assert await counted(database) == before - {day.isoformat() for day in late_days}
    assert await answers(database) == await from_rows(database)


async def test_a_strangers_statement_marks_every_day(database: asyncpg.Connection) -> None:
    """Somebody who corrects rows by hand knows nothing of sums, and gets right answers all the same."""
    await insert(database, random_events(random.Random(3), 300))
    await roll_up(database)
    for statement in (
        "UPDATE public.endpoint_usage SET status_code = 500, user_id = 'eve'",
        "DELETE FROM public.feature_usage",
        "TRUNCATE public.model_usage",
        """
        INSERT INTO public.user_activity (id, user_id, timestamp, deployment_type, event_type)
        VALUES (gen_random_uuid(), 'eve', '2026-03-05', 'cloud', 'login')
        """,
    ):
        assert await counted(database)
        await database.execute(statement)
        assert not await counted(database)
        assert await answers(database, RANGES[:1]) == await from_rows(database, ranges=RANGES[:1])
        await roll_up(database)
    assert not await wrong(database)


async def test_audit_recounts(stack: Stack, database: asyncpg.Connection) -> None:
    """A sum that is not that of its rows has a name, and a way to be mended."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(1)).value)])
    consumer = stack.consumer()
    await stack.settled(1)
    consumer.stop()
    yesterday = datetime.now(UTC) - DAY
    await insert(database, [Event("user_activity", "ann", yesterday), Event("user_activity", "bob", yesterday)])
    assert await roll_up(database)
    assert (await answered(stack, "audit"))["ok"]
    async with database.transaction():
        await rollups.mark_days(database, [])  # as a writer that forgot to say which
        await database.execute("DELETE FROM public.user_activity WHERE user_id = 'bob'")
    [finding] = (await answered(stack, "audit", code=1))["findings"]
    assert finding["kind"] == "rollup"
    await database.execute("SELECT ingest.mark_days(ARRAY[$1::date])", yesterday.date())
    assert (await answered(stack, "audit"))["ok"]


def of(user: str, organization: str, seed: int, at: datetime) -> Made:
    """A record whose row is the given person's, at that time."""
    record = made(random.Random(seed), "feature_usage")
    columns = {**record.columns, "user_id": user, "organization_id": organization}
    return Made("feature_usage", record.id, int(at.timestamp() * 1e6), columns)


async def test_late_rows_replays_erasure_retention_and_a_rebuild_keep_the_sums_right(
    stack: Stack, database: asyncpg.Connection
) -> None:
    """Through the running consumer and the commands: after each, the sums and the rows say the same."""
    ann, bob, acme = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"
    now = datetime.now(UTC)
    ranges = [(now - 40 * DAY, now + DAY)]
    records = [of(user, acme, index, now - (1 + index % 20) * DAY) for index, user in enumerate([ann, bob] * 40)]
    await stack.create_topic(partitions=1)
    await stack.send([(0, record.value) for record in records])
    stack.consumer()
    await stack.settled(80)

    async def is_right(people: int) -> None:
        assert await answers(database, ranges) == await from_rows(database, ranges=ranges)
        [(found, *_)] = await database.fetch("SELECT * FROM analytics.overview($1, $2)", *ranges[0])
        assert found == people

    assert await roll_up(database) == 20
    await is_right(2)
    late = of("dddddddddddddddd", acme, 900, now - 5 * DAY)
    await stack.send([(0, late.value), (0, records[0].value)])
    await stack.settled(82)
    assert len(await counted(database)) in (18, 19)  # of the late row, and of the replayed one
    await is_right(3)
    await roll_up_again(database)
    assert len(await counted(database)) == 20
    await is_right(3)

    await answered(stack, "erase", "--user-hash", ann)
    await is_right(2)
    for table in ("people", "day_sums", "day_people", "day_organizations"):
        assert not any(ann in row[0] for row in await database.fetch(f"SELECT t::text FROM analytics.{table} AS t"))
    await roll_up_again(database)
    await is_right(2)
    await answered(stack, "retain", "--days", "10", "--yes")
    await is_right(2)
    assert (await answered(stack, "rebuild", "--rate", "0"))["swapped"]
    assert not await counted(database)
    await is_right(2)
    await roll_up(database)
    await is_right(2)
    await stack.fetch("DELETE FROM public.feature_usage WHERE user_id = $1", bob)
    assert not await counted(database)  # the new tables have the trigger too
    await answered(stack, "erase", "--organization-hash", acme)
    await roll_up(database)
    assert not await database.fetch("SELECT * FROM analytics.people")
    await is_right(0)


async def test_days_are_rolled_up_beside_writers(stack: Stack, database: asyncpg.Connection) -> None:
    """A row that commits while its day is added up is in the sums, or its day is not counted."""
    now = datetime.now(UTC)
    await stack.create_topic(partitions=2)
    stack.consumer(CONSUMER_BATCH_ROWS="20", CONSUMER_LINGER_MS="5", CONSUMER_WRITERS="2")
    sent = 0
    for turn in range(12):
        batch = [
            of(f"{random.Random(sent + n).randrange(50):016x}", "e" * 16, sent + n, now - (1 + n % 3) * DAY)
            for n in range(60)
        ]
        await stack.send([(n % 2, record.value) for n, record in enumerate(batch)])
        sent += len(batch)
        await roll_up_again(database)
        assert not await wrong(database), turn
    await stack.settled(sent)
    await roll_up_again(database)
    assert len(await counted(database)) == 3
    ranges = [(now - 5 * DAY, now)]
    assert await answers(database, ranges) == await from_rows(database, ranges=ranges)


async def test_a_consumer_rolls_up_by_itself(stack: Stack, database: asyncpg.Connection) -> None:
    await insert(database, [Event("user_activity", "ann", datetime.now(UTC) - DAY)])
    await stack.create_topic(partitions=1)
    stack.consumer()

    async def is_counted() -> bool:
        return len(await counted(database)) == 1

    await eventually(is_counted, 30, "yesterday's sums")
