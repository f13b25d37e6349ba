"""Commands that read the topic again: in place, or beside the live tables."""

from dataclasses import asdict
from typing import Annotated

import typer

from consumer.cli.common import (
    DONE,
    PROBLEM,
    WRONG,
    AsJson,
    DryRun,
    Rate,
    Yes,
    app,
    confirm,
    place_of,
    progress_bar,
    run_command,
    settings_of_command,
    time_of,
)
from consumer.operations import rewind as rewinding
from consumer.operations.operation import answer, operation, say
from consumer.rebuild import rebuild as rebuilding


@app.command()
def rewind(
    *,
    to_start: Annotated[bool, typer.Option("--to-start", help="Go to the first record of each partition.")] = False,
    to_time: Annotated[str | None, typer.Option(help="Go to the first record received at or after this time.")] = None,
    to_offset: Annotated[list[str] | None, typer.Option(help="Go to PARTITION:OFFSET; may be repeated.")] = None,
    accept_new_topic: Annotated[
        bool, typer.Option("--accept-new-topic", help="Adopt a topic that was deleted and created again.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Replay records into the live tables. Consumers may run. Nothing doubles, because each row is an upsert.

    Examples: python -m consumer rewind --to-time 2026-11-24T00:00:00Z
              python -m consumer rewind --to-offset 3:1200 --to-offset 4:900
              python -m consumer rewind --to-start --accept-new-topic
    """
    settings = settings_of_command()

    offsets = [place_of(text) for text in to_offset or ()]
    since = time_of(to_time)

    async def work(*, dry_run: bool) -> list[rewinding.Rewound]:
        target = rewinding.Target(to_start=to_start, to_time=since, to_offsets=offsets)
        async with operation(settings, "rewind") as reached:
            return await rewinding.rewind(reached, target, accept_new_topic=accept_new_topic, dry_run=dry_run)

    if not dry_run:
        confirm(lambda: _rewound_text(run_command(work(dry_run=True)), dry_run=True), yes=yes)
    done = run_command(work(dry_run=dry_run))
    answer(
        {"partitions": [asdict(each) for each in done], "dry_run": dry_run},
        as_json=as_json,
        text=_rewound_text(done, dry_run=dry_run),
    )


def _rewound_text(done: list[rewinding.Rewound], *, dry_run: bool) -> str:
    verb = "would go" if dry_run else "went"
    lines = [
        f"partition {each.partition} {verb} from {each.from_offset} to {each.to_offset}: {each.records} records to read"
        for each in done
    ]
    return "\n".join(lines) or "nothing to do"


@app.command()
def rebuild(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Fill and compare the shadow tables, then drop them.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted rebuild.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Drop the shadow tables of an interrupted rebuild.")] = False,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Drop the tables that the last rebuild replaced.")
    ] = False,
    only_topic: Annotated[
        bool, typer.Option("--only-topic", help="Do not keep rows that are older than the topic: they are lost.")
    ] = False,
    accept_unexplained: Annotated[
        bool,
        typer.Option("--accept-unexplained", help="Swap, and lose the live rows that the topic does not explain."),
    ] = False,
    rate: Rate = 20_000,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Replay the topic into shadow tables, and swap them with the live tables in one transaction.

    Live consumers keep running. The old tables stay in the schema before_rebuild until --drop-old.

    Examples: python -m consumer rebuild --dry-run
              python -m consumer rebuild --rate 50000
              python -m consumer rebuild --drop-old
    """
    settings = settings_of_command()
    if [dry_run, resume, abort, drop_old].count(True) > 1 and not (dry_run and resume):
        say("--dry-run, --resume, --abort and --drop-old exclude each other")
        raise typer.Exit(WRONG)
    choices = rebuilding.Choices(
        resume=resume, dry_run=dry_run, only_topic=only_topic, accept_unexplained=accept_unexplained, rate=rate
    )

    async def plan() -> str:
        async with operation(settings, "rebuild") as reached:
            return await rebuilding.old_described(reached)

    if drop_old:
        confirm(lambda: run_command(plan()), yes=yes)

    async def work() -> rebuilding.Rebuilt | None:
        async with operation(settings, "rebuild") as reached:
            if abort or drop_old:
                await (rebuilding.abort(reached) if abort else rebuilding.drop_old(reached))
                return None
            with progress_bar("records") as progress:
                return await rebuilding.rebuild(reached, choices, progress)

    done = run_command(work())
    if done is None:
        answer({"done": True}, as_json=as_json, text="done")
        return
    is_stopped = not done.swapped and not dry_run
    answer(asdict(done), as_json=as_json, text=_rebuilt_text(done, is_stopped=is_stopped))
    raise typer.Exit(PROBLEM if is_stopped else DONE)


def _rebuilt_text(done: rebuilding.Rebuilt, *, is_stopped: bool) -> str:
    lines = [f"{done.records} records in {done.seconds:.1f} s"]
    lines += [
        f"differs: {day.table} {day.day}: {day.live_rows} live, {day.rebuilt_rows} rebuilt" for day in done.differing
    ]
    lines += [f"carried over: {count} of {table}" for table, count in done.carried_over.items() if count]
    lines += [f"not explained by the topic: {count} of {table}" for table, count in done.unexplained.items() if count]
    if is_stopped:
        lines.append(
            "stopped before the swap: --resume --accept-unexplained continues without those rows,"
            " --abort drops the shadow tables"
        )
    if done.swapped:
        lines.append(f"swapped; writers stood still for {done.blocked_ms:.0f} ms. --drop-old drops the old tables")
    return "\n".join(lines)
