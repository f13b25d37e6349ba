"""The functions of schema `analytics`: by hand on a few rows, and against an obvious computation on random rows."""

import random
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from deploy.local.postgres import PostgresServer
from support.analytics import BASE, Event, Oracle, insert, percentile, random_events
from support.command import answered
from support.records import made
from support.stack import Stack

DAY = timedelta(days=1)
UNFILTERED: tuple[None, None, None] = (None, None, None)
FILTERS = [UNFILTERED, ("acme", None, None), (None, "shop", "cloud")]
ZONES = ["UTC", "America/New_York", "Asia/Kolkata"]
PUBLIC = [
    *("active_users", "stickiness", "retention", "funnel", "funnel_steps", "feature_adoption", "organizations"),
    *("models", "endpoint_health", "requests_over_time", "releases", "overview", "choices", "freshness"),
    *("partitions", "gaps", "dead_letter_reasons"),
]

GROUP_WIDTH = 0.0203  # of durations that percentiles of requests do not tell apart


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def any_size(database: asyncpg.Connection) -> None:
    """Groups of one are shown, as the owner may decide."""
    await database.execute("UPDATE analytics.settings SET smallest_group = 1")


async def ask(connection: asyncpg.Connection, call: str, *values: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.fetch(f"SELECT * FROM analytics.{call}", *values)]


