"""Does the ledger balance, is it still the same topic, and are the tables as the models say?"""

from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from consumer.operations.operation import DatabaseRefused, Operation, operation
from consumer.pipeline import positions
from consumer.settings import ConsumerSettings
from consumer.store.copies import copies
from consumer.store.database import DATABASE_ERRORS
from consumer.store.erasures import lacking, pending
from consumer.store.schema import FATES
from consumer.store.suppressions import unpublished
from consumer.store.suppressions_topic import Topic as SuppressionsTopic
from consumer.topic_identity import NO_TOPIC_ID
from shared.errors import BrokerUnavailable, DatabaseUnavailable, WrongTopic

RECOUNTED_DAYS = 7


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """Kinds: unreachable, database, topic, topic_identity, balance, bounds, no_line, gap, suppressions, erasure,
    rollup, schema.
    """

    kind: str
    topic: str
    partition: int | None
    detail: str


async def audit(settings: ConsumerSettings) -> list[AuditFinding]:
    """Everything that is not as it must be; empty when there is none. A server out of reach is a finding too."""
    try:
        async with operation(settings, "audit") as reached:
            found = [
                *await _ledger(reached),
                *await _gaps(reached),
                *await _suppressions(reached),
                *await _erased(reached),
                *await _rolled_up(reached),
            ]
    except (BrokerUnavailable, DatabaseUnavailable) as error:
        found = [AuditFinding("unreachable", settings.kafka_topic, None, str(error))]
    except DatabaseRefused as error:
        found = [AuditFinding("database", settings.kafka_topic, None, str(error))]
    # Imported here: alembic and SQLAlchemy's engine would add a third to the start of every other command.
    from consumer.operations.schema_differences import schema_differences  # noqa: PLC0415

    try:
        differences = await schema_differences(settings)
    except (*DATABASE_ERRORS, SQLAlchemyError) as error:
        differences = [f"not compared: {type(error).__name__}"]
    return found + [AuditFinding("schema", settings.kafka_topic, None, difference) for difference in differences]


async def _ledger(operation: Operation) -> list[AuditFinding]:
    found = []

    def finding(kind: str, partition: int | None, detail: str) -> None:
        found.append(AuditFinding(kind, operation.topic, partition, detail))

    try:
        identity = await positions.identity_of(operation.kafka, operation.topic)
        partitions = await operation.partitions()
    except WrongTopic as error:
        return [AuditFinding("topic", operation.topic, None, str(error))]
    # The ledger first and the bounds after: a line may move on meanwhile, and then lies within them all the more.
    lines = await operation.database.fetch(
        "SELECT * FROM ingest.partition_offsets WHERE topic = $1 ORDER BY generation, partition", operation.topic
    )
    first = await operation.kafka.beginning_offsets(operation.places(partitions))
    end = await operation.kafka.end_offsets(operation.places(partitions))
    bounds = {place.partition: (first[place], end[place]) for place in first}
    for line in lines:
        name, partition, at = line["generation"], line["partition"], line["next_offset"]
        settled, counted = at - line["first_offset"], sum(line[fate] for fate in FATES)
        if settled != counted:
            finding("balance", partition, f"{name}: {settled} offsets were passed, and {counted} have a fate")
        if NO_TOPIC_ID not in (line["topic_id"], identity) and line["topic_id"] != identity:
            finding("topic_identity", partition, f"{name}: the ledger knows {line['topic_id']}, the broker {identity}")
        if partition not in bounds:
            finding("bounds", partition, f"{name}: the topic has no such partition")
            continue
        low, high = bounds[partition]
        if not low <= at <= high:
            finding("bounds", partition, f"{name}: at {at}, and the topic holds {low} to {high}")
    for partition in sorted(set(bounds) - {line["partition"] for line in lines}):
        if bounds[partition][1] > bounds[partition][0]:
            finding("no_line", partition, "holds records that no consumer has begun to read")
    return found


async def _suppressions(operation: Operation) -> list[AuditFinding]:
    """Can the topic of erasures be read, and does it hold what the table holds?"""
    topic = SuppressionsTopic(operation.settings)

    def finding(detail: str) -> list[AuditFinding]:
        return [AuditFinding("suppressions", topic.name, None, detail)]

    try:
        known = await topic.read()
    except (BrokerUnavailable, WrongTopic) as error:
        return finding(str(error))
    finally:
        await topic.close()
    if waiting := await lacking(operation.database, known):
        return finding(f"{len(waiting)} of its erasures are not carried out: a consumer that starts does it")
    if lost := await unpublished(operation.database, known):
        return finding(f"it lacks {len(lost)} erasures of ingest.suppressions: a consumer that starts adds them")
    return []


async def _erased(operation: Operation) -> list[AuditFinding]:
    """Rows of erased subjects, wherever copies of the tables are, and erasures that are under way."""
    found = []

    def finding(detail: str) -> None:
        found.append(AuditFinding("erasure", operation.topic, None, detail))

    for table in await copies(operation.database):
        if not table.may_read:
            finding(f"this role may not look into {table.name}: audit as the owner of the tables")
            continue
        count = await operation.database.fetchval(
            f"""
            SELECT count(*) FROM (
                SELECT row.id FROM ingest.suppressions AS erased JOIN {table.name} AS row ON row.user_id = erased.hash
                WHERE erased.kind = 'user' AND row.timestamp <= erased.erased_at
                UNION SELECT row.id FROM ingest.suppressions AS erased
                JOIN {table.name} AS row ON row.organization_id = erased.hash
                WHERE erased.kind = 'organization' AND row.timestamp <= erased.erased_at
            ) AS rows
            """  # noqa: S608  our own names
        )
        if count:
            finding(f"{table.name} holds {count} rows of erased people or organizations")
    if waiting := await pending(operation.database):
        finding(f"{len(waiting)} erasures are under way: `consumer erase --status`")
    return found


async def _rolled_up(operation: Operation) -> list[AuditFinding]:
    """The latest counted days, recounted from their rows."""
    days = await operation.database.fetch("SELECT ingest.wrong_days($1) AS day", RECOUNTED_DAYS)
    return [
        AuditFinding(
            "rollup",
            operation.topic,
            None,
            f"the sums of {row['day']} are not those of its rows: "
            f"`SELECT ingest.mark_days(ARRAY[date '{row['day']}'])` has them made anew",
        )
        for row in days
    ]


async def _gaps(operation: Operation) -> list[AuditFinding]:
    rows = await operation.database.fetch(
        """
        SELECT id, partition, from_offset, to_offset, reason, seen_at FROM ingest.gaps
        WHERE topic = $1 AND acknowledged_at IS NULL ORDER BY id
        """,
        operation.topic,
    )
    return [
        AuditFinding(
            "gap",
            operation.topic,
            row["partition"],
            f"gap {row['id']}: {_GAP.get(row['reason'], 'lost:')} offsets {row['from_offset']} to "
            f"{row['to_offset'] - 1} ({row['reason']}), seen {row['seen_at']:%Y-%m-%d %H:%M:%S} UTC",
        )
        for row in rows
    ]


_GAP = {
    "retention": "the topic's retention deleted, before they were read,",
    "truncated": "the topic lost, after they were read,",
}
