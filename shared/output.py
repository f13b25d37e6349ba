"""text -> standard output of a command, whose reader may leave before the end, as `head` does."""

import sys

import typer

READER_LEFT = 141  # 128 + SIGPIPE: what a shell shows of any program that this happens to


def write_out(text: str) -> None:
    """Print the text as lines, at once.

    Raises:
        typer.Exit: nobody reads any more. Ends the command without a word, with READER_LEFT.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise typer.Exit(READER_LEFT) from None
