"""Commands for records that could not become rows."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from consumer.cli.common import (
    DONE,
    PROBLEM,
    AsJson,
    DryRun,
    Rate,
    app,
    place_of,
    progress_bar,
    run_command,
    settings_of_command,
    time_of,
)
from consumer.operations import redrive as redriving
from consumer.operations.operation import answer, database_alone, told
from shared.errors import DeadLetterReason

commands = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, show and redrive records that could not become rows.\n\n"
    "Example: python -m consumer dead-letters list --reason invalid_fields",
)
app.add_typer(commands, name="dead-letters")

Reason = Annotated[DeadLetterReason | None, typer.Option(help="Only dead letters with this reason.")]
Since = Annotated[
    str | None, typer.Option(help="Only records received at or after this time, such as 2026-11-24T08:00:00Z.")
]
Until = Annotated[str | None, typer.Option(help="Only records received before this time.")]
Place = Annotated[str | None, typer.Option(help="Only the dead letter at PARTITION:OFFSET.")]


@commands.command("list")
def dead_letters_list(
    *,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    place: Place = None,
    redriven: Annotated[bool, typer.Option("--redriven", help="Only dead letters that a redrive has settled.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Maximum number of dead letters.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters: place, reason, time and size.

    Example: python -m consumer dead-letters list --reason newer_schema
    """
    settings = settings_of_command()
    chosen = filter_of(reason, since, until, place, redriven=redriven)

    async def work() -> list[dict[str, Any]]:
        async with database_alone(settings, "dead-letters") as connection:
            return await redriving.listed(connection, chosen, limit=limit)

    found = run_command(work())
    text = "\n".join(
        f"{each['partition']}:{each['offset']} {each['reason']} {each['record_time']} {each['bytes']} bytes"
        for each in found
    )
    answer({"dead_letters": found}, as_json=as_json, text=text or "no dead letter matches")


@commands.command("show")
def dead_letters_show(
    place: Annotated[str, typer.Argument(help="PARTITION:OFFSET, as list prints it.")], *, as_json: AsJson = False
) -> None:
    """Show the whole dead letter at PARTITION:OFFSET. Exits 1 when there is none.

    Example: python -m consumer dead-letters show 3:1200
    """
    settings = settings_of_command()

    async def work() -> list[dict[str, Any]]:
        async with database_alone(settings, "dead-letters") as connection:
            return await redriving.shown(connection, *place_of(place))

    found = run_command(work())
    text = "\n\n".join("\n".join(f"{name}: {told(value)}" for name, value in each.items()) for each in found)
    answer({"dead_letters": found}, as_json=as_json, text=text or f"no dead letter at {place}")
    raise typer.Exit(DONE if found else PROBLEM)


@commands.command("redrive")
def dead_letters_redrive(
    *,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    place: Place = None,
    rate: Rate = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Decode dead letters again. Stores those that are events for today's code; exits 1 when some still fail.

    Example: python -m consumer dead-letters redrive --reason newer_schema --dry-run
    """
    settings = settings_of_command()
    chosen = filter_of(reason, since, until, place, redriven=False)

    async def work() -> redriving.Redriven:
        async with database_alone(settings, "dead-letters") as connection:
            with progress_bar("dead letters") as progress:
                return await redriving.redrive(
                    connection,
                    chosen,
                    dry_run=dry_run,
                    rate=rate,
                    retention_days=settings.retention_days,
                    progress=lambda count: progress(count, 0),
                )

    done = run_command(work())
    still = dict(done.still)
    counts = {name: count for name, count in asdict(done).items() if name != "still"}
    lines = [f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()]
    lines += [f"still a dead letter, {reason}: {count}" for reason, count in still.items()]
    text = "\n".join(lines + ["dry run: nothing was changed"] * dry_run)
    answer({**counts, "still": still, "dry_run": dry_run}, as_json=as_json, text=text)
    raise typer.Exit(PROBLEM if still else DONE)


def filter_of(
    reason: str | None, since: str | None, until: str | None, place: str | None, *, redriven: bool
) -> redriving.Filter:
    partition, offset = place_of(place) if place else (None, None)
    return redriving.Filter(reason, time_of(since), time_of(until), partition, offset, redriven=redriven)
