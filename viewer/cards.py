"""A view -> cards: each is one answer as picture, table, query and CSV."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

from markupsafe import Markup

from viewer import charts
from viewer.address import View
from viewer.catalogue import QUESTIONS
from viewer.cells import masked
from viewer.database import Database, NoAnswer, Rows, WrongQuestion
from viewer.questions import Column, Question, bound, readable

FEATURES_IN_FIRST_FUNNEL = 2
TODAY = "SELECT (now() AT TIME ZONE $1::text)::date AS today"


@dataclass(frozen=True, slots=True)
class Card:
    """What a template needs to show one answer, or why there is none."""

    question: Question
    sql: str
    rows: Rows = ()
    picture: Markup = field(default_factory=Markup)
    failure: str | None = None
    before: Mapping[str, Any] | None = None  # totals of the range before
    weeks: Sequence[int] = ()
    cohorts: Sequence[Mapping[str, Any]] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.question.columns

    @property
    def drawn(self) -> list[Column]:
        return [column for column in self.columns if column.name in self.question.series]

    def largest(self, name: str) -> float:
        return max((float(row[name]) for row in self.rows if row[name] is not None), default=0.0)


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks for a view, with the page's smallest group."""

    database: Database
    smallest_group: int

    async def today(self, zone: str) -> date:
        """Raises NoAnswer; WrongQuestion when there is no such zone."""
        [row] = await self.database.ask("today", TODAY, [zone])
        return row["today"]  # type: ignore[no-any-return]

    async def rows(self, key: str, view: View) -> Rows:
        """Raises NoAnswer."""
        question = QUESTIONS[key]
        sql, values = bound(question, view, self.smallest_group)
        found = await self.database.ask(question.function, sql, values)
        return found if view.shows_ids else masked(found, question.columns)

    async def card(self, key: str, view: View) -> Card:
        """One card; a failure stands in it, and its neighbours are shown all the same."""
        question = QUESTIONS[key]
        sql = readable(question, view, self.smallest_group)
        try:
            rows = await self.rows(key, view)
            before = await self._before(view) if question.look == "totals" else None
        except WrongQuestion:
            raise
        except NoAnswer as failure:
            return Card(question, sql, failure=failure.text)
        weeks, cohorts = charts.heat(rows) if question.look == "heat" else ((), ())
        return Card(question, sql, rows, charts.drawn(question, rows), None, before, weeks, cohorts)

    async def _before(self, view: View) -> Mapping[str, Any]:
        since, until = view.before()
        [row] = await self.rows("totals", replace(view, since=since, until=until))
        return row

    async def cards(self, keys: Sequence[str], view: View) -> list[Card]:
        """The cards in the order of `keys`. Their queries run at the same time, as far as there are connections."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.card(key, view)) for key in keys]
        return [task.result() for task in tasks]

    async def choices(self, view: View) -> dict[str, list[str]]:
        """Services and deployments to filter by; empty when the query gets no answer."""
        try:
            rows = await self.rows("choices", view)
        except NoAnswer:
            rows = ()
        return {kind: [row["value"] for row in rows if row["kind"] == kind] for kind in ("service", "deployment")}

    async def with_steps(self, view: View) -> tuple[View, list[str]]:
        """The view with a funnel to show, and the steps to choose from. Raises NoAnswer."""
        known = [row["step"] for row in await self.rows("funnel_steps", view)]
        steps = view.steps or _first_funnel(known)
        return replace(view, steps=steps), known + [step for step in steps if step not in known]

    async def completeness(self) -> str:
        """One line for the foot of every page."""
        question = QUESTIONS["freshness"]
        try:
            rows = await self.database.ask("freshness", *_plain(question))
        except NoAnswer:
            return "The ledger did not answer. Reload the page to see how complete these numbers are."
        if not rows or rows[0]["complete_until"] is None:
            return "The ledger holds no record yet."
        until = min(row["complete_until"] for row in rows if row["complete_until"] is not None)
        lost, letters = sum(row["lost"] for row in rows), sum(row["dead_letters_waiting"] for row in rows)
        waiting = sum(row["waiting"] or 0 for row in rows)
        age_s = max(0, round((datetime.now(UTC) - until).total_seconds()))
        return (
            f"Complete for what was received until {until:%Y-%m-%d %H:%M:%S} UTC, {_age(age_s)} ago; "
            f"{waiting:,} records waiting, {lost:,} lost, {letters:,} dead letters waiting."
        )


def _first_funnel(known: Sequence[str]) -> tuple[str, ...]:
    """Something to begin with: what most people do first, and the two features that most of them use."""
    activities = [step for step in known if step.startswith("user_activity:")]
    features = [step for step in known if step.startswith("feature_usage:")]
    return (*activities[:1], *features[:FEATURES_IN_FIRST_FUNNEL]) or tuple(known[:1])


def _plain(question: Question) -> tuple[str, list[Any]]:
    columns = ", ".join(column.name for column in question.columns)
    return f"SELECT {columns} FROM analytics.{question.function}()", []  # noqa: S608  names of our own


def _age(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
