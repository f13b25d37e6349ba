"""The page's pure parts: what an address asks, how a query reads, how a cell is written."""

from datetime import UTC, date, datetime, timedelta
from urllib.parse import parse_qsl

import pytest
from multidict import MultiDict

from viewer.address import View, WrongAddress, view_of
from viewer.catalogue import PAGES, QUESTIONS
from viewer.cells import csv_of, masked, shown, visible
from viewer.charts import drawn
from viewer.questions import Column, bound, readable

TODAY = date(2026, 11, 30)


def view(**query: str) -> View:
    return view_of(MultiDict(query), today=TODAY)


def test_an_address_without_parameters_is_the_last_thirty_days_with_today() -> None:
    """The live demo must be seen at once."""
    assert (view().since, view().until) == (date(2026, 11, 1), date(2026, 12, 1))


def test_a_view_comes_back_from_its_own_query() -> None:
    """A link is a view; what a link loses, a colleague does not see."""
    given = view(
        **{"from": "2026-01-05", "to": "2026-02-01", "zone": "Asia/Tokyo", "step": "week", "service": "a&b='c"}
    )
    again = view_of(MultiDict(parse_qsl(given.query())), today=TODAY)
    assert again == given
    assert given.before() == (date(2025, 12, 8), date(2026, 1, 5))


@pytest.mark.parametrize(
    "query",
    [{"days": "0"}, {"days": "²"}, {"from": "2026-02-30"}, {"to": "20260101"}, {"step": "hour"}, {"zone": "a\0"}],
)
def test_a_parameter_that_cannot_be_read_is_named(query: dict[str, str]) -> None:
    """A guess in its place would be a wrong number."""
    with pytest.raises(WrongAddress, match=next(iter(query))):
        view(**query)


def test_no_value_stands_in_a_bound_query_and_every_value_in_the_readable_one() -> None:
    """The one goes to the database, the other to people."""
    hostile = "'; DROP TABLE x; --\\"
    asked = view(service=hostile, organization="acme")
    for question in QUESTIONS.values():
        sql, values = bound(question, asked, 5)
        assert hostile not in sql
        assert sql.count("$") == len(values)
        if "service" in question.arguments:
            assert hostile in values
            assert "E'''; DROP TABLE x; --\\\\'" in readable(question, asked, 5)


def test_every_question_of_a_page_exists() -> None:
    assert {key for _, keys in PAGES.values() for key in keys} <= QUESTIONS.keys()


@pytest.mark.parametrize(
    ("text", "seen"),
    [("plain ü", "plain ü"), ("a\u202eb", "a\u2039U+202E\u203ab"), ("\0\n", "\u2039U+0000\u203a\u2039U+000A\u203a")],
)
def test_what_could_reorder_or_hide_is_written_out(text: str, seen: str) -> None:
    """A name that reads from right to left makes another name of its neighbour."""
    assert visible(text) == seen


def test_a_spreadsheet_takes_no_text_for_a_formula_and_keeps_numbers() -> None:
    """A CSV is opened with a double click."""
    columns = (Column("name", "Name", "text"), Column("n", "N"))
    rows = [{"name": text, "n": -1.5} for text in ("=1+1", " @x", "-1", "+1", "\t=1", "plain", 'quote"')]
    lines = csv_of(rows, columns).splitlines()
    assert lines[1:] == [
        "'=1+1,-1.5",
        "' @x,-1.5",
        "'-1,-1.5",
        "'+1,-1.5",
        "'\t=1,-1.5",
        "plain,-1.5",
        '"quote""",-1.5',
    ]


@pytest.mark.parametrize(
    ("value", "shows", "text"),
    [
        (None, "count", "\u2013"),
        (1234567.0, "count", "1,234,567"),
        (0.0, "share", "0 %"),
        (0.0042, "share", "0.42 %"),
        (1.0, "share", "100 %"),
        (1234.5, "ms", "1,234 ms"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "time", "2026-01-02 03:04:05"),
        (date(2026, 1, 2), "date", "2026-01-02"),
    ],
)
def test_a_cell_is_written_with_its_unit(value: object, shows: str, text: str) -> None:
    assert shown(value, Column("x", "X", shows)) == text  # type: ignore[arg-type]


def test_ids_are_numbers_until_somebody_asks() -> None:
    rows = [{"organization_id": "73475cb40a568e8d", "people": 9}]
    assert masked(rows, QUESTIONS["organizations"].columns) == [{"organization_id": "number 1", "people": 9}]


def test_a_line_has_a_gap_where_a_value_is_hidden() -> None:
    """A line through a hidden value would tell it."""
    day = date(2026, 3, 2)
    people = (6, 7, None, 8)
    rows = [
        {"period": day + timedelta(days=n), "users": count, "new_users": None, "returning_users": None}
        for n, count in enumerate(people)
    ]
    picture = str(drawn(QUESTIONS["active"], rows))
    [path] = [part for part in picture.split("<path")[1:] if 'class="line s1"' in part]
    assert (path.count("M"), path.count("L")) == (2, 1)
    assert "2026-03-04" not in picture
