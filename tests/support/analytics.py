"""Rows for the functions of schema `analytics`, and a slow, obvious computation of what those must answer."""

import random
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg

BASE = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday
TABLES = ("user_activity", "endpoint_usage", "feature_usage", "model_usage")
OWN: dict[str, dict[str, Any]] = {
    "user_activity": {"event_type": "login"},
    "endpoint_usage": {"endpoint": "/a", "method": "GET", "status_code": 200, "duration_ms": 10.0},
    "feature_usage": {"feature_name": "export", "action": "created"},
    "model_usage": {"operation": "chat", "provider": "openai", "model": "m", "input_tokens": 10, "output_tokens": 5},
}


@dataclass
class Event:
    """One row to be, with what the functions look at."""

    table: str
    user_id: str | None
    at: datetime
    organization_id: str | None = "acme"
    service_name: str | None = "shop"
    deployment_type: str = "cloud"
    service_version: str | None = "1"
    weight: float = 1.0
    own: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return (OWN[self.table] | self.own).get(name)


async def insert(connection: asyncpg.Connection, events: Iterable[Event]) -> None:
    by_table: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        common = {
            "id": uuid.uuid4(),
            "user_id": event.user_id,
            "timestamp": event.at,
            "weight": event.weight,
            "organization_id": event.organization_id,
            "service_name": event.service_name,
            "deployment_type": event.deployment_type,
            "service_version": event.service_version,
        }
        by_table[event.table].append(common | OWN[event.table] | event.own)
    for table, rows in by_table.items():
        names = sorted({name for row in rows for name in row})
        places = ", ".join(f"${n + 1}" for n in range(len(names)))
        await connection.executemany(
            f"INSERT INTO public.{table} ({', '.join(names)}) VALUES ({places})",
            [tuple(row.get(name) for name in names) for row in rows],
        )


