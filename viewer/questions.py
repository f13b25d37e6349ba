"""What the page asks: each chart is one call of a function of schema `analytics`, bound for us and readable for people.

Pure: knows no connection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal

from viewer.address import WITHIN, View

Shows = Literal["text", "count", "share", "ms", "date", "time", "id", "flag"]
Look = Literal["lines", "bars", "heat", "funnel", "table", "totals", "facts"]
Bind = Callable[[Any, str], str]

FILTERS = ("organization", "service", "deployment", "smallest_group")
RANGE = ("since", "until")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an answer: its name in SQL, its heading, and how a cell is written."""

    name: str
    heading: str
    shows: Shows = "count"


@dataclass(frozen=True, slots=True)
class Question:
    """One chart: a function, the arguments that it takes from the view, and how the answer looks."""

    key: str
    title: str
    function: str
    arguments: tuple[str, ...]
    columns: tuple[Column, ...]
    look: Look = "table"
    series: tuple[str, ...] = ()  # columns that are drawn; the first column is the axis
    note: str = ""
    empty: str = "No rows in this range."


def _of(view: View, smallest_group: int) -> dict[str, tuple[Any, str]]:
    """Each argument's value and type in SQL."""
    return {
        "steps": (list(view.steps), "text[]"),
        "within": (WITHIN[view.within], "interval"),
        "step": (view.step, "text"),
        "zone": (view.zone, "text"),
        "organization": (view.organization, "text"),
        "service": (view.service, "text"),
        "deployment": (view.deployment, "text"),
        "smallest_group": (smallest_group, "integer"),
    }


def _call(question: Question, view: View, smallest_group: int, bind: Bind) -> str:
    values = _of(view, smallest_group)
    parts = []
    for name in question.arguments:
        if name in RANGE:
            day = view.since if name == "since" else view.until
            parts.append(f"{name} => {bind(day, 'timestamp')} AT TIME ZONE {bind(view.zone, 'text')}")
        elif values[name][0] is not None:
            parts.append(f"{name} => {bind(*values[name])}")
    inside = "\n    " + ",\n    ".join(parts) + "\n" if parts else ""
    columns = ", ".join(column.name for column in question.columns)
    return f"SELECT {columns}\nFROM analytics.{question.function}({inside})"


def bound(question: Question, view: View, smallest_group: int) -> tuple[str, list[Any]]:
    """The query with $1, $2 ... and the values for them."""
    values: list[Any] = []

    def bind(value: Any, kind: str) -> str:
        values.append(datetime(value.year, value.month, value.day) if isinstance(value, date) else value)  # noqa: DTZ001
        return f"${len(values)}::{kind}"

    return _call(question, view, smallest_group, bind), values


def readable(question: Question, view: View, smallest_group: int) -> str:
    """The same query with its values in place, to copy into psql."""
    return _call(question, view, smallest_group, _literal) + ";"


def _literal(value: Any, kind: str) -> str:
    match value:
        case int():
            return str(value)
        case timedelta():
            return f"interval '{int(value.total_seconds())} seconds'"
        case list():
            return f"ARRAY[{', '.join(_quoted(part) for part in value)}]::text[]"
        case date():
            return f"timestamp '{value}'"
    return _quoted(value) if kind == "text" else f"{_quoted(value)}::{kind}"


def _quoted(text: str) -> str:
    """A literal of SQL under any setting of standard_conforming_strings."""
    doubled = text.replace("'", "''")
    return "E'" + doubled.replace("\\", "\\\\") + "'" if "\\" in text else f"'{doubled}'"
