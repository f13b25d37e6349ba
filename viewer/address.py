"""The address's query -> what is asked for: so that a link is a view. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from urllib.parse import urlencode

from multidict import MultiMapping

DAYS = (7, 30, 90, 180)
DAYS_DEFAULT = 30
RANGE_DAYS_MAX = 1_100
STEPS = ("day", "week", "month")
WITHIN = {"1h": timedelta(hours=1), "1d": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}
FUNNEL_STEPS_MAX = 6
TEXT_MAX = 400
Query = MultiMapping[str]  # the parameters of an address, as aiohttp gives them
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class WrongAddress(ValueError):  # noqa: N818  the fate is the name
    """A parameter that cannot be read; the text names it and says what it may be."""


@dataclass(frozen=True, slots=True)
class View:
    """What a page shows. `until` is the first day that is left out."""

    since: date
    until: date
    days: int | None  # None: the dates are given
    zone: str
    step: str
    organization: str | None
    service: str | None
    deployment: str | None
    steps: tuple[str, ...]
    within: str
    shows_ids: bool

    def query(self, **changes: str | None) -> str:
        """The address's query of this view, or of one that differs in these parameters; None takes one away."""
        dates = {"days": str(self.days)} if self.days else {"from": str(self.since), "to": str(self.last_day)}
        kept: dict[str, str | None] = {
            **dates,
            "zone": None if self.zone == "UTC" else self.zone,
            "step": None if self.step == "day" else self.step,
            "organization": self.organization,
            "service": self.service,
            "deployment": self.deployment,
            "within": None if self.within == "7d" else self.within,
            "ids": "1" if self.shows_ids else None,
            **changes,
        }
        pairs = [(name, value) for name, value in kept.items() if value is not None]
        return urlencode(pairs + [("funnel", step) for step in self.steps])

    @property
    def last_day(self) -> date:
        return self.until - timedelta(days=1)

    def before(self) -> tuple[date, date]:
        """The range of the same length that ends where this one begins."""
        return self.since - (self.until - self.since), self.since


def zone_of(query: Query) -> str:
    return _text(query, "zone") or "UTC"


def view_of(query: Query, *, today: date) -> View:
    """What the address asks for. `today` is that of its zone.

    Raises:
        WrongAddress: the text is for the reader.
    """
    since, until, days = _range(query, today)
    steps = tuple(step for step in query.getall("funnel", []) if step.strip())
    if len(steps) > FUNNEL_STEPS_MAX or any(len(step) > TEXT_MAX for step in steps):
        raise WrongAddress(f"funnel: at most {FUNNEL_STEPS_MAX} steps of {TEXT_MAX} characters")
    if any("\0" in step for step in steps):
        raise WrongAddress("funnel: a step holds a NUL character")
    return View(
        since,
        until,
        days,
        zone_of(query),
        _one_of(query, "step", STEPS, "day"),
        _text(query, "organization"),
        _text(query, "service"),
        _text(query, "deployment"),
        steps,
        _one_of(query, "within", tuple(WITHIN), "7d"),
        query.get("ids", "") == "1",
    )


def _range(query: Query, today: date) -> tuple[date, date, int | None]:
    tomorrow = today + timedelta(days=1)
    given = {name: query.get(name, "").strip() for name in ("from", "to")}
    text = query.get("days", "").strip()  # of a form, which has dates as well: the number of days wins
    if text or not any(given.values()):
        text = text or str(DAYS_DEFAULT)
        if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= RANGE_DAYS_MAX:
            raise WrongAddress(f"days: a number from 1 to {RANGE_DAYS_MAX} is needed")
        return tomorrow - timedelta(days=int(text)), tomorrow, int(text)
    until = _date(given["to"], "to") + timedelta(days=1) if given["to"] else tomorrow
    since = _date(given["from"], "from") if given["from"] else until - timedelta(days=DAYS_DEFAULT)
    if not 0 < (until - since).days <= RANGE_DAYS_MAX:
        raise WrongAddress(
            f"from, to: the first day must not be after the last, and at most {RANGE_DAYS_MAX} days before it"
        )
    return since, until, None


def _date(text: str, name: str) -> date:
    try:
        found = date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        found = None
    if found is None or not 1970 <= found.year <= 2500:
        raise WrongAddress(f"{name}: a date such as 2026-11-30 is needed")
    return found


def _text(query: Query, name: str) -> str | None:
    text = query.get(name, "").strip()
    if len(text) > TEXT_MAX or "\0" in text:
        raise WrongAddress(f"{name}: at most {TEXT_MAX} characters, and no NUL")
    return text or None


def _one_of(query: Query, name: str, choices: Sequence[str], default: str) -> str:
    text = query.get(name, "").strip() or default
    if text not in choices:
        raise WrongAddress(f"{name}: one of {', '.join(choices)} is needed")
    return text