def random_events(dice: random.Random, count: int, *, people: int = 40, days: int = 70) -> list[Event]:
    """Clustered people, odd hours, missing users, weights, three services with versions, every table."""
    events = []
    for _ in range(count):
        table = dice.choice(TABLES)
        user = f"user-{int(people * dice.random() ** 2)}"
        is_anonymous = table != "user_activity" and dice.random() < 0.2
        day = dice.choice((dice.randrange(days), dice.randrange(days // 4)))
        at = BASE + timedelta(days=day, seconds=dice.randrange(86400), microseconds=dice.choice((0, 1, 999_999)))
        own: dict[str, Any] = {
            "user_activity": {"event_type": dice.choice(("login", "logout"))},
            "endpoint_usage": {
                "endpoint": dice.choice(("/a", "/b/{id}")),
                "method": dice.choice(("GET", "POST", None)),
                "status_code": dice.choice((200, 204, 404, 500, None)),
                "duration_ms": dice.choice((None, round(dice.uniform(1, 900), 1))),
            },
            "feature_usage": {
                "feature_name": dice.choice(("export", "search", "share")),
                "action": dice.choice(("created", None)),
            },
            "model_usage": {
                "model": dice.choice(("m", "n", None)),
                "error_type": dice.choice((None, None, "timeout")),
                "duration_ms": round(dice.uniform(1, 900), 1),
                "input_tokens": dice.choice((None, 7, 100)),
            },
        }[table]
        events.append(
            Event(
                table,
                None if is_anonymous else user,
                at,
                organization_id=dice.choice(("acme", "globex", None)),
                service_name=dice.choice(("shop", "api", None)),
                deployment_type=dice.choice(("cloud", "self-hosted")),
                service_version=dice.choice(("1", "2", None)),
                weight=dice.choice((1.0, 1.0, 4.0)),
                own=own,
            )
        )
    return events


@dataclass
class Oracle:
    """What the functions must answer, computed event by event."""

    events: Sequence[Event]
    since: datetime
    until: datetime
    zone: str = "UTC"
    organization: str | None = None
    service: str | None = None
    deployment: str | None = None
    floor: int = 5

    def chosen(self, since: datetime | None = None, until: datetime | None = None, *tables: str) -> list[Event]:
        return [
            event
            for event in self.events
            if (since or self.since) <= event.at < (until or self.until)
            and (not tables or event.table in tables)
            and self.organization in (None, event.organization_id)
            and self.service in (None, event.service_name)
            and self.deployment in (None, event.deployment_type)
        ]

    def day(self, at: datetime) -> date:
        return at.astimezone(ZoneInfo(self.zone)).date()

    def period(self, at: datetime, step: str) -> date:
        day = self.day(at)
        return {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}[step]

    def shown(self, people: int) -> int | None:
        return people if people == 0 or people >= self.floor else None

    def calendar(self, step: str) -> list[date]:
        found, at = [], self.since
        while at < self.until:
            if (period := self.period(at, step)) not in found:
                found.append(period)
            at += timedelta(hours=1)
        return found

    def first_seen(self) -> dict[str, datetime]:
        firsts: dict[str, datetime] = {}
        for event in self.chosen(datetime.min.replace(tzinfo=UTC), self.until):
            if event.user_id is not None:
                firsts[event.user_id] = min(event.at, firsts.get(event.user_id, event.at))
        return firsts

    def active_users(self, step: str) -> list[tuple[Any, ...]]:
        firsts, rows = self.first_seen(), []
        for period in self.calendar(step):
            here = {e.user_id for e in self.chosen() if e.user_id and self.period(e.at, step) == period}
            new = {u for u in here if firsts[u] >= self.since and self.period(firsts[u], step) == period}
            parts = (self.shown(len(new)), self.shown(len(here) - len(new)))
            rows.append((period, self.shown(len(here)), *(parts if None not in parts else (None, None))))
        return rows

    def stickiness(self) -> list[tuple[Any, ...]]:
        days: dict[str, set[date]] = defaultdict(set)
        for event in self.chosen(self.since - timedelta(days=40)):
            if event.user_id:
                days[event.user_id].add(self.day(event.at))
        rows = []
        for day in self.calendar("day"):
            counts = [
                sum(any(day - timedelta(days=width) < seen <= day for seen in own) for own in days.values())
                for width in (1, 7, 30)
            ]
            daily, _, monthly = told = [self.shown(people) for people in counts]
            rows.append((day, *told, daily / monthly if daily is not None and monthly else None))
        return rows

    def retention(self) -> list[tuple[Any, ...]]:
        """Asked for a range that begins with a week."""
        firsts, weeks = self.first_seen(), defaultdict(set)
        for event in self.chosen():
            if event.user_id:
                weeks[event.user_id].add(self.period(event.at, "week"))
        rows = []
        for cohort in self.calendar("week"):
            own = [u for u, at in firsts.items() if at >= self.since and self.period(at, "week") == cohort]
            if len(own) < self.floor:
                continue
            for week in [week for week in self.calendar("week") if week >= cohort]:
                back = self.shown(sum(week in weeks[user] for user in own))
                rows.append(
                    (cohort, len(own), (week - cohort).days // 7, back, None if back is None else back / len(own))
                )
        return rows

    def does(self, event: Event, step: str) -> bool:
        table, _, name = step.partition(":")
        if event.table != table or event.user_id is None:
            return False
        match table:
            case "user_activity":
                return bool(event["event_type"] == name)
            case "endpoint_usage":
                fine = event["status_code"] is None or event["status_code"] < 400
                return fine and name in (
                    event["endpoint"],
                    event["method"] and f"{event['method']} {event['endpoint']}",
                )
            case "feature_usage":
                return name in (event["feature_name"], event["action"] and f"{event['feature_name']}/{event['action']}")
        return name in (event["operation"], event["model"] and f"{event['operation']}/{event['model']}")

    def funnel(self, steps: Sequence[str], within: timedelta) -> list[int]:
        """People by step: for each start, the earliest next step again and again."""
        reached = [set[str]() for _ in steps]
        later = sorted(self.chosen(self.since, self.until + within), key=lambda event: event.at)
        for start in later:
            if start.at >= self.until or not self.does(start, steps[0]):
                continue
            at, user = start.at, start.user_id
            assert user is not None
            reached[0].add(user)
            for number, step in enumerate(steps[1:], 1):
                times = [
                    e.at for e in later if e.user_id == user and self.does(e, step) and at < e.at <= start.at + within
                ]
                if not times:
                    break
                at = times[0]
                reached[number].add(user)
        return [len(people) for people in reached]


def percentile(values: Sequence[tuple[float | None, float]], share: float) -> float | None:
    """Of (value, weight): the least value at or below which there is that share of the weight."""
    known = sorted((value, weight) for value, weight in values if value is not None)
    total, so_far = sum(weight for _, weight in known), 0.0
    for value, weight in known:
        so_far += weight
        if so_far >= share * total:
            return value
    return None
