"""values of repetitions -> medians with their spread, ratios against goals: a table, JSON and a plot."""

import json
import platform
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

import matplotlib as mpl
import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from rich.console import Console
from rich.table import Table

mpl.use("agg")

T = TypeVar("T")

OURS, TEXTBOOK, ROTEL, COLLECTOR, COPY, BROKER = "ours", "textbook", "rotel", "Collector", "COPY", "broker"
_COLORS = {
    OURS: "#1f6feb",
    TEXTBOOK: "#8b949e",
    ROTEL: "#d29922",
    COLLECTOR: "#8250df",
    COPY: "#2da44e",
    BROKER: "#57606a",
}


@dataclass(frozen=True, slots=True)
class Key:
    """What a value is of: `spans/s` of `ours` in the case `512 spans, events` of the suite `receiver`."""

    suite: str
    case: str
    subject: str
    metric: str


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a figure, or on its ratio to (or difference from) another of the same repetition."""

    text: str
    figure: Key
    bound: float
    is_at_least: bool = False
    against: Key | None = None
    relation: Literal["ratio", "difference"] = "ratio"

    @property
    def shown_bound(self) -> str:
        return f"{'>=' if self.is_at_least else '<='} {self.bound:g}"

    def is_met_by(self, value: float) -> bool:
        return value >= self.bound if self.is_at_least else value <= self.bound


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table, for a terminal or for a page."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def for_terminal(self) -> Table:
        table = Table(*self.columns, title=self.title, title_justify="left")
        for row in self.rows:
            style = {"yes": "green", "NO": "bold red"}.get(row[-1])
            table.add_row(*row, style=style)
        return table

    def for_page(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"**{self.title}**\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


class Report:
    """Collects values, repetition by repetition, and shows them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_at = time.monotonic()
        self._values: dict[Key, list[float]] = defaultdict(list)
        self._goals: list[Goal] = []
        self._remarks: list[str] = []

    def say(self, text: str) -> None:
        """Progress, as it goes."""
        elapsed_s = time.monotonic() - self._started_at
        self._console.print(f"[{elapsed_s:5.1f} s] {text}", style="dim", markup=False, highlight=False)

    def remark(self, text: str) -> None:
        """What a reader of the figures must know."""
        self._remarks.append(text)
        self.say(text)

    def add(self, suite: str, case: str, subject: str, **metrics: float) -> None:
        """One repetition's values, by the metric's name with `_` for a space and `_per_` for a stroke."""
        for name, value in metrics.items():
            metric = name.replace("_per_", "/").replace("_", " ")
            self._values[Key(suite, case, subject, metric)].append(float(value))

    def aim(self, *goals: Goal) -> None:
        """Goals that are to be shown; twice the same is once."""
        self._goals += [goal for goal in goals if goal not in self._goals]

    def median(self, key: Key) -> float:
        return median(self._values[key])

    def show(self) -> None:
        for sheet in self._sheets():
            self._console.print(sheet.for_terminal())
        for remark in self._remarks:
            self._console.print(f"- {remark}", markup=False, highlight=False)

    def write_markdown(self, path: Path) -> None:
        """The same, to be pasted into a page."""
        remarks = "".join(f"- {remark}\n" for remark in self._remarks)
        path.write_text("\n".join([sheet.for_page() for sheet in self._sheets()]) + f"\n{remarks}")

    def _sheets(self) -> list["Sheet"]:
        suites = [self._sheet_of(suite) for suite in _distinct(key.suite for key in self._values)]
        return suites + ([self._goals_sheet()] if self._goals else [])

    def _sheet_of(self, suite: str) -> "Sheet":
        keys = [key for key in self._values if key.suite == suite]
        metrics = _distinct(key.metric for key in keys)
        rows = [
            [case, subject, *(_with_spread(self._values.get(Key(suite, case, subject, name), ())) for name in metrics)]
            for case, subject in _distinct((key.case, key.subject) for key in keys)
        ]
        return Sheet(f"{suite}: median (lowest - highest)", ["case", "of", *metrics], rows)

    def _goals_sheet(self) -> "Sheet":
        rows = []
        for goal in self._goals:
            values = self._measured(goal)
            is_met = "?" if not values else "yes" if goal.is_met_by(median(values)) else "NO"
            rows.append([goal.text, _with_spread(values) or "not measured", goal.shown_bound, is_met])
        return Sheet("goals: median (lowest - highest)", ["what", "measured", "goal", "met"], rows)

    def _measured(self, goal: Goal) -> list[float]:
        """By repetition; those that were measured together are compared with each other."""
        values = self._values.get(goal.figure, [])
        if goal.against is None:
            return values
        pairs = list(zip(values, self._values.get(goal.against, []), strict=False))
        if goal.relation == "difference":
            return [value - other for value, other in pairs]
        return [value / other for value, other in pairs if other]

    def write_json(self, path: Path, **about: Any) -> None:
        machine = {
            "cpus": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.platform(terse=True),
            "python": platform.python_version(),
        }
        figures = [
            {
                "suite": key.suite,
                "case": key.case,
                "of": key.subject,
                "metric": key.metric,
                "median": median(values),
                "values": values,
            }
            for key, values in self._values.items()
        ]
        goals = []
        for goal in self._goals:
            values = self._measured(goal)
            middle = median(values) if values else None
            is_met = None if middle is None else goal.is_met_by(middle)
            goals.append(
                {"what": goal.text, "goal": goal.shown_bound, "median": middle, "values": values, "is_met": is_met}
            )
        content = {"about": about, "machine": machine, "figures": figures, "goals": goals, "remarks": self._remarks}
        path.write_text(json.dumps(content, indent=1))

    def write_plot(self, path: Path, metrics: Sequence[tuple[str, str]]) -> None:
        """One panel for each (suite, metric) that has values."""
        panels = [
            (suite, metric, found)
            for suite, metric in metrics
            if (found := [key for key in self._values if (key.suite, key.metric) == (suite, metric)])
        ]
        if not panels:
            return
        rows = [panels[at : at + 2] for at in range(0, len(panels), 2)]
        height = sum(1.2 + 0.28 * max(len(found) for _, _, found in row) for row in rows)
        canvas = Canvas(figsize=(14, height), layout="constrained")
        axes = canvas.subplots(len(rows), 2, squeeze=False)
        for place in axes.flat[len(panels) :]:
            place.set_visible(False)
        for place, (suite, metric, found) in zip(axes.flat, panels, strict=False):
            self._draw(place, f"{suite}: {metric}", found)
        canvas.savefig(path, dpi=110)

    def _draw(self, axes: Axes, title: str, keys: Sequence[Key]) -> None:
        """A bar a key, with the spread of its repetitions."""
        for place, key in enumerate(keys):
            values = self._values[key]
            middle = median(values)
            spread = [[middle - min(values)], [max(values) - middle]]
            axes.barh(
                place,
                middle,
                xerr=spread,
                color=_COLORS.get(key.subject.partition(",")[0], _COLORS[BROKER]),
                height=0.8,
                capsize=2,
            )
            axes.text(middle, place, f"  {_short(middle)}", va="bottom", fontsize=7)
        axes.set_yticks(range(len(keys)), [f"{key.case}: {key.subject}" for key in keys], fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.autoscale_view()
        axes.set_xlim(left=0)
        axes.set_title(title, fontsize=10, loc="left")


def _with_spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = _short(median(values))
    return middle if len(values) == 1 else f"{middle} ({_short(min(values))} - {_short(max(values))})"


def _short(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
