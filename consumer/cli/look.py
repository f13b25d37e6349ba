"""Commands that look and change nothing but the note that a gap is known."""

import asyncio
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer

from consumer.cli.common import (
    DONE,
    PROBLEM,
    AsJson,
    app,
    loaded,
    run_command,
    settings_of_command,
)
from consumer.operations import audit as auditing
from consumer.operations import find as finding
from consumer.operations import gaps as noting
from consumer.operations import status as reporting
from consumer.operations.doctor.doctor import doctor as examine
from consumer.operations.operation import answer, database_alone, operation, say, told
from consumer.settings import ConsumerSettings, DoctorSettings
from shared import probes
from shared.errors import Transient, WrongSetting
from shared.output import http_address, write_out
from shared.settings import load

gaps = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List and acknowledge lost offsets. Retention deleted them unread, or the topic lost them.\n\n"
    "Example: python -m consumer gaps list",
)
app.add_typer(gaps, name="gaps")


@app.command()
def status(
    *,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Repeat every two seconds until Ctrl-C. Also shows each partition's owner, rate and time left.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show positions, lag, dead letters, and rebuilds under way.

    Examples: python -m consumer status --json
              python -m consumer status --watch
    """
    settings = settings_of_command()

    async def work() -> reporting.Status:
        async with operation(settings, "status") as reached:
            return await reporting.status(reached)

    async def work_on() -> None:
        has_answered = False
        while True:
            try:
                async with operation(settings, "status") as reached:
                    async for found, pace in reporting.watched(reached):
                        write_out(_status_text(found, pace) + "\n")
                        has_answered = True
            except Transient as error:  # to be seen when it ends is what one watches for
                if not has_answered:
                    raise
                say(f"not reached: {error}")
                await asyncio.sleep(reporting.WATCH_EVERY_S)

    if watch:
        with suppress(KeyboardInterrupt):
            run_command(work_on())
        return
    found = run_command(work())
    answer(asdict(found), as_json=as_json, text=_status_text(found))


def _status_text(found: reporting.Status, pace: reporting.Pace | None = None) -> str:
    more = f" {'a second':>9} {'left':>9}  owner" if pace else ""
    lines = [f"{'partition':>9} {'next':>12} {'end':>12} {'lag':>10} {'lag s':>10} {'retention left h':>17}{more}"]
    for line in found.partitions:
        left = "" if line.retention_left_seconds is None else f"{line.retention_left_seconds / 3600:.1f}"
        at = "-" if line.next_offset is None else line.next_offset
        lag = f"{line.lag_records:>10} {line.lag_seconds:>10.1f}"
        if pace:
            left_s = pace.left_s(line)
            time_left = "-" if left_s is None else f"{left_s:.0f} s"
            owner = pace.owners.get(line.partition, "nobody")
            more = f" {pace.rates.get(line.partition, 0):>9.0f} {time_left:>9}  {owner}"
        lines.append(f"{line.partition:>9} {at:>12} {line.end_offset:>12} {lag} {left:>17}{more}")
    lines += [f"dead letters, {reason}: {count}" for reason, count in found.dead_letters.items()] or ["no dead letters"]
    lines += [f"rebuild under way: {rebuild['records']} records settled" for rebuild in found.rebuilds]
    lines += [f"consumer on {host}: {said}" for host, said in (pace.complaints if pace else {}).items()]
    return "\n".join(lines)


@app.command()
def audit(*, as_json: AsJson = False) -> None:
    """Check ledger, topic and tables. Exits 1 when the ledger does not balance, the topic is another, or a table
    does not fit its model.

    Example: python -m consumer audit
    """
    found = run_command(auditing.audit(settings_of_command()))
    text = "\n".join(
        f"{each.kind} {each.topic}{'' if each.partition is None else f'[{each.partition}]'}: {each.detail}"
        for each in found
    )
    findings = [asdict(finding) for finding in found]
    answer({"ok": not found, "findings": findings}, as_json=as_json, text=text or "the ledger balances")
    raise typer.Exit(PROBLEM if found else DONE)


@app.command()
def doctor(
    *,
    receiver_metrics: Annotated[
        str | None,
        typer.Option(
            help="Address of a receiver's /metrics, to see what senders do wrong. Default: this host's receiver."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong and how to repair it. Connects to everything. Exits 1 with errors, 0 with warnings alone.

    Example: python -m consumer doctor --receiver-metrics http://telemetry-receiver:9464/metrics
    """
    settings = loaded(DoctorSettings)
    found = run_command(examine(settings, receiver_metrics=receiver_metrics))
    is_ok = not any(diagnosis.severity == "error" for diagnosis in found)
    text = "\n".join(f"{each.severity}: {each.check}: {each.detail}\n    {each.remedy}" for each in found)
    findings = [asdict(diagnosis) for diagnosis in found]
    answer({"ok": is_ok, "findings": findings}, as_json=as_json, text=text or "no fault found")
    raise typer.Exit(DONE if is_ok else PROBLEM)


@app.command()
def find(
    trace_id: Annotated[str, typer.Argument(help="32 hex digits.")],
    span_id: Annotated[str, typer.Argument(help="16 hex digits.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Find a span. It is a row, a dead letter, suppressed, waiting in the topic, gone, or not seen (exit 1).

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
def health(
    url: Annotated[
        str | None,
        typer.Option(callback=http_address, help="Address of /readyz. Default: this consumer's own metrics port."),
    ] = None,
) -> None:
    """Exit 0 when the running consumer is ready, else 1. For container health checks.

    Example: python -m consumer health
    """
    settings = load(ConsumerSettings)
    if url is None and settings.consumer_metrics_port == 0:
        raise WrongSetting("CONSUMER_METRICS_PORT: 0 leaves nothing to ask")
    is_ready, text = probes.ask(url or probes.ready_url(settings.metrics_host, settings.consumer_metrics_port))
    typer.echo(text)
    raise typer.Exit(DONE if is_ready else PROBLEM)


@gaps.command("list")
def gaps_list(
    *,
    acknowledged: Annotated[bool, typer.Option("--acknowledged", help="Also list acknowledged gaps.")] = False,
    as_json: AsJson = False,
) -> None:
    """List gaps that nobody has acknowledged. Shows partition, offsets, reason and time.

    Example: python -m consumer gaps list
    """
    settings = settings_of_command()

    async def work() -> list[dict[str, Any]]:
        async with database_alone(settings, "gaps") as connection:
            return await noting.listed(connection, settings.kafka_topic, acknowledged=acknowledged)

    found = run_command(work())
    text = "\n".join(
        f"gap {gap['id']}: partition {gap['partition']}, offsets {gap['from_offset']} to {gap['to_offset'] - 1}, "
        f"{gap['reason']}, seen {gap['seen_at']:%Y-%m-%d %H:%M:%S} UTC"
        for gap in found
    )
    answer({"gaps": found}, as_json=as_json, text=text or ("no gaps" if acknowledged else "no unacknowledged gaps"))


@gaps.command("ack")
def gaps_ack(
    ids: Annotated[
        list[int] | None, typer.Argument(min=1, max=2**63 - 1, help="Numbers of the gaps. Default: all gaps.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Mark gaps as known, so that audit no longer reports them. The rows of ingest.gaps stay.

    Examples: python -m consumer gaps ack
              python -m consumer gaps ack 3 4
    """
    settings = settings_of_command()

    async def work() -> int:
        async with database_alone(settings, "gaps") as connection:
            return await noting.acknowledge(connection, settings.kafka_topic, ids or [])

    count = run_command(work())
    answer({"acknowledged": count}, as_json=as_json, text=f"{count} gaps acknowledged")
