"""docs/logs.md lists every line that our code logs, with its level and keys, and no other."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path for folder in ("receiver", "consumer", "shared", "viewer") for path in sorted((ROOT / folder).rglob("*.py"))
]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


@dataclass(frozen=True)
class Line:
    """One kind of log line."""

    event: str
    level: str
    keys: frozenset[str]
    has_error: bool


def logged(tree: ast.AST) -> Iterator[Line]:
    """Every `log.level(...)`; its first argument must be a literal, or the list could not be closed."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
            continue
        if ast.unparse(node.func.value) != "log" and "get_logger(" not in ast.unparse(node.func.value):
            continue
        [event] = node.args
        assert isinstance(event, ast.Constant), ast.unparse(node)
        expanded = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is None]
        keys = frozenset(keyword.arg for keyword in node.keywords if keyword.arg)
        yield Line(event.value, node.func.attr, keys, any("error_facts(" in text for text in expanded))


def documented() -> list[Line]:
    table = (ROOT / "docs/logs.md").read_text().partition("## Events")[2]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| `.+$", table, re.MULTILINE)]
    return [
        Line(name.strip("`"), level, frozenset(re.findall(r"`(\w+)`", keys)), "an error" in keys)
        for name, level, _, _, keys in rows
    ]


def test_the_table_of_log_lines_is_the_code_both_ways() -> None:
    """Alerts on logs, and searches at night, are written from it: a name that is not logged finds nothing."""
    in_code = {line for path in SOURCES for line in logged(ast.parse(path.read_text()))}
    assert len({line.event for line in in_code}) > 30
    in_docs = documented()
    assert len(in_docs) == len(set(in_docs))
    assert sorted(in_docs, key=repr) == sorted(in_code, key=repr)


def test_an_event_says_what_happened_and_never_what_to_whom() -> None:
    """noun_verb, as a name to count by; a sentence, or a value in it, would be a new name each time."""
    for line in documented():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", line.event), line
        assert not line.keys & {"user_id", "organization_id", "key", "value", "span", "body"}, line


def test_the_reader_of_the_code_sees_a_line_its_level_and_its_keys() -> None:
    """A check that finds nothing passes everything."""
    code = 'log.warning("batch_failed", partition=1, **error_facts(error))\nother.warning("not_ours")'
    assert list(logged(ast.parse(code))) == [Line("batch_failed", "warning", frozenset({"partition"}), has_error=True)]
