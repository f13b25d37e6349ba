"""python -m deploy.local run | stack | lock"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.local import jars, stack
from deploy.local.server import StackError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Folder = Annotated[Path, typer.Option(help="Where data, logs and stack.env are kept.")]
Seconds = Annotated[float | None, typer.Option(help="Stop after so many seconds.", min=0)]
Rate = Annotated[float, typer.Option(help="Demo traffic: spans a second.", min=0.1, max=2000)]
Demo = Annotated[bool, typer.Option(help="Send demo traffic.")]


@app.command()
def run(*, folder: Folder = stack.ROOT / ".local", seconds: Seconds = None, rate: Rate = 20, demo: Demo = True) -> None:
    """Start Kafka, Postgres, receiver, consumer, the page and demo traffic. Ctrl-C stops all of it."""
    stack.run_all(folder, seconds, spans_per_second=rate if demo else None)


@app.command("stack")
def servers(*, folder: Folder = stack.ROOT / ".local", seconds: Seconds = None) -> None:
    """Start Kafka and Postgres alone. Ctrl-C stops them."""
    stack.run_servers(folder, seconds)


@app.command()
def lock() -> None:
    """Pin Kafka's jars anew, after a change of version in jars.py."""
    jars.lock()


if __name__ == "__main__":
    try:
        app()
    except StackError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(1)