def about(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows to compare with others whose floats were added in another order."""
    return [tuple(pytest.approx(cell) if isinstance(cell, float) else cell for cell in row) for row in rows]


# ---- by hand


async def test_active_users_by_hand(database: asyncpg.Connection, any_size: None) -> None:
    """Ann on Monday and Tuesday, Bob on Tuesday, Cid long before and on Tuesday; an anonymous request counts nobody."""
    await insert(
        database,
        [
            Event("user_activity", "ann", BASE),
            Event("endpoint_usage", "ann", BASE + DAY),
            Event("feature_usage", "bob", BASE + DAY),
            Event("model_usage", "cid", BASE - 100 * DAY),
            Event("model_usage", "cid", BASE + 2 * DAY - timedelta(microseconds=1)),
            Event("endpoint_usage", None, BASE + 2 * DAY),
        ],
    )
    assert await ask(database, "active_users($1, $2)", BASE, BASE + 3 * DAY) == [
        (date(2026, 3, 2), 1, 1, 0),
        (date(2026, 3, 3), 3, 1, 2),
        (date(2026, 3, 4), 0, 0, 0),
    ]
    assert await ask(database, "active_users($1, $2, 'week')", BASE, BASE + 3 * DAY) == [(date(2026, 3, 2), 3, 2, 1)]


async def test_a_zone_moves_the_days(database: asyncpg.Connection, any_size: None) -> None:
    """Midnight in Berlin is 23:00 UTC: the same row is Tuesday there and Monday here. A clock change makes 23 hours."""
    await insert(database, [Event("user_activity", "ann", BASE + timedelta(hours=23, minutes=30))])
    berlin = await ask(database, "active_users($1, $2, zone => 'Europe/Berlin')", BASE, BASE + 2 * DAY)
    assert [(day.day, users) for day, users, *_ in berlin] == [(2, 0), (3, 1), (4, 0)]
    short_day = datetime(2026, 3, 28, 23, tzinfo=UTC)  # 29 March begins in Berlin, and has 23 hours
    await insert(database, [Event("user_activity", "ann", short_day + timedelta(hours=22, minutes=59))])
    days = await ask(database, "active_users($1, $2, zone => 'Europe/Berlin')", short_day, short_day + 46 * DAY / 24)
    assert [(day.day, users) for day, users, *_ in days] == [(29, 1), (30, 0)]


async def test_stickiness_by_hand(database: asyncpg.Connection, any_size: None) -> None:
    """Ann comes once; Bob on the first day and ten days later. 7 days hold a day and six before it."""
    await insert(
        database, [Event("user_activity", who, BASE + day * DAY) for who, day in (("ann", 0), ("bob", 0), ("bob", 10))]
    )
    rows = await ask(database, "stickiness($1, $2)", BASE, BASE + 32 * DAY)
    by_day = {(day - BASE.date()).days: tuple(rest) for day, *rest in rows}
    assert by_day[0] == (2, 2, 2, 1.0)
    assert by_day[6] == (0, 2, 2, 0.0)
    assert by_day[7] == (0, 0, 2, 0.0)
    assert by_day[10] == (1, 1, 2, 0.5)
    assert by_day[29] == (0, 0, 2, 0.0)
    assert by_day[30] == (0, 0, 1, 0.0)


async def test_retention_by_hand(database: asyncpg.Connection, any_size: None) -> None:
    """Two are new in the first week, one of them comes back in the third; one was there long before and is in none."""
    seen = [("ann", 0), ("ann", 1), ("ann", 15), ("bob", 3), ("cid", 9), ("old", -30), ("old", 2)]
    await insert(database, [Event("user_activity", who, BASE + day * DAY) for who, day in seen])
    assert await ask(database, "retention($1, $2)", BASE + 2 * DAY, BASE + 21 * DAY) == [
        (date(2026, 3, 2), 2, 0, 2, 1.0),
        (date(2026, 3, 2), 2, 1, 0, 0.0),
        (date(2026, 3, 2), 2, 2, 1, 0.5),
        (date(2026, 3, 9), 1, 0, 1, 1.0),
        (date(2026, 3, 9), 1, 1, 0, 0.0),
    ]


async def test_a_funnel_by_hand(database: asyncpg.Connection, any_size: None) -> None:
    """A first start that leads nowhere must not hide a second one that does; the same moment is not after."""
    hour = timedelta(hours=1)
    login, use = {"event_type": "login"}, {"feature_name": "export"}
    await insert(
        database,
        [
            Event("user_activity", "ann", BASE, own=login),  # three hours before she exports
            Event("user_activity", "ann", BASE + 2 * hour, own=login),
            Event("feature_usage", "ann", BASE + 3 * hour, own=use),
            Event("user_activity", "bob", BASE, own=login),
            Event("feature_usage", "bob", BASE, own=use),
            Event("feature_usage", "cid", BASE, own=use),  # never logged in
            Event("user_activity", "dan", BASE, own=login),
            Event("feature_usage", "dan", BASE + hour, own=use),  # at the very end of the window
            Event("endpoint_usage", "dan", BASE + hour + timedelta(microseconds=1)),
        ],
    )
    steps = ["user_activity:login", "feature_usage:export/created", "endpoint_usage:GET /a"]
    assert await ask(database, "funnel($1, $2, $3, interval '1 hour')", BASE, BASE + DAY, steps) == [
        (1, steps[0], 3, 1.0, None),
        (2, steps[1], 2, pytest.approx(2 / 3), pytest.approx(2 / 3)),
        (3, steps[2], 0, 0.0, 0.0),
    ]
    longer = await ask(database, "funnel($1, $2, $3, interval '2 hours')", BASE, BASE + DAY, steps)
    assert [people for _, _, people, *_ in longer] == [3, 2, 1]


async def test_a_failed_request_is_no_step(database: asyncpg.Connection, any_size: None) -> None:
    """A person whose checkout was refused did not check out."""
    await insert(database, [Event("endpoint_usage", "ann", BASE, own={"status_code": 402})])
    [(_, _, people, *_)] = await ask(database, "funnel($1, $2, $3)", BASE, BASE + DAY, ["endpoint_usage:/a"])
    assert people == 0


async def test_endpoint_health_by_hand(database: asyncpg.Connection, any_size: None) -> None:
    """Twenty requests, one of which failed and was sampled one in four; percentiles are of the real requests."""
    await insert(
        database,
        [Event("endpoint_usage", "ann", BASE, own={"duration_ms": float(n)}) for n in range(1, 20)]
        + [Event("endpoint_usage", None, BASE, weight=4, own={"duration_ms": 100.0, "status_code": 503})],
    )
    [row] = await ask(database, "endpoint_health($1, $2)", BASE, BASE + DAY)
    assert row == ("/a", "GET", 23.0, 1, pytest.approx(4 / 23), 0.0, 12.0, 100.0, 100.0)


async def test_releases_stand_beside_the_one_before(database: asyncpg.Connection, any_size: None) -> None:
    """Whether the new version is slower is one line; versions are told in the order in which they came."""
    slow = {"duration_ms": 90.0, "status_code": 500}
    await insert(
        database,
        [
            Event("endpoint_usage", "ann", BASE, service_version="9.0"),
            Event("endpoint_usage", "ann", BASE + DAY, service_version="10.0", own=slow),
        ],
    )
    rows = await ask(database, "releases($1, $2)", BASE, BASE + 3 * DAY)
    assert rows == [
        ("shop", "9.0", BASE, BASE, 1.0, 1, 0.0, 10.0, None, None, None),
        ("shop", "10.0", BASE + DAY, BASE + DAY, 1.0, 1, 1.0, 90.0, "9.0", 0.0, 10.0),
    ]


async def test_freshness_is_the_ledgers_word(database: asyncpg.Connection) -> None:
    """Complete to the oldest of the partitions' last records; lost is what retention took, not what is stored."""
    line = """
        INSERT INTO ingest.partition_offsets (generation, topic, partition, topic_id, epoch, first_offset, next_offset,
            stored, duplicates, dead_lettered, last_record_time) VALUES ($1, 't', $2, $3, 0, 0, 10, 7, 2, 1, $4)
    """
    for generation, partition, at in (("live", 0, BASE), ("live", 1, BASE + DAY), ("rebuild", 0, BASE - DAY)):
        await database.execute(line, generation, partition, uuid.UUID(int=1), at)
    await database.execute(
        """
        INSERT INTO ingest.gaps (topic, partition, from_offset, to_offset, reason, acknowledged_at)
        VALUES ('t', 0, 3, 8, 'retention', NULL), ('t', 0, 1, 3, 'truncated', now())
        """
    )
    await database.execute(
        """
        INSERT INTO ingest.dead_letters (topic_id, topic, partition, "offset", headers, reason, redriven_at)
        VALUES ($1, 't', 0, 1, '[]', 'empty', NULL), ($1, 't', 0, 2, '[]', 'empty', now())
        """,
        uuid.UUID(int=1),
    )
    counts = (20, 14, 4, 0, 0, 0, 2, 1, 2, 1, 5)
    assert await ask(database, "freshness()") == [("t", 2, BASE, BASE + DAY, *counts, None, None)]
    end = "INSERT INTO ingest.topic_ends (topic, partition, topic_id, end_offset, seen_at) VALUES ('t', $1, $2, $3, $4)"
    await database.execute(end, 0, uuid.UUID(int=1), 10, BASE + 2 * DAY)  # nothing waits: complete until it was seen
    await database.execute(end, 1, uuid.UUID(int=1), 13, BASE + 3 * DAY)
    seen = (3, BASE + 2 * DAY)
    assert await ask(database, "freshness()") == [("t", 2, BASE + DAY, BASE + DAY, *counts, *seen)]
    await database.execute("UPDATE ingest.topic_ends SET end_offset = 9, topic_id = $1", uuid.UUID(int=2))
    assert await ask(database, "freshness()") == [("t", 2, BASE, BASE + DAY, *counts, None, None)]  # of another topic
    [(reason, waiting, redriven, *_)] = await ask(database, "dead_letter_reasons()")
    assert (reason, waiting, redriven) == ("empty", 1, 1)
    assert [row[:4] for row in await ask(database, "gaps()")] == [("t", 0, "truncated", 2), ("t", 0, "retention", 5)]
    assert len(await ask(database, "partitions()")) == 2


# ---- against an obvious computation


@pytest.fixture(params=[1, 2])
async def events(request: pytest.FixtureRequest, database: asyncpg.Connection) -> list[Event]:
    made = random_events(random.Random(request.param), 1500)
    await insert(database, made)
    return made


@pytest.mark.parametrize("floor", [5, 9])
@pytest.mark.parametrize("chosen", FILTERS)
async def test_people_on_random_rows(
    events: list[Event], chosen: tuple[Any, ...], floor: int, database: asyncpg.Connection
) -> None:
    """Every function about people, in three zones, filtered and floored."""
    for zone in ZONES:
        since, until = BASE + 14 * DAY, BASE + 49 * DAY
        oracle = Oracle(events, since, until, zone, *chosen, floor)
        more = "zone => $3, organization => $4, service => $5, deployment => $6, smallest_group => $7"
        values = (since, until, zone, *chosen, floor)
        for step in ("day", "week", "month"):
            assert await ask(database, f"active_users($1, $2, '{step}', {more})", *values) == oracle.active_users(step)
        assert await ask(database, f"stickiness($1, $2, {more})", *values) == about(oracle.stickiness())
    oracle = Oracle(events, BASE, until, "UTC", *chosen, floor)
    rows = await ask(database, f"retention($1, $2, {more})", BASE, until, "UTC", *chosen, floor)
    assert rows == about(oracle.retention())
    assert rows


@pytest.mark.parametrize("chosen", FILTERS)
async def test_funnels_on_random_rows(
    events: list[Event], chosen: tuple[Any, ...], any_size: None, database: asyncpg.Connection
) -> None:
    """Up to six steps, with one that comes twice, in windows from an hour to a month."""
    oracle = Oracle(events, BASE, BASE + 30 * DAY, "UTC", *chosen, 1)
    steps = [
        *("user_activity:login", "feature_usage:search", "endpoint_usage:GET /a", "model_usage:chat"),
        *("user_activity:login", "feature_usage:export/created"),
    ]
    for length in (1, 2, 4, 6):
        for within in (timedelta(hours=1), timedelta(days=3), timedelta(days=30)):
            found = await ask(
                database,
                "funnel($1, $2, $3, $4, $5, $6, $7)",
                *(oracle.since, oracle.until, steps[:length], within, *chosen),
            )
            assert [people for _, _, people, *_ in found] == oracle.funnel(steps[:length], within)


@pytest.mark.parametrize("chosen", FILTERS)
async def test_use_and_health_on_random_rows(
    events: list[Event], chosen: tuple[Any, ...], database: asyncpg.Connection
) -> None:
    """Weighted sums, shares and percentiles by endpoint, feature, model and organization."""
    oracle = Oracle(events, BASE + 3 * DAY, BASE + 40 * DAY, "UTC", *chosen, 5)
    values = (oracle.since, oracle.until, *chosen)
    more = "organization => $3, service => $4, deployment => $5"

    def grouped(key: Callable[[Event], Any], *tables: str) -> dict[Any, list[Event]]:
        groups: dict[Any, list[Event]] = defaultdict(list)
        for event in oracle.chosen(None, None, *tables):
            groups[key(event)].append(event)
        people = {k: len({e.user_id for e in group if e.user_id}) for k, group in groups.items()}
        return {k: group for k, group in groups.items() if people[k] == 0 or people[k] >= 5}

    def people(group: list[Event]) -> set[str]:
        return {event.user_id for event in group if event.user_id}

    def weighed(group: list[Event], is_counted: Callable[[Event], bool] = lambda _: True) -> float:
        return sum(event.weight for event in group if is_counted(event))

    health = {row[:2]: row[2:] for row in await ask(database, f"endpoint_health($1, $2, {more})", *values)}
    expected = grouped(lambda e: (e["endpoint"], e["method"]), "endpoint_usage")
    assert health.keys() == expected.keys()
    for key, group in expected.items():
        durations = [(event["duration_ms"], event.weight) for event in group]
        assert health[key] == pytest.approx(
            (
                weighed(group),
                len(people(group)),
                weighed(group, lambda e: (e["status_code"] or 0) >= 500) / weighed(group),
                weighed(group, lambda e: 400 <= (e["status_code"] or 0) < 500) / weighed(group),
                *(pytest.approx(percentile(durations, share), rel=GROUP_WIDTH) for share in (0.5, 0.95, 0.99)),
            )
        )

    everybody = people(oracle.chosen())
    features = {row[0]: row[1:] for row in await ask(database, f"feature_adoption($1, $2, {more})", *values)}
    expected = grouped(lambda e: e["feature_name"], "feature_usage")
    assert features.keys() == expected.keys()
    for key, group in expected.items():
        days = defaultdict(set)
        for event in group:
            days[event.user_id].add(oracle.day(event.at))
        repeated = oracle.shown(sum(len(own) > 1 for user, own in days.items() if user))
        share = None if repeated is None else repeated / len(people(group))
        told = (weighed(group), len(people(group)), len(people(group)) / len(everybody), share)
        assert features[key] == tuple(cell if cell is None else pytest.approx(cell) for cell in told)

    models = {row[:3]: row[3:] for row in await ask(database, f"models($1, $2, {more})", *values)}
    expected = grouped(lambda e: (e["provider"], e["model"], e["operation"]), "model_usage")
    assert models.keys() == expected.keys()
    for key, group in expected.items():
        tokens = [event["input_tokens"] * event.weight for event in group if event["input_tokens"] is not None]
        durations = [(event["duration_ms"], event.weight) for event in group]
        calls, persons, inputs, _, failed, p50, p95 = models[key]
        assert (calls, persons, inputs) == (weighed(group), len(people(group)), sum(tokens))
        assert failed == pytest.approx(weighed(group, lambda e: e["error_type"] is not None) / weighed(group))
        assert (p50, p95) == (
            pytest.approx(percentile(durations, 0.5), rel=GROUP_WIDTH),
            pytest.approx(percentile(durations, 0.95), rel=GROUP_WIDTH),
        )

    organizations = {row[0]: row[1:4] for row in await ask(database, f"organizations($1, $2, {more})", *values)}
    expected = {k: g for k, g in grouped(lambda e: e.organization_id).items() if k and people(g)}
    assert organizations == {
        k: (len(people(g)), weighed(g), weighed(g, lambda e: e.table == "endpoint_usage")) for k, g in expected.items()
    }

    [total] = await ask(database, f"overview($1, $2, {more})", *values)
    requests = oracle.chosen(None, None, "endpoint_usage")
    assert total[:3] == (len(everybody), weighed(oracle.chosen()), weighed(requests))
    durations = [(event["duration_ms"], event.weight) for event in requests]
    assert total[4] == pytest.approx(percentile(durations, 0.95), rel=GROUP_WIDTH)
    by_day = await ask(database, f"requests_over_time($1, $2, {more})", *values)
    assert sum(row[1] for row in by_day) == weighed(requests)
    assert len(by_day) == 37


# ---- who may what


@pytest.fixture
async def reader(
    database: asyncpg.Connection, postgres: PostgresServer, database_url: str
) -> AsyncIterator[asyncpg.Connection]:
    """A role that may run the functions and has no right on any table."""
    await database.execute(
        "CREATE ROLE numbers_only LOGIN PASSWORD 'p'; GRANT USAGE ON SCHEMA analytics TO numbers_only"
    )
    await database.execute(
        "GRANT EXECUTE ON FUNCTION " + ", ".join(f"analytics.{n}" for n in PUBLIC) + " TO numbers_only"
    )
    name = database_url.rpartition("/")[2]
    connection = await asyncpg.connect(
        host="127.0.0.1", port=postgres.port, user="numbers_only", password="p", database=name
    )
    yield connection
    await connection.close()
    await database.execute("DROP OWNED BY numbers_only; DROP ROLE numbers_only")


async def test_a_reader_cannot_go_below_the_floor(database: asyncpg.Connection, reader: asyncpg.Connection) -> None:
    """The floor is the owner's: not a parameter, a setting of the session or a table of the reader's own moves it."""
    await insert(database, [Event("user_activity", f"user-{n}", BASE) for n in range(4)])
    question = "active_users($1, $2, smallest_group => $3)"
    await reader.execute("SET search_path = pg_temp; SET plan_cache_mode = auto")
    for wanted in (1, 0, -7, None):
        [(_, users, *_)] = await ask(reader, question, BASE, BASE + DAY, wanted)
        assert users is None
    for statement in (
        "UPDATE analytics.settings SET smallest_group = 1",
        "SELECT * FROM analytics.settings",
        "SELECT * FROM public.user_activity",
        "SELECT * FROM ingest.dead_letters",
        "SELECT * FROM analytics.rows('-infinity', 'infinity')",
        "SELECT * FROM analytics.people",
        "SELECT * FROM analytics.step_times('user_activity:login', '-infinity', 'infinity', NULL, NULL, NULL)",
        "CREATE FUNCTION analytics.floored(integer, integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.execute(statement)
    await database.execute("UPDATE analytics.settings SET smallest_group = 3")
    assert [row[1] for row in await ask(reader, question, BASE, BASE + DAY, 1)] == [4]
    assert [row[1] for row in await ask(reader, question, BASE, BASE + DAY, 5)] == [None]


async def test_every_function_for_readers_is_known_here_and_runs_as_its_owner(database: asyncpg.Connection) -> None:
    """One that runs as its caller fails for readers; one without a fixed search path runs what its caller planted."""
    rows = await database.fetch(
        """
        SELECT proname, prosecdef, coalesce(array_to_string(proconfig, ' '), '') AS config,
            obj_description(oid) AS told,
            has_function_privilege('public', oid, 'EXECUTE') AS is_everybodys
        FROM pg_proc WHERE pronamespace = 'analytics'::regnamespace
        """
    )
    assert {row["proname"] for row in rows if row["prosecdef"]} == set(PUBLIC)
    for row in rows:
        assert not row["is_everybodys"], row
        if row["prosecdef"]:
            assert "search_path=pg_catalog, pg_temp" in row["config"], row
            assert row["told"], row


@pytest.mark.parametrize(
    "call",
    [
        "active_users('2026-01-01', '2026-01-02', 'day''; DROP TABLE x')",
        "funnel('2026-01-01', '2026-01-02', ARRAY['nonsense'])",
        "funnel('2026-01-01', '2026-01-02', ARRAY[]::text[])",
        "funnel('2026-01-01', '2026-01-02', array_fill('user_activity:x'::text, ARRAY[7]))",
        "funnel('2026-01-01', '2026-01-02', ARRAY['user_activity:x'], interval '-1 day')",
        "active_users('2026-01-01', '2026-01-02', zone => 'Nowhere/Land')",
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(call: str, database: asyncpg.Connection) -> None:
    """An empty answer would be taken for a number."""
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await ask(database, call)


async def test_no_rows_are_an_answer(database: asyncpg.Connection) -> None:
    """A fresh installation shows zeros and no errors."""
    span = "'2026-01-05', '2026-01-07'"
    for name in PUBLIC:
        if name == "funnel":
            call = f"funnel({span}, ARRAY['user_activity:login', 'feature_usage:x'])"
        elif name in ("freshness", "partitions", "gaps", "dead_letter_reasons"):
            call = f"{name}()"
        else:
            call = f"{name}({span})"
        await ask(database, call)
    assert await ask(database, f"active_users({span})") == [(date(2026, 1, 5), 0, 0, 0), (date(2026, 1, 6), 0, 0, 0)]


async def test_a_rebuild_in_between_changes_nothing_and_needs_no_step(stack: Stack) -> None:
    """A swap puts other tables under the old names; a function that was bound to the old ones would show the past."""
    records = [made(random.Random(index)) for index in range(60)]
    await stack.create_topic()
    await stack.send([(record.partition(), record.value) for record in records])
    stack.consumer()
    await stack.settled(60)
    await stack.fetch("UPDATE analytics.settings SET smallest_group = 1")
    question = "SELECT * FROM analytics.overview('-infinity', 'infinity')"
    before = await stack.fetch(question)
    assert before[0]["events"] >= await stack.row_count() == 60  # some rows stand for several
    assert (await answered(stack, "rebuild", "--rate", "0"))["swapped"]
    await stack.fetch("DROP SCHEMA before_rebuild CASCADE")
    assert await stack.fetch(question) == before
    await stack.fetch("DELETE FROM public.endpoint_usage")
    assert (await stack.fetch(question))[0]["requests"] == 0


async def test_late_and_erased_rows_change_the_answer(database: asyncpg.Connection, any_size: None) -> None:
    """Nothing is kept beside the rows, so nothing has to be corrected."""
    await insert(database, [Event("user_activity", "ann", BASE)])
    before = await ask(database, "active_users($1, $2)", BASE, BASE + DAY)
    await insert(database, [Event("user_activity", "ann", BASE - DAY), Event("user_activity", "bob", BASE)])
    late = await ask(database, "active_users($1, $2)", BASE, BASE + DAY)
    await database.execute("DELETE FROM user_activity WHERE user_id = 'ann'")
    erased = await ask(database, "active_users($1, $2)", BASE, BASE + DAY)
    assert [rows[0][1:] for rows in (before, late, erased)] == [(1, 1, 0), (2, 1, 1), (1, 1, 0)]
