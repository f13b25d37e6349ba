"""Enough of PromQL for our alert rules, over scrapes that a test took: what Prometheus would say of them.

Not Prometheus: a range is all the scrapes given, whatever it says, and nothing is extrapolated to its ends, so a
rate may differ by the time between two scrapes. Whether it is zero, and a ratio of two, are the same. `for` is not
waited for. An expression of a shape that is not here raises.
"""

import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import promql_parser as parser
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggModifierType, MatchOp

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]


@dataclass(frozen=True)
class Scrape:
    """All series of all targets at one time, each with its name among its labels."""

    at: float
    series: Vector


def scrape(targets: Mapping[str, str]) -> Scrape:
    """Ask each job's /metrics as Prometheus does; `up` says which did not answer."""
    series: Vector = {}
    for job, url in targets.items():
        target = {"job": job, "instance": url.split("/")[2]}
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
        except (OSError, urllib.error.URLError):
            families = []
        series[_labels({"__name__": "up", **target})] = float(bool(families))
        for family in families:
            for sample in family.samples:
                series[_labels({"__name__": sample.name, **sample.labels, **target})] = sample.value
    return Scrape(time.monotonic(), series)


def evaluated(expression: str, scrapes: Sequence[Scrape]) -> Vector:
    """The instant vector at the last scrape; empty: an alert on it would not fire."""
    found = _value(parser.parse(expression), scrapes)
    assert isinstance(found, dict), expression
    return found


def _value(node: Any, scrapes: Sequence[Scrape]) -> Vector | float:
    match type(node).__name__:
        case "NumberLiteral":
            return float(node.val)
        case "ParenExpr":
            return _value(node.expr, scrapes)
        case "VectorSelector":
            return _selected(node, scrapes[-1])
        case "Call":
            return _called(node, scrapes)
        case "AggregateExpr":
            return _aggregated(node, scrapes)
        case "BinaryExpr":
            return _combined(node, _value(node.lhs, scrapes), _value(node.rhs, scrapes))
    raise NotImplementedError(node)


def _selected(node: Any, at: Scrape) -> Vector:
    def is_meant(labels: dict[str, str]) -> bool:
        return labels["__name__"] == node.name and all(
            _MATCHES[str(matcher.op)](labels.get(matcher.name, ""), matcher.value) for matcher in node.matchers.matchers
        )

    return {labels: value for labels, value in at.series.items() if is_meant(dict(labels))}


_MATCHES: dict[str, Callable[[str, str], bool]] = {
    str(MatchOp.Equal): lambda value, wanted: value == wanted,
    str(MatchOp.NotEqual): lambda value, wanted: value != wanted,
    str(MatchOp.Re): lambda value, wanted: re.fullmatch(wanted, value) is not None,
    str(MatchOp.NotRe): lambda value, wanted: re.fullmatch(wanted, value) is None,
}


def _called(node: Any, scrapes: Sequence[Scrape]) -> Vector:
    [argument] = node.args
    match node.func.name:
        case "absent":
            return {} if _value(argument, scrapes) else {frozenset(): 1.0}
        case "rate":
            return _increases(argument, scrapes, per_second=True)
        case "increase":
            return _increases(argument, scrapes, per_second=False)
    raise NotImplementedError(node)


def _increases(node: Any, scrapes: Sequence[Scrape], *, per_second: bool) -> Vector:
    """Of each series that at least two scrapes have; a counter that fell has begun anew."""
    history: dict[Labels, list[tuple[float, float]]] = {}
    for at in scrapes:
        for labels, value in _selected(node.vector_selector, at).items():
            history.setdefault(labels, []).append((at.at, value))
    found: Vector = {}
    for labels, values in history.items():
        if len(values) > 1:
            steps = pairwise(values)
            grown = sum(after - before if after >= before else after for (_, before), (_, after) in steps)
            found[_without_name(labels)] = grown / (values[-1][0] - values[0][0] if per_second else 1.0)
    return found


def _aggregated(node: Any, scrapes: Sequence[Scrape]) -> Vector:
    inner = _value(node.expr, scrapes)
    assert isinstance(inner, dict)
    assert node.modifier is None or node.modifier.type == AggModifierType.By
    by = set(node.modifier.labels) if node.modifier else set()
    groups: dict[Labels, list[float]] = {}
    for labels, value in inner.items():
        groups.setdefault(frozenset(label for label in labels if label[0] in by), []).append(value)
    act: Callable[[list[float]], float] = {"sum": sum, "max": max, "min": min}[str(node.op)]
    return {labels: act(values) for labels, values in groups.items()}


def _combined(node: Any, left: Vector | float, right: Vector | float) -> Vector:
    assert node.modifier is None or node.modifier.matching is None, "on() and ignoring() are not here"
    assert isinstance(left, dict)
    operator = str(node.op)
    if operator in _COMPARED:
        assert isinstance(right, float)
        return {labels: value for labels, value in left.items() if _COMPARED[operator](value, right)}
    assert isinstance(right, dict)
    theirs = {_without_name(labels): value for labels, value in right.items()}
    if operator == "or":
        ours = {_without_name(labels) for labels in left}
        return left | {labels: value for labels, value in right.items() if _without_name(labels) not in ours}
    if operator == "unless":
        return {labels: value for labels, value in left.items() if _without_name(labels) not in theirs}
    both = {_without_name(labels): value for labels, value in left.items() if _without_name(labels) in theirs}
    return {labels: _COMPUTED[operator](value, theirs[labels]) for labels, value in both.items()}


_COMPARED: dict[str, Callable[[float, float], bool]] = {
    "==": lambda one, other: one == other,
    ">": lambda one, other: one > other,
    "<": lambda one, other: one < other,
}
_COMPUTED: dict[str, Callable[[float, float], float]] = {
    "+": lambda one, other: one + other,
    "/": lambda one, other: one / other if other else float("nan"),  # compared with anything, nan is false
}


def _labels(labels: Mapping[str, str]) -> Labels:
    return frozenset(labels.items())


def _without_name(labels: Labels) -> Labels:
    return frozenset(label for label in labels if label[0] != "__name__")
