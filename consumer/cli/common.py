"""What all commands share: the application, options, progress, and how an error becomes words and an exit code."""

import asyncio
import math
import re
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from consumer.operations.operation import DatabaseRefused, Refused, WrongUse, say
from consumer.settings import ConsumerSettings
from shared import logs
from shared.errors import Transient, WrongTopic
from shared.settings import load

T = TypeVar("T")
S = TypeVar("S", bound=ConsumerSettings)
DONE, PROBLEM, WRONG, UNREACHED = range(4)
RATE_MAX = 10_000_000

app = typer.Typer(no_args_is_help=False, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter("a number is needed")
    return value


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what the command would do, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation at a terminal.")]
Rate = Annotated[
    float, typer.Option(min=0, max=RATE_MAX, callback=_finite, help="Maximum records a second; 0: no limit.")
]


def run_command(work: Coroutine[Any, Any, T]) -> T:
    """Run the command's work. An error becomes a sentence on standard error and an exit code."""
    try:
        return asyncio.run(work)
    except WrongUse as error:
        say(str(error))
        raise typer.Exit(WRONG) from None
    except DatabaseRefused as error:
        say(str(error))
        raise typer.Exit(PROBLEM) from None
    except (Refused, WrongTopic) as error:
        say(f"refused: {error}")
        raise typer.Exit(PROBLEM) from None
    except Transient as error:
        say(f"not reached: {error}")
        raise typer.Exit(UNREACHED) from None


def settings_of_command() -> ConsumerSettings:
    return loaded(ConsumerSettings)


def loaded(settings_type: type[S]) -> S:
    settings = load(settings_type)
    logs.configure("ERROR", process="consumer", log_format=settings.log_format)
    return settings


def confirm(plan: Callable[[], str], *, yes: bool) -> None:
    """At a terminal, say what would be done and ask; without a terminal, or with --yes, go on.

    `plan` makes the dry run, and is called only when somebody is asked.

    Raises:
        typer.Exit: the answer was no.
    """
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    say(plan())
    if not typer.confirm("Go on?", err=True):
        say("nothing was done")
        raise typer.Exit(PROBLEM)


def place_of(text: str) -> tuple[int, int]:
    """PARTITION:OFFSET."""
    if not re.fullmatch(r"\d{1,9}:\d{1,18}", text):
        raise typer.BadParameter(f"{text} is not PARTITION:OFFSET, as 3:1200")
    partition, _, offset = text.partition(":")
    return int(partition), int(offset)


def time_of(text: str | None) -> datetime | None:
    """Parse an ISO 8601 time; without a zone it is UTC."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text} is no time, as 2026-11-24T08:00:00Z") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """How much is done, with the time left; on a terminal a bar, and elsewhere a line now and then."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=None)
        last_said = 0

        def show(done: int, total: int) -> None:
            nonlocal last_said
            bar.update(task, completed=done, total=total or None)
            if not console.is_terminal and (done >= last_said + 100_000 or done == total > last_said):
                last_said = done
                say(f"{done}{f' of {total}' if total else ''} {unit}")

        yield show
