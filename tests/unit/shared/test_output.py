"""Help texts: what they name can be called."""

import sys

import pytest
import typer
from typer.testing import CliRunner

from shared.output import lay_out_help


@pytest.mark.parametrize(
    ("called", "example"),
    [
        ("/venv/bin/telemetry", "telemetry consumer status"),
        ("/venv/bin/telemetry-consumer", "telemetry consumer status"),
        ("/clone/consumer/__main__.py", "python -m consumer status"),
    ],
)
def test_examples_name_the_program_that_was_called(monkeypatch: pytest.MonkeyPatch, called: str, example: str) -> None:
    """`python -m consumer` finds no module where the wheel is installed."""
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def status() -> None:
        """Show it.

        Example: python -m consumer status
        """

    monkeypatch.setattr(sys, "argv", [called])
    lay_out_help(app)
    assert f"\n    {example}\n" in CliRunner().invoke(app, ["--help"]).stdout
