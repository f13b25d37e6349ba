"""Rows -> SVG. Pure: shapes carry classes, and the style sheet gives them colours for light and dark.

A chart is a picture of the table that stands below it; screen readers get its label and the table.
"""

import math
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from markupsafe import Markup, escape

from viewer.cells import shown
from viewer.database import Rows
from viewer.questions import Column, Question

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 8, 10, 24  # on the left the longest tick, "12.5 %", at a narrow screen's size
LINES_MAX = 6  # styles in the sheet
LABELS_MAX = 5  # under the axis
POINTS_WITH_DOTS_MAX = 45
HEAT_STEPS = 10
HEAT_COLUMNS_MAX = 26


def drawn(question: Question, rows: Rows) -> Markup:
    """The picture of an answer, or nothing where the table is the picture."""
    if question.look == "lines" and rows:
        return _lines(question, rows)
    return Markup()


def _lines(question: Question, rows: Rows) -> Markup:
    axis, *others = question.columns
    columns = [column for column in others if column.name in question.series][:LINES_MAX]
    largest = max((float(row[c.name]) for row in rows for c in columns if row[c.name] is not None), default=0.0)
    top = _round_up(largest)
    parts = [_grid(top, columns[0]), _dates([row[axis.name] for row in rows])]
    for number, column in enumerate(columns, 1):
        points = [
            None if row[column.name] is None else (_x(place, len(rows)), _y(float(row[column.name]), top))
            for place, row in enumerate(rows)
        ]
        parts.append(_line(points, number))
        if len(rows) <= POINTS_WITH_DOTS_MAX:
            parts.extend(
                _dot(
                    point, number, f"{shown(row[axis.name], axis)}: {column.heading} {shown(row[column.name], column)}"
                )
                for point, row in zip(points, rows, strict=True)
                if point
            )
    label = f"{question.title}: {', '.join(column.heading for column in columns)}. The table below has the numbers."
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup().join(parts)
    )


def _grid(top: float, column: Column) -> Markup:
    """Four lines and their values."""
    parts = []
    for part in range(5):
        value = top * part / 4
        y = _y(value, top)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y))
        parts.append(Markup('<text class="tick" x="{}" y="{}">{}</text>').format(LEFT - 5, y + 4, _tick(value, column)))
    return Markup().join(parts)


def _tick(value: float, column: Column) -> str:
    if column.shows == "share":
        return f"{100 * value:.3g} %"
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    if value >= 1e4:
        return f"{value / 1e3:.3g} k"
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _dates(times: Sequence[Any]) -> Markup:
    last = len(times) - 1
    places = sorted({round(last * part / (LABELS_MAX - 1)) for part in range(LABELS_MAX)}) if last else [0]
    parts = []
    for place in places:
        at = times[place]
        text = at.strftime("%d %b") if isinstance(at, date | datetime) else str(at)
        anchor = "end" if place == last and last else "start" if place == 0 else "middle"
        parts.append(
            Markup('<text class="day {}" x="{}" y="{}">{}</text>').format(
                anchor, _x(place, len(times)), HEIGHT - 6, text
            )
        )
    return Markup().join(parts)


def _line(points: Sequence[tuple[float, float] | None], number: int) -> Markup:
    """A gap where a value is hidden."""
    path, is_drawing = [], False
    for point in points:
        if point:
            path.append(f"{'L' if is_drawing else 'M'}{point[0]} {point[1]}")
        is_drawing = point is not None
    return Markup('<path class="line s{}" d="{}"/>').format(number, " ".join(path))


def _dot(point: tuple[float, float], number: int, text: str) -> Markup:
    """With its value for the pointer."""
    return Markup('<circle class="dot s{}" cx="{}" cy="{}" r="2.5"><title>{}</title></circle>').format(
        number, *point, escape(text)
    )


def _x(place: int, count: int) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * (place / (count - 1) if count > 1 else 0.5), 1)


def _y(value: float, top: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value / top), 1)


def _round_up(value: float) -> float:
    """To 1, 2, 4 or 8 of its power of ten: four equal parts of each are round."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)


def bar(value: Any, largest: float) -> Markup:
    """A cell's bar: its length is the cell's share of the largest."""
    width = 0.0 if value is None or largest <= 0 else round(100 * float(value) / largest, 1)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="back" width="100" height="8"/><rect class="front" width="{}" height="8"/></svg>'
    ).format(width)


def heat(rows: Rows) -> tuple[list[int], list[dict[str, Any]]]:
    """The heat map of retention: its columns (weeks later) and a line for each cohort; a cell has a step of colour."""
    cohorts: dict[Any, dict[str, Any]] = {}
    for row in rows:
        line = cohorts.setdefault(row["cohort"], {"cohort": row["cohort"], "people": row["people"], "cells": {}})
        share = row["share"]
        step = None if share is None else min(HEAT_STEPS, math.ceil(share * HEAT_STEPS))
        line["cells"][row["weeks_later"]] = {"share": share, "step": step, "returned": row["returned"]}
    weeks = sorted({week for line in cohorts.values() for week in line["cells"]})[:HEAT_COLUMNS_MAX]
    return weeks, list(cohorts.values())
