"""What the pages tell people to type, set and watch exists: commands, options, settings, metrics, tests."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer.main
from prometheus_client.metrics import MetricWrapperBase
from typer.core import TyperGroup
from typer.exceptions import TyperException

import consumer.__main__  # adds `run` to the commands
import consumer.cli.commands
import consumer.metrics
import receiver.__main__
import receiver.metrics
import viewer.metrics
from consumer.settings import ConsumerSettings
from receiver.settings import ReceiverSettings
from viewer.settings import ViewerSettings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "deploy").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
APPS = {
    "receiver": typer.main.get_command(receiver.__main__.app),
    "consumer": typer.main.get_command(consumer.cli.commands.app),
}
COMMAND = re.compile(r"python -m (receiver|consumer)\b([^`\n|#]*)")
# In prose the program alone is named: `consumer audit`. Words after it that are no command are no command line.
SHORT = re.compile(r"`(receiver|consumer) ([a-z][^`]*)`")

INDEX = ROOT / "docs/README.md"
ASKED = ("Where is my span", "Why was it ignored", "add a table", "change the hash key", "replay a day")
ASKED += ("delete a user", "How many consumers", "What is promised", "dies")


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def command_lines(page: str) -> list[tuple[str, list[str]]]:
    """(program, arguments) of each command line, with lines that end in a backslash joined."""
    page = re.sub(r"^```diff\n.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)  # adds what is not there yet
    joined = re.sub(r"\\\n\s*", " ", page)
    joined = re.sub(r"python\n(?=-m (?:receiver|consumer))", "python ", joined)
    found = [(program, rest) for program, rest in COMMAND.findall(joined)] + SHORT.findall(joined)
    return [(program, arguments(rest)) for program, rest in found]


def arguments(rest: str) -> list[str]:
    """Up to a redirection, a second command, or the end of the sentence."""
    rest = re.split(r"\s[>&;]|[;>]", rest)[0].strip().rstrip(".,:)\"'")
    return [word for word in shlex.split(rest) if word != "..."]


def complaint(program: str, words: list[str]) -> str:
    """What the program would say to this command line, "" when nothing; parses as typer does, and runs nothing."""
    command = APPS[program]
    while isinstance(command, TyperGroup) and words:
        name, *words = words
        if name not in command.commands:
            return f"there is no command {name}"
        command = command.commands[name]
    is_mentioned = not words  # `dead-letters`, or `receiver explain`, in a sentence about it
    if is_mentioned:
        return ""
    try:
        command.make_context(program, list(words))
    except TyperException as error:
        return str(error.format_message())
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_of_a_page_parses(name: str) -> None:
    """An operator at night copies it; "no such option" is the wrong answer then."""
    lines = command_lines(text_of(name))
    said = {f"{program} {' '.join(words)}": complaint(program, words) for program, words in lines}
    assert {line: text for line, text in said.items() if text} == {}


def test_the_parser_of_command_lines_finds_them_and_can_say_no() -> None:
    """A check that passes everything checks nothing."""
    page = "`python -m consumer rewind --to-offset 3:1 --dry-run`, and\n    python -m receiver explain x.json > y\n"
    assert command_lines(page) == [
        ("consumer", ["rewind", "--to-offset", "3:1", "--dry-run"]),
        ("receiver", ["explain", "x.json"]),
    ]
    for wrong in (["rewind", "--to-yesterday"], ["replay"], ["dead-letters", "drop"], ["retain", "--days"]):
        assert complaint("consumer", wrong), wrong
    assert sum(len(command_lines(text_of(name))) for name in NAMES) > 40


# ---- settings

SETTINGS = {
    field.upper() for model in (ReceiverSettings, ConsumerSettings, ViewerSettings) for field in model.model_fields
}
NOT_SETTINGS = {
    # read by SDKs: the OpenTelemetry specification's names
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_COMPRESSION"),
    *("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
    *("OTEL_EXPORTER_OTLP_CLIENT_KEY", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"),
    *("OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"),
    *("SO_REUSEPORT", "SCHEMA_VERSION", "SCHEMA_REVISION"),  # of sockets; of our own code
}
CODES = set(receiver.metrics.CODES) | {"RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INTERNAL"}
# Read by what we deploy and not by us: the name must stand in one of these.
DEPLOYED = "".join(
    path.read_text()
    for pattern in ("*.sql", "*.sh", "*.yaml", "*.yml", "*.txt")
    for path in sorted((ROOT / "deploy").rglob(pattern))
) + text_of("docker-compose.yml")


def unknown_settings(page: str) -> set[str]:
    """What looks like a setting, in backticks or set in a command line, and is none that anybody reads."""
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", page))
    named |= set(re.findall(r"\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)=", page))
    unexplained = named - SETTINGS - NOT_SETTINGS - CODES
    return {name for name in unexplained if not re.search(rf"\b{name}\b", DEPLOYED)}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_that_a_page_names_exists(name: str) -> None:
    """A variable that nobody reads is set in vain, and nothing says so."""
    assert unknown_settings(text_of(name)) == set()


def test_a_setting_that_does_not_exist_is_found() -> None:
    assert unknown_settings("`RETENTION_HOURS`, `RETENTION_DAYS=9`, `KAFKA_TOPICS=3`, CONSUMER_ROWS=1") == {
        "RETENTION_HOURS",
        "KAFKA_TOPICS",
        "CONSUMER_ROWS",
    }


# ---- metrics


def series() -> set[str]:
    """Every series that our processes serve."""
    suffixes = {"counter": ["_total"], "histogram": ["", "_bucket", "_sum", "_count"]}
    return {
        metric._name + suffix
        for module in (receiver.metrics, consumer.metrics, viewer.metrics)
        for metric in vars(module).values()
        if isinstance(metric, MetricWrapperBase)
        for suffix in suffixes.get(metric._type, [""])
    }


def logged_events() -> set[str]:
    """Names of log lines; `receiver_started` looks like a metric."""
    sources = [
        path for folder in ("receiver", "consumer", "shared", "viewer") for path in (ROOT / folder).rglob("*.py")
    ]
    return {name for path in sources for name in re.findall(r'log\.\w+\(\s*"([a-z_]+)"', path.read_text())}


def unknown_metrics(page: str) -> set[str]:
    named = set(re.findall(r"`((?:receiver|consumer|viewer)_[a-z_]+)(?:\{[^`]*\})?`", page))
    return named - series() - logged_events()


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_that_a_page_names_is_served(name: str) -> None:
    """A panel or an alert on a metric of another name shows nothing, which looks like health."""
    assert unknown_metrics(text_of(name)) == set()


def test_a_metric_that_does_not_exist_is_found() -> None:
    assert unknown_metrics('`consumer_lag_seconds`, `consumer_lag`, `receiver_requests_total{code="OK"}`') == {
        "consumer_lag"
    }


# ---- tests that pages name as proof


@pytest.mark.parametrize("name", NAMES)
def test_every_test_that_a_page_names_is_in_the_file_beside_it(name: str) -> None:
    """A guarantee without its test is a hope."""
    page = text_of(name)
    for path, named in re.findall(r"\]\(((?:\.\./)*tests/\S+?\.py)\)\s+`(test_\w+)`", page):
        source = ast.parse((ROOT / name).parent.joinpath(path).resolve().read_text())
        defined = {node.name for node in ast.walk(source) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert named in defined, f"{path} has no {named}"
    named_anywhere = set(re.findall(r"`(test_[a-z_0-9]+)`", page))
    known = {
        found
        for path in (ROOT / "tests").rglob("test_*.py")
        for found in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named_anywhere <= known


# ---- the index


def questions() -> list[str]:
    return [line for line in INDEX.read_text().splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("asked", ASKED)
def test_the_index_answers_what_people_ask_first(asked: str) -> None:
    """A newcomer finds the answer within a minute, or asks somebody."""
    assert any(asked in question for question in questions())


def test_every_question_of_the_index_leads_to_a_section() -> None:
    """The links themselves are tried with those of all other pages."""
    for question in questions():
        assert re.search(r"\? \[[^\]]+\]\([^)\s]+\.md(#[\w-]+)?\)", question), question


def test_every_page_is_reached_from_the_index() -> None:
    """A page that nobody is led to is not read."""
    linked = {(INDEX.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", INDEX.read_text())}
    assert {page for page in (ROOT / "docs").rglob("*.md") if page != INDEX} <= linked


def test_the_readme_leads_to_the_index() -> None:
    assert "](docs/README.md)" in text_of("README.md").split("## More")[1]
