"""For the commands of both programs: text on standard output, `--version`, and the layout of help."""

import inspect
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from pydantic import HttpUrl, TypeAdapter

READER_LEFT = 141  # 128 + SIGPIPE: what a shell shows of any program that this happens to


def write_out(text: str) -> None:
    """Print the text as lines, at once.

    Raises:
        typer.Exit: the reader has left. Ends the command silently, with READER_LEFT.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail again when Python flushes it at the end, with an exit code of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(READER_LEFT) from None


def _print_version(is_wanted: bool) -> None:  # noqa: FBT001  typer's callback
    if is_wanted:
        try:
            number = version("telemetry-processor")
        except PackageNotFoundError:  # run from a folder that was never installed
            number = "unknown, as the package is not installed"
        write_out(number)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
]


def http_address(url: str | None) -> str | None:
    """Check an option that takes an address, for typer. urllib alone would also open `file:` and `ftp:`.

    Raises:
        typer.BadParameter: that is no http or https address.
    """
    if url is None:
        return None
    try:
        return str(_http_url.validate_python(url))
    except ValueError:
        raise typer.BadParameter("give an http or https address, as http://127.0.0.1:9464/readyz") from None


_http_url = TypeAdapter(HttpUrl)
_EXAMPLES = re.compile(r"\n(Examples?:) *(?=\S)")


def lay_out_help(app: typer.Typer) -> None:
    """Give every command's examples lines of their own: typer (0.2x) fills paragraphs, except behind a backspace.

    In an installation `python -m consumer` finds no module, so examples name the script that was called.
    """
    for command in app.registered_commands:
        command.help = _laid_out(command.help or inspect.getdoc(command.callback) or "")
    for group in app.registered_groups:
        if group.typer_instance:
            lay_out_help(group.typer_instance)
            group.typer_instance.info.help = _laid_out(group.typer_instance.info.help or "")
    if callback := app.registered_callback:
        callback.help = _laid_out(inspect.getdoc(callback.callback) or "")


def _laid_out(text: str) -> str:
    found = _EXAMPLES.search(text)
    if found is None:
        return text
    examples = text[found.end() :]
    if Path(sys.argv[0]).name.startswith("telemetry"):
        examples = examples.replace("python -m ", "telemetry ")
    lines = [line.strip() for line in examples.splitlines()]
    return text[: found.start()] + f"\n\b\n{found[1]}\n" + "\n".join(f"  {line}" for line in lines if line)
