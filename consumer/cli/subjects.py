"""Commands about a person or organization, and about rows that are past their time."""

import sys
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

import typer

from consumer.cli.common import (
    WRONG,
    AsJson,
    DryRun,
    Yes,
    app,
    confirm,
    progress_bar,
    run_command,
    settings_of_command,
)
from consumer.operations import erase as erasing
from consumer.operations.operation import WrongUse, answer, database_alone, operation, say
from consumer.settings import ConsumerSettings
from consumer.store import erasures
from consumer.store import retain as retaining
from consumer.store.suppressions import Kind, Subject
from shared.output import write_out

UserId = Annotated[
    str | None,
    typer.Option(help="Raw id of a user; - reads it from standard input, so it is not in the shell's history."),
]
UserHash = Annotated[str | None, typer.Option(help="Hash of a user, as in the tables.")]
OrganizationId = Annotated[str | None, typer.Option(help="Raw id of an organization; - reads standard input.")]
OrganizationHash = Annotated[str | None, typer.Option(help="Hash of an organization, as in the tables.")]


@app.command()
def erase(
    *,
    user_id: UserId = None,
    user_hash: UserHash = None,
    organization_id: OrganizationId = None,
    organization_hash: OrganizationHash = None,
    status: Annotated[bool, typer.Option("--status", help="List all erasures, with their progress.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a subject's rows and dead letters. No replay or restored backup brings them back.

    The command looks under the present key, each previous key and no key: ID_HASH_KEY must be the receiver's. To run
    it again is harmless.

    Examples: python -m consumer erase --user-id - --dry-run
              python -m consumer erase --user-hash 73475cb40a568e8d --json
              python -m consumer erase --status
    """
    settings = settings_of_command()
    if status:
        _erasures(settings, as_json=as_json)
        return
    if not settings.hash_key and (user_id or organization_id):
        say("ID_HASH_KEY is not set: only unkeyed hashes are looked for. Set it if the receiver has one.")

    try:
        subjects = subjects_of(settings, user_id, user_hash, organization_id, organization_hash)
    except WrongUse as error:
        say(str(error))
        raise typer.Exit(WRONG) from None

    async def work(*, dry_run: bool) -> erasing.Receipt:
        async with operation(settings, "erase") as reached:
            with progress_bar("rows and dead letters deleted") as progress:
                return await erasing.erase(reached, subjects, dry_run=dry_run, progress=progress)

    if not dry_run:
        confirm(lambda: _receipt_text(run_command(work(dry_run=True))), yes=yes)
    receipt = run_command(work(dry_run=dry_run))
    answer(_receipt_fields(receipt), as_json=as_json, text=_receipt_text(receipt))


def _erasures(settings: ConsumerSettings, *, as_json: bool) -> None:
    async def work() -> list[dict[str, object]]:
        async with database_alone(settings, "erase") as connection:
            return await erasures.listed(connection)

    found = run_command(work())
    text = "\n".join(
        f"{each['kind']} {each['hash']}: erased at {each['erased_at']:%Y-%m-%d %H:%M:%S} UTC, {each['deleted']} deleted"
        + (f", done at {each['done_at']:%Y-%m-%d %H:%M:%S} UTC" if each["done_at"] else ", under way")
        for each in found
    )
    answer({"erasures": found}, as_json=as_json, text=text or "no erasures")


def _receipt_fields(receipt: erasing.Receipt) -> dict[str, Any]:
    expires = receipt.topic_expires_at.isoformat() if receipt.topic_expires_at else None
    return {**asdict(receipt), "topic_expires_at": expires}


def _receipt_text(receipt: erasing.Receipt) -> str:
    verb = "would be" if receipt.dry_run else "were"
    lines = [f"{count} rows of {table} {verb} deleted" for table, count in receipt.rows.items()]
    lines.append(f"{receipt.dead_letters} dead letters {verb} deleted")
    lines.append(f"hashes: {', '.join(receipt.subject_hashes)}")
    if not any((*receipt.rows.values(), receipt.dead_letters)):
        lines.append("nothing is stored under these hashes: check the id, and that ID_HASH_KEY is the receiver's")
    expires = receipt.topic_expires_at
    lines.append(
        f"the topic's own records expire by {expires.isoformat()}"
        if expires
        else "the topic keeps its records without limit"
    )
    return "\n".join(lines)


@app.command()
def export(
    *,
    user_id: UserId = None,
    user_hash: UserHash = None,
    organization_id: OrganizationId = None,
    organization_hash: OrganizationHash = None,
) -> None:
    """Print a subject's rows as JSON lines. For an access request.

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
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Days to keep. Overrides RETENTION_DAYS.")] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete rows and dead letters past RETENTION_DAYS. In small batches.

    Example: python -m consumer retain --dry-run
    """
    settings = settings_of_command()
    days = days or settings.retention_days
    if not days:
        say("RETENTION_DAYS is 0: rows are kept for ever")
        raise typer.Exit(WRONG)
    kept_days = days

    async def work(*, dry_run: bool) -> dict[str, int]:
        async with database_alone(settings, "retain") as connection:
            with progress_bar("rows") as progress:
                return await retaining.retain(
                    connection, days=kept_days, dry_run=dry_run, progress=lambda _, count: progress(count, 0)
                )

    if not dry_run:
        confirm(lambda: _retained_text(run_command(work(dry_run=True)), dry_run=True), yes=yes)
    deleted = run_command(work(dry_run=dry_run))
    answer({"deleted": deleted, "dry_run": dry_run}, as_json=as_json, text=_retained_text(deleted, dry_run=dry_run))


def _retained_text(deleted: dict[str, int], *, dry_run: bool) -> str:
    verb = "would be" if dry_run else "were"
    return "\n".join(f"{count} of {table} {verb} deleted" for table, count in deleted.items())


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
    return erasing.subjects_of(settings, kind, raw=raw, hashed=organization_hash if user_hash is None else user_hash)
