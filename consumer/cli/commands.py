"""The operator's commands. Exit: 0 done, 1 found a problem, 2 wrong use or setting, 3 could not reach a server.

And 141 when the reader of the output has left, as in `export | head`.
"""

import sys

import typer

from consumer.cli import dead_letters, look, replay, subjects
from consumer.cli.common import WRONG, app
from shared.errors import WrongSetting

__all__ = ["app", "dead_letters", "look", "main", "replay", "subjects"]


def main() -> None:
    """The console script."""
    try:
        app()
    except WrongSetting as error:
        typer.echo(f"consumer: {error}", err=True)
        sys.exit(WRONG)
