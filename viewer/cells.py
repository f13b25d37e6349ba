"""A value -> text for people, and for a spreadsheet. Pure."""

import csv
import io
import math
import unicodedata
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from viewer.database import Rows
from viewer.questions import Column

HIDDEN = "\u2013"  # a dash
ID_CHARACTERS = 16
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


def visible(text: str) -> str:
    """The text with control and format characters written out: those could reorder or hide what stands beside them."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\u2039U+{ord(character):04X}\u203a"
        if unicodedata.category(character) in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
        else character
        for character in text
    )


def shown(value: Any, column: Column) -> str:
    """A cell as the page shows it. NULL of a number is a hidden group, or nothing to divide by."""
    match value:
        case None:
            return HIDDEN
        case date():
            return value.strftime("%Y-%m-%d" if column.shows == "date" else "%Y-%m-%d %H:%M:%S")
        case str():
            return visible(value)
    return _number(float(value), column)


def _number(number: float, column: Column) -> str:
    if not math.isfinite(number):
        return HIDDEN
    if column.shows == "share":
        percent = 100 * number
        return f"{percent:.0f} %" if percent >= 9.95 or percent == 0 else f"{percent:.2g} %"
    if column.shows == "ms":
        return f"{number:,.0f} ms" if number >= 10 else f"{number:.2g} ms"
    return f"{round(number):,}"


def masked(rows: Rows, columns: Sequence[Column]) -> Rows:
    """Rows whose ids nobody asked for: numbered in the order in which they stand."""
    ids = [column.name for column in columns if column.shows == "id"]
    if not ids:
        return rows
    return [row | dict.fromkeys(ids, f"number {place}") for place, row in enumerate(rows, 1)]


def csv_of(rows: Rows, columns: Sequence[Column]) -> str:
    """RFC 4180. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([column.name for column in columns])
    for row in rows:
        writer.writerow([_cell(row[column.name]) for column in columns])
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value
    if isinstance(value, datetime):
        return value.isoformat()
    return "" if value is None else value
