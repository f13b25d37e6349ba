"""python -m bench SUITE ...: figures of this machine, in turns with peers on the same servers: docs/performance.md."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import consumers, growth, page, path, receivers, storage
from bench.report import Report
from bench.servers import servers

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PLOTTED = (
    ("receiver", "spans/s"),
    ("receiver", "us/span"),
    ("consumer", "rows/s"),
    ("consumer", "us/row"),
    ("receive to row", "p50 ms"),
    ("receive to row", "p99 ms"),
    ("growth", "a second"),
    ("growth", "us of CPU"),
)


class Suite(StrEnum):
    RECEIVER = "receiver"
    CONSUMER = "consumer"
    PATH = "path"
    GROWTH = "growth"
    STORAGE = "storage"
    PAGE = "page"


GROWN = [0, 1_000_000]
USUAL = (Suite.RECEIVER, Suite.CONSUMER, Suite.PATH)
QUICK = (Suite.RECEIVER, Suite.CONSUMER)
REPETITIONS = 3


@dataclass(frozen=True, slots=True)
class Options:
    suites: Sequence[Suite]
    is_quick: bool
    repetitions: int
    rows: Sequence[int]
    collector: str | None


@app.command()
def main(
    suites: Annotated[
        list[Suite] | None, typer.Argument(help="What to measure; by default the first three, and quick the first two.")
    ] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="The main cases alone, and short.")] = False,
    repetitions: Annotated[int, typer.Option(help="Turns of each case.", min=1, max=100)] = REPETITIONS,
    rows: Annotated[
        list[int], typer.Option(help="growth, storage, page: rows before; may be repeated.", min=0)
    ] = GROWN,
    collector: Annotated[Path | None, typer.Option(help="receiver: beside this OpenTelemetry Collector, too.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write all values there.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables there, for a page.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG there.")] = None,
) -> None:
    """Measure, and print the figures with their goals. A missed goal is shown, and is no failure."""
    options = Options(
        suites or (QUICK if quick else USUAL), quick, repetitions, rows, str(collector) if collector else None
    )
    report = Report(Console(width=160))
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # ends what was started, as Ctrl-C
    started_at = time.monotonic()
    report.remark(f"Python {sys.version}")
    report.remark(
        f"processes that wanted a CPU in the minute before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder = Path(name)
            folder.chmod(0o711)  # under root Postgres runs as nobody, who has to pass
            asyncio.run(_measure(folder, report, options))
    finally:  # what was measured until something failed is shown, too
        seconds = round(time.monotonic() - started_at)
        report.show()
        report.say(f"done in {seconds} s")
        if json_:
            report.write_json(json_, **asdict(options), seconds=seconds)
        if markdown:
            report.write_markdown(markdown)
        if plot:
            report.write_plot(plot, PLOTTED)


async def _measure(folder: Path, report: Report, options: Options) -> None:
    is_quick, repetitions = options.is_quick, options.repetitions
    async with servers(folder) as running:
        report.say("Kafka and Postgres are up")
        if Suite.RECEIVER in options.suites:
            await receivers.measure(
                running,
                report,
                is_quick=is_quick,
                repetitions=repetitions,
                collector=Path(options.collector) if options.collector else None,
            )
        if Suite.CONSUMER in options.suites:
            await consumers.measure(running, report, is_quick=is_quick, repetitions=repetitions)
        if Suite.PATH in options.suites:
            await path.measure(running, report, is_quick=is_quick, repetitions=repetitions)
        if Suite.GROWTH in options.suites:
            rows = tuple(dict.fromkeys([0, *sorted(options.rows)]))  # the empty table gives COPY its rows
            await growth.measure(running, report, rows=rows, repetitions=repetitions)
        if Suite.STORAGE in options.suites:
            await storage.measure(running, report, rows=max(options.rows))
        if Suite.PAGE in options.suites:
            await page.measure(running, report, rows=max(options.rows))


if __name__ == "__main__":
    app()
