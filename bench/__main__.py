"""python -m bench SUITE ...: figures of this machine, in turns with peers on the same servers: docs/performance.md."""

import asyncio
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import consumers, receivers
from bench.report import Report
from bench.servers import servers

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PLOTTED = (("receiver", "spans/s"), ("receiver", "us/span"), ("consumer", "rows/s"), ("consumer", "us/row"))


class Suite(StrEnum):
    RECEIVER = "receiver"
    CONSUMER = "consumer"


@app.command()
def main(
    suites: Annotated[list[Suite] | None, typer.Argument(help="What to measure; by default all but growth.")] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="The main cases alone, and short.")] = False,
    repetitions: Annotated[int, typer.Option(help="Turns of each case.", min=1, max=100)] = 3,
    json_: Annotated[Path | None, typer.Option("--json", help="Write all values there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG there.")] = None,
) -> None:
    """Measure, and print the figures with their goals. A missed goal is shown, and is no failure."""
    report = Report(Console(width=160))
    started_at = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder = Path(name)
            folder.chmod(0o711)  # under root Postgres runs as nobody, who has to pass
            asyncio.run(_measure(folder, report, suites or list(Suite), is_quick=quick, repetitions=repetitions))
    finally:
        report.show()  # what was measured until something failed, too
    seconds = round(time.monotonic() - started_at)
    report.say(f"in {seconds} s")
    if json_:
        report.write_json(json_, is_quick=quick, repetitions=repetitions, seconds=seconds)
    if plot:
        report.write_plot(plot, PLOTTED)


async def _measure(folder: Path, report: Report, suites: list[Suite], *, is_quick: bool, repetitions: int) -> None:
    async with servers(folder) as running:
        if Suite.RECEIVER in suites:
            await receivers.measure(running, report, is_quick=is_quick, repetitions=repetitions)
        if Suite.CONSUMER in suites:
            await consumers.measure(running, report, is_quick=is_quick, repetitions=repetitions)


if __name__ == "__main__":
    app()
