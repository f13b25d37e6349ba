"""The operator's commands. Exit: 0 done, 1 found a problem, 2 wrong use or setting, 3 could not reach a server.

And 141 when whoever reads the output has left, as in `export | head`.
"""

import asyncio
import re
import sys
from collections.abc import Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from consumer.operations import audit as auditing
from consumer.operations import doctor as examining
from consumer.operations import erase as erasing
from consumer.operations import find as finding
from consumer.operations import redrive as redriving
from consumer.operations import rewind as rewinding
from consumer.operations import status as reporting
from consumer.operations.operation import Refused, WrongUse, answer, database_alone, operation, say, told
from consumer.rebuild import rebuild as rebuilding
from consumer.settings import ConsumerSettings, DoctorSettings
from consumer.store import retain as retaining
from consumer.store.suppressions import Kind, Subject
from shared import logs, probes
from shared.errors import Transient, WrongSetting, WrongTopic
from shared.output import write_out
from shared.settings import load

T = TypeVar("T")
S = TypeVar("S", bound=ConsumerSettings)
DONE, PROBLEM, WRONG, UNREACHED = range(4)

app = typer.Typer(no_args_is_help=False, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
letters = typer.Typer(
    no_args_is_help=True,
    help="Records that could not become rows: look at them, try them again.\n\n"
    "Example: python -m consumer dead-letters list --reason invalid_fields",
)
app.add_typer(letters, name="dead-letters")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Rate = Annotated[float, typer.Option(min=0, help="Most records a second; 0 for no limit.")]
Reason = Annotated[str | None, typer.Option(help="Only those of this reason.")]
Since = Annotated[str | None, typer.Option(help="Only those received from then on, as 2026-11-24T08:00:00Z.")]
Until = Annotated[str | None, typer.Option(help="Only those received before then.")]
Place = Annotated[str | None, typer.Option(help="Only the one at PARTITION:OFFSET.")]


def run_command(work: Coroutine[Any, Any, T]) -> T:
    """Run it, and turn what it raises into words and an exit code."""
    try:
        return asyncio.run(work)
    except WrongUse as error:
        say(str(error))
        raise typer.Exit(WRONG) from None
    except (Refused, WrongTopic) as error:
        say(f"refused: {error}")
        raise typer.Exit(PROBLEM) from None
    except Transient as error:
        say(f"not reached: {error}")
        raise typer.Exit(UNREACHED) from None


def settings_of_command() -> ConsumerSettings:
    return loaded(ConsumerSettings)


def loaded(settings_type: type[S]) -> S:
    settings = load(settings_type)
    logs.configure("ERROR", process="consumer", log_format=settings.log_format)
    return settings


@app.command()
def status(*, as_json: AsJson = False) -> None:
    """Where is everything: positions, lag, dead letters, rebuilds under way.

    Example: python -m consumer status --json
    """
    settings = settings_of_command()

    async def work() -> reporting.Status:
        async with operation(settings, "status") as reached:
            return await reporting.status(reached)

    found = run_command(work())
    lines = [f"{'partition':>9} {'next':>12} {'end':>12} {'lag':>10} {'lag s':>10} {'retention left h':>17}"]
    for line in found.partitions:
        left = "" if line.retention_left_seconds is None else f"{line.retention_left_seconds / 3600:.1f}"
        at = "-" if line.next_offset is None else line.next_offset
        lag = f"{line.lag_records:>10} {line.lag_seconds:>10.1f}"
        lines.append(f"{line.partition:>9} {at:>12} {line.end_offset:>12} {lag} {left:>17}")
    lines += [f"dead letters, {reason}: {count}" for reason, count in found.dead_letters.items()] or ["no dead letters"]
    lines += [f"rebuild under way: {rebuild['records']} records settled" for rebuild in found.rebuilds]
    answer(asdict(found), as_json=as_json, text="\n".join(lines))


@app.command()
def audit(*, as_json: AsJson = False) -> None:
    """Do the books balance, and is it the same topic, with the tables we know? Exit 1 with findings.

    Example: python -m consumer audit
    """
    found = run_command(auditing.audit(settings_of_command()))
    text = "\n".join(
        f"{each.kind} {each.topic}{'' if each.partition is None else f'[{each.partition}]'}: {each.detail}"
        for each in found
    )
    findings = [asdict(finding) for finding in found]
    answer({"ok": not found, "findings": findings}, as_json=as_json, text=text or "the books balance")
    raise typer.Exit(PROBLEM if found else DONE)


@app.command()
def doctor(
    *,
    receiver_metrics: Annotated[
        str | None, typer.Option(help="The /metrics of a receiver, to see what senders do wrong; default: this host's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Connect to everything; say what is wrong, and how to mend it. Exit 1 with errors; warnings alone are 0.

    Example: python -m consumer doctor --receiver-metrics http://telemetry-receiver:9464/metrics
    """
    settings = loaded(DoctorSettings)
    found = run_command(examining.doctor(settings, receiver_metrics=receiver_metrics))
    is_ok = not any(diagnosis.severity == "error" for diagnosis in found)
    text = "\n".join(f"{each.severity}: {each.check}: {each.detail}\n    {each.remedy}" for each in found)
    findings = [asdict(diagnosis) for diagnosis in found]
    answer({"ok": is_ok, "findings": findings}, as_json=as_json, text=text or "all is well")
    raise typer.Exit(DONE if is_ok else PROBLEM)


@app.command()
def find(trace_id: str, span_id: str, *, as_json: AsJson = False) -> None:
    """Where is my span? Its row, its dead letter, suppressed, waiting in the topic, or not seen. Exit 1: not seen.

    Example: python -m consumer find 0af7651916cd43dd8448eb211c80319c b7ad6b7169203331
    """
    settings = settings_of_command()

    async def work() -> finding.Found:
        async with operation(settings, "find") as reached:
            return await finding.find(reached, trace_id, span_id)

    found = run_command(work())
    detail = "\n".join(f"  {name}: {told(value)}" for name, value in found.detail.items())
    answer(asdict(found), as_json=as_json, text=f"{found.state} {found.id}\n{detail}".rstrip())
    raise typer.Exit(PROBLEM if found.state == "not_seen" else DONE)


@app.command()
def rewind(
    *,
    to_start: Annotated[bool, typer.Option("--to-start", help="To the first record that each partition has.")] = False,
    to_time: Annotated[str | None, typer.Option(help="To the first record received from then on.")] = None,
    to_offset: Annotated[list[str] | None, typer.Option(help="PARTITION:OFFSET; may be repeated.")] = None,
    accept_new_topic: Annotated[
        bool, typer.Option("--accept-new-topic", help="Adopt a topic that was deleted and created again.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Replay in place, with consumers running or not. Rows are upserts, so nothing doubles.

    Examples: python -m consumer rewind --to-time 2026-11-24T00:00:00Z
              python -m consumer rewind --to-offset 3:1200 --to-offset 4:900
              python -m consumer rewind --to-start --accept-new-topic
    """
    settings = settings_of_command()

    async def work() -> list[rewinding.Rewound]:
        offsets = [place_of(text) for text in to_offset or ()]
        target = rewinding.Target(to_start=to_start, to_time=time_of(to_time), to_offsets=offsets)
        async with operation(settings, "rewind") as reached:
            return await rewinding.rewind(reached, target, accept_new_topic=accept_new_topic, dry_run=dry_run)

    done = run_command(work())
    verb = "would go" if dry_run else "went"
    text = "\n".join(
        f"partition {each.partition} {verb} from {each.from_offset} to {each.to_offset}: {each.records} records to read"
        for each in done
    )
    answer(
        {"partitions": [asdict(each) for each in done], "dry_run": dry_run},
        as_json=as_json,
        text=text or "nothing to do",
    )


@app.command()
def rebuild(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fill, compare, and drop what was filled.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with one that was interrupted.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Drop one that was interrupted.")] = False,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="Drop the tables that the last one replaced.")] = False,
    only_topic: Annotated[
        bool, typer.Option("--only-topic", help="Carry no row over that is older than the topic's reach.")
    ] = False,
    accept_unexplained: Annotated[
        bool,
        typer.Option(
            "--accept-unexplained", help="Swap even if live rows would vanish that the topic does not explain."
        ),
    ] = False,
    rate: Rate = 20_000,
    as_json: AsJson = False,
) -> None:
    """Replay into shadow tables beside the live ones, catch up, compare, swap in one transaction.

    Live consumers go on. The old tables stay in the schema before_rebuild until --drop-old.

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
            "stopped before the swap: --resume --accept-unexplained goes on without those rows, --abort drops it"
        )
    if done.swapped:
        lines.append(f"swapped; writers stood still for {done.blocked_ms:.0f} ms. --drop-old drops the old tables")
    return "\n".join(lines)


@letters.command("list")
def letters_list(
    *,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    place: Place = None,
    redriven: Annotated[bool, typer.Option("--redriven", help="Those that became rows after all.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 100,
    as_json: AsJson = False,
) -> None:
    """Places, times and reasons, without content.

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
    answer({"dead_letters": found}, as_json=as_json, text=text or "none")


@letters.command("show")
def letters_show(place: str, *, as_json: AsJson = False) -> None:
    """One letter whole, at PARTITION:OFFSET. Exit 1 when there is none.

    Example: python -m consumer dead-letters show 3:1200
    """
    settings = settings_of_command()

    async def work() -> list[dict[str, Any]]:
        async with database_alone(settings, "dead-letters") as connection:
            return await redriving.shown(connection, *place_of(place))

    found = run_command(work())
    text = "\n\n".join("\n".join(f"{name}: {told(value)}" for name, value in each.items()) for each in found)
    answer({"dead_letters": found}, as_json=as_json, text=text or "none")
    raise typer.Exit(DONE if found else PROBLEM)


@letters.command("redrive")
def letters_redrive(
    *,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    place: Place = None,
    rate: Rate = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Decode letters again with today's code; what is an event now becomes a row. Exit 1 when some stay bad.

    Example: python -m consumer dead-letters redrive --reason newer_schema --dry-run
    """
    settings = settings_of_command()
    chosen = filter_of(reason, since, until, place, redriven=False)

    async def work() -> redriving.Redriven:
        async with database_alone(settings, "dead-letters") as connection:
            with progress_bar("letters") as progress:
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
    counts = {**asdict(done), "still": still, "dry_run": dry_run}
    text = "\n".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items())
    answer(counts, as_json=as_json, text=text)
    raise typer.Exit(PROBLEM if still else DONE)


UserId = Annotated[str | None, typer.Option(help="Raw id; - reads it from standard input, out of the shell's history.")]
UserHash = Annotated[str | None, typer.Option(help="Hash, as the tables have it.")]
OrganizationId = Annotated[str | None, typer.Option(help="Raw id of an organization; - reads standard input.")]
OrganizationHash = Annotated[str | None, typer.Option(help="Hash of an organization.")]


@app.command()
def erase(
    *,
    user_id: UserId = None,
    user_hash: UserHash = None,
    organization_id: OrganizationId = None,
    organization_hash: OrganizationHash = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Delete a subject's rows and dead letters, so that no replay or restored backup brings them back.

    Looks under the present key, each previous one and none: ID_HASH_KEY must be the receiver's. Idempotent.

    Examples: python -m consumer erase --user-id - --dry-run
              python -m consumer erase --user-hash 73475cb40a568e8d --json
    """
    settings = settings_of_command()
    if not settings.hash_key and (user_id or organization_id):
        say("ID_HASH_KEY is not set: only unkeyed hashes are looked for. Set it if the receiver has one.")

    async def work() -> erasing.Receipt:
        subjects = subjects_of(settings, user_id, user_hash, organization_id, organization_hash)
        async with operation(settings, "erase") as reached:
            return await erasing.erase(reached, subjects, dry_run=dry_run)

    receipt = run_command(work())
    expires = receipt.topic_expires_at.isoformat() if receipt.topic_expires_at else None
    fields = {**asdict(receipt), "topic_expires_at": expires}
    verb = "would be" if dry_run else "were"
    lines = [f"{count} rows of {table} {verb} deleted" for table, count in receipt.rows.items()]
    lines.append(f"{receipt.dead_letters} dead letters {verb} deleted")
    lines.append(f"hashes: {', '.join(receipt.subject_hashes)}")
    lines.append(
        f"the topic's own records expire by {expires}" if expires else "the topic keeps its records without limit"
    )
    answer(fields, as_json=as_json, text="\n".join(lines))


@app.command()
def export(
    *,
    user_id: UserId = None,
    user_hash: UserHash = None,
    organization_id: OrganizationId = None,
    organization_hash: OrganizationHash = None,
) -> None:
    """The subject's rows as JSON lines, for an access request.

    Example: python -m consumer export --user-id - > rows.jsonl
    """
    settings = settings_of_command()

    async def work() -> None:
        subjects = subjects_of(settings, user_id, user_hash, organization_id, organization_hash)
        async with (
            database_alone(settings, "export") as connection,
            aclosing(erasing.export(connection, subjects)) as lines,
        ):
            async for line in lines:
                write_out(line)

    run_command(work())


@app.command()
def retain(
    *,
    days: Annotated[int | None, typer.Option(min=1, help="Instead of RETENTION_DAYS.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Delete rows and dead letters past RETENTION_DAYS, in small batches. A replay does not bring them back.

    Example: python -m consumer retain --dry-run
    """
    settings = settings_of_command()
    days = days or settings.retention_days
    if not days:
        say("RETENTION_DAYS is 0: rows are kept for ever")
        raise typer.Exit(WRONG)
    kept_days = days

    async def work() -> dict[str, int]:
        async with database_alone(settings, "retain") as connection:
            with progress_bar("rows") as progress:
                return await retaining.retain(
                    connection, days=kept_days, dry_run=dry_run, progress=lambda _, count: progress(count, 0)
                )

    deleted = run_command(work())
    verb = "would be" if dry_run else "were"
    text = "\n".join(f"{count} of {table} {verb} deleted" for table, count in deleted.items())
    answer({"deleted": deleted, "dry_run": dry_run}, as_json=as_json, text=text)


@app.command()
def health(
    url: Annotated[str | None, typer.Option(help="The /readyz to ask; default: this process's own port.")] = None,
) -> None:
    """Exit 0 when the running consumer is ready, else 1: for a container's health check.

    Example: python -m consumer health
    """
    settings = load(ConsumerSettings)
    is_ready, text = probes.ask(url or probes.ready_url(settings.metrics_host, settings.consumer_metrics_port))
    typer.echo(text)
    raise typer.Exit(DONE if is_ready else PROBLEM)


# ---- arguments


def subjects_of(
    settings: ConsumerSettings,
    user_id: str | None,
    user_hash: str | None,
    organization_id: str | None,
    organization_hash: str | None,
) -> list[Subject]:
    """The one subject that the options name."""
    given = [option for option in (user_id, user_hash, organization_id, organization_hash) if option is not None]
    if len(given) != 1:
        raise WrongUse("give one of --user-id, --user-hash, --organization-id and --organization-hash")
    kind: Kind = "user" if user_id is not None or user_hash is not None else "organization"
    raw = user_id if user_id is not None else organization_id
    if raw == "-":
        raw = sys.stdin.readline().rstrip("\r\n")
    return erasing.subjects_of(settings, kind, raw=raw, hashed=user_hash or organization_hash)


def place_of(text: str) -> tuple[int, int]:
    """PARTITION:OFFSET."""
    if not re.fullmatch(r"\d{1,9}:\d{1,18}", text):
        raise typer.BadParameter(f"{text} is not PARTITION:OFFSET, as 3:1200")
    partition, _, offset = text.partition(":")
    return int(partition), int(offset)


def time_of(text: str | None) -> datetime | None:
    """ISO 8601; UTC when it says no zone."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text} is no time, as 2026-11-24T08:00:00Z") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def filter_of(
    reason: str | None, since: str | None, until: str | None, place: str | None, *, redriven: bool
) -> redriving.Filter:
    partition, offset = place_of(place) if place else (None, None)
    return redriving.Filter(reason, time_of(since), time_of(until), partition, offset, redriven=redriven)


@contextmanager
def progress_bar(unit: str) -> Iterator[rebuilding.Progress]:
    """How much is done, with the time left; on a terminal a bar, and elsewhere a line now and then."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=None)
        last_said = 0

        def show(done: int, total: int) -> None:
            nonlocal last_said
            bar.update(task, completed=done, total=total or None)
            if not console.is_terminal and (done >= last_said + 100_000 or done == total > last_said):
                last_said = done
                say(f"{done}{f' of {total}' if total else ''} {unit}")

        yield show


def main() -> None:
    """The console script."""
    try:
        app()
    except WrongSetting as error:
        typer.echo(f"consumer: {error}", err=True)
        sys.exit(WRONG)
