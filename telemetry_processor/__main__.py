"""The command `telemetry`: the processes, the migrations, the settings. A part is imported when it is asked for."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from telemetry_processor import first_on_the_path

first_on_the_path()
from shared.errors import WrongSetting  # noqa: E402  found on the path that was just set
from shared.output import Version, lay_out_help  # noqa: E402

WRONG = 2
# The arguments belong to the part: it has its own options and its own --help.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
config = typer.Typer(no_args_is_help=True, help="Check the settings.")
app.add_typer(config, name="config")


@app.callback()
def default(*, version: Version = False) -> None:  # its callback answers
    """Turn OpenTelemetry spans into product analytics in Postgres.

    Settings come from the environment and from .env in this folder.

    Examples: telemetry migrate
              telemetry receiver
              telemetry consumer status
    """


@app.command(context_settings=PASSED_ON)
def receiver(context: typer.Context) -> None:
    """Receive OTLP spans and publish events to Kafka."""
    from receiver.__main__ import main as run  # noqa: PLC0415  each part brings its own metrics

    _hand_over("receiver", context.args, run)


@app.command(context_settings=PASSED_ON)
def consumer(context: typer.Context) -> None:
    """Store Kafka's events as rows in Postgres."""
    from consumer.__main__ import main as run  # noqa: PLC0415

    _hand_over("consumer", context.args, run)


@app.command(context_settings=PASSED_ON)
def viewer(context: typer.Context) -> None:
    """Serve the page that shows the numbers."""
    from viewer.__main__ import main as run  # noqa: PLC0415

    _hand_over("viewer", context.args, run)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def migrate(
    context: typer.Context,
    *,
    wait_seconds: Annotated[
        float, typer.Option(min=0, envvar="MIGRATE_WAIT_SECONDS", help="How long to wait for the database.")
    ] = 60.0,
) -> None:
    """Wait for the database, then migrate it to the newest revision. To run it again is harmless.

    Exit: 0 done, 1 the migration failed, 2 a bad setting, 3 no database.

    Examples: telemetry migrate
              telemetry migrate downgrade -1
              telemetry migrate current
    """
    from telemetry_processor.migrations import migrated  # noqa: PLC0415

    raise typer.Exit(migrated(context.args or ["upgrade", "head"], wait_s=wait_seconds))


@config.command()
def check(
    parts: Annotated[list[str] | None, typer.Argument(help="receiver, consumer, viewer; default: all.")] = None,
) -> None:
    """Say what is wrong with the settings. Each part reads them as at its start; exits 2 when one would not start.

    Examples: telemetry config check
              telemetry config check receiver
    """
    from telemetry_processor.settings_check import checked  # noqa: PLC0415

    raise typer.Exit(checked(parts or []))


def _hand_over(part: str, arguments: list[str], run: Callable[[], None]) -> None:
    sys.argv = [f"telemetry {part}", *arguments]
    run()


def main() -> None:
    """The console script."""
    try:
        app()
    except WrongSetting as error:
        typer.echo(f"telemetry: {error}", err=True)
        sys.exit(WRONG)


def run_receiver() -> None:
    """The console script telemetry-receiver."""
    _run_part("receiver")


def run_consumer() -> None:
    """The console script telemetry-consumer."""
    _run_part("consumer")


def run_viewer() -> None:
    """The console script telemetry-viewer."""
    _run_part("viewer")


def _run_part(part: str) -> None:
    sys.argv[1:1] = [part]
    main()


lay_out_help(app)

if __name__ == "__main__":
    main()
