"""events -> rows, and the schema: the only truth about tables, which migrations follow (`alembic check`).

A new analytics table is an event model in shared/events.py, a table here, a migration, and a line in the
receiver's mapping.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

from pydantic_core import to_json
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from shared.events import TIMESTAMP_US_MAX, TIMESTAMP_US_MIN, BaseEvent

ANALYTICS_TABLES: dict[str, Table] = {}  # by name, as shared.events has them
metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"})

_USER = "Hash of the user id: 16 hex digits. Personal data all the same"
_ORGANIZATION = "Hash of the organization id: 16 hex digits"


def _id() -> Column[Any]:
    return Column("id", UUID, primary_key=True, comment="From trace id and span id: one span, one row")


def _hash(name: str, comment: str, *, nullable: bool = True) -> Column[Any]:
    return Column(name, String(32), nullable=nullable, comment=comment)


def _common() -> list[Column[Any]]:
    return [
        Column("deployment_type", String(50), nullable=False, comment="cloud, self-hosted, ..."),
        Column(
            "event_metadata",
            JSONB,
            nullable=False,
            server_default=text("'{}'::jsonb"),
            comment="Allowed attributes of the span, redacted",
        ),
        Column("service_name", String(255), comment="Service that sent the span"),
        Column("service_version", String(100), comment="Version of that service"),
        Column("trace_id", UUID, comment="Trace of the span"),
        Column(
            "weight",
            Double,
            nullable=False,
            server_default=text("1"),
            comment="Spans that this one stands for, when the sender samples",
        ),
    ]


def _timestamp() -> Column[Any]:
    return Column("timestamp", DateTime(timezone=True), primary_key=True, comment="Start of the span")


def _analytics(name: str, *columns: Column[Any], comment: str) -> Table:
    """One analytics table with the indexes that all have, and no more: each costs about a tenth of the rate.

    Partitioned by time, so that the random ids of the newest rows meet an index that fits in memory. Within a partition
    rows arrive in about the order of their time, so a BRIN serves time ranges at next to no cost. The two hashes are
    indexed for erasure and access requests.
    """
    table = Table(
        name,
        metadata,
        *columns,
        Index(
            None, "timestamp", postgresql_using="brin", postgresql_with={"pages_per_range": 32, "autosummarize": True}
        ),
        Index(None, "user_id", postgresql_where=text("user_id IS NOT NULL")),
        Index(None, "organization_id", postgresql_where=text("organization_id IS NOT NULL")),
        comment=comment,
        postgresql_partition_by="RANGE (timestamp)",
    )
    ANALYTICS_TABLES[name] = table
    return table


user_activity = _analytics(
    "user_activity",
    _id(),
    _hash("user_id", _USER, nullable=False),
    _hash("organization_id", _ORGANIZATION),
    Column("event_type", String(50), nullable=False, comment="login, logout, ..."),
    _timestamp(),
    Column("session_id", String(255), comment="Session identifier"),
    *_common(),
    comment="User engagement: login, logout, sessions",
)

endpoint_usage = _analytics(
    "endpoint_usage",
    _id(),
    Column("endpoint", String(255), nullable=False, comment="Route or path; ids in it are {id}"),
    Column("method", String(10), comment="HTTP method, upper case"),
    _hash("user_id", _USER),
    _hash("organization_id", _ORGANIZATION),
    Column("status_code", Integer, comment="HTTP status code"),
    Column("duration_ms", Double, comment="Duration in milliseconds"),
    _timestamp(),
    *_common(),
    comment="Requests by endpoint, with status and duration",
)

feature_usage = _analytics(
    "feature_usage",
    _id(),
    Column("feature_name", String(100), nullable=False, comment="Feature identifier"),
    _hash("user_id", _USER),
    _hash("organization_id", _ORGANIZATION),
    Column("action", String(100), comment="created, viewed, updated, deleted, ..."),
    _timestamp(),
    *_common(),
    comment="Use of features",
)

model_usage = _analytics(
    "model_usage",
    _id(),
    Column("operation", String(50), nullable=False, comment="chat, embeddings, text_completion, ..."),
    Column("provider", String(100), comment="openai, aws.bedrock, ..."),
    Column("model", String(255), comment="Model that answered, or that was asked"),
    _hash("user_id", _USER),
    _hash("organization_id", _ORGANIZATION),
    Column("input_tokens", BigInteger, comment="Tokens of the prompt"),
    Column("output_tokens", BigInteger, comment="Tokens of the answer"),
    Column("duration_ms", Double, comment="Duration in milliseconds"),
    Column("error_type", String(100), comment="Why the call failed"),
    _timestamp(),
    *_common(),
    comment="Calls of language models, with tokens and duration",
)

SCHEMA_REVISION = "009_rollups"  # the newest migration; a later one is fine too: they only add
FATES = ("stored", "duplicates", "dead_lettered", "suppressed", "expired", "skipped")


def _count(name: str, comment: str) -> Column[Any]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"), comment=comment)


def _line(*, primary_key: bool) -> list[Column[Any]]:
    """One line of the ledger."""
    return [
        Column("generation", Text, primary_key=primary_key, nullable=False, comment="live, or a rebuild's name"),
        Column("topic", Text, primary_key=primary_key, nullable=False, comment="Kafka topic"),
        Column("partition", Integer, primary_key=primary_key, nullable=False, comment="Kafka partition"),
        Column("topic_id", UUID, nullable=False, comment="The broker's id of the topic; all zeros where it gives none"),
        Column("epoch", BigInteger, nullable=False, comment="Rises when an operator moves the line"),
        Column("first_offset", BigInteger, nullable=False, comment="Where this line began"),
        Column("next_offset", BigInteger, nullable=False, comment="The first offset that has no fate yet"),
        _count("stored", "Records that made a new row"),
        _count("duplicates", "Records whose row was there already"),
        _count("dead_lettered", "Records that are dead letters"),
        _count("suppressed", "Records of an erased subject"),
        _count("expired", "Records past their retention"),
        _count("skipped", "Tombstones, offsets without a record, offsets lost to retention"),
        Column("last_record_hash", LargeBinary, comment="SHA-256 of the value of the last settled record"),
        Column("last_record_time", DateTime(timezone=True), comment="When the receiver got the last settled record"),
        Column("leader_epoch", Integer, comment="Kafka leader epoch under which the last settled record was read"),
    ]


partition_offsets = Table(
    "partition_offsets",
    metadata,
    *_line(primary_key=True),
    CheckConstraint(f"next_offset - first_offset = {' + '.join(FATES)}", name="every_offset_has_one_fate"),
    schema="ingest",
    comment="The ledger: moved in the transaction of the rows that it covers",
)

LINE_COLUMNS = tuple(column.name for column in partition_offsets.columns)

ledger_history = Table(
    "ledger_history",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True, comment="Order of the endings"),
    *_line(primary_key=False),
    Column("ended_at", DateTime(timezone=True), nullable=False, server_default=text("now()"), comment="When it ended"),
    Column("reason", Text, nullable=False, comment="What ended it"),
    schema="ingest",
    comment="Lines of the ledger that a rewind, an adoption, a swap or a truncated topic has ended",
)

gaps = Table(
    "gaps",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True, comment="Order of the findings"),
    Column("topic", Text, nullable=False, comment="Kafka topic"),
    Column("partition", Integer, nullable=False, comment="Kafka partition"),
    Column("from_offset", BigInteger, nullable=False, comment="First offset that is gone"),
    Column("to_offset", BigInteger, nullable=False, comment="First offset that is there again"),
    Column("reason", Text, nullable=False, comment="retention, or truncated"),
    Column(
        "seen_at", DateTime(timezone=True), nullable=False, server_default=text("now()"), comment="When it was found"
    ),
    Column("acknowledged_at", DateTime(timezone=True), comment="When an operator took note of it"),
    schema="ingest",
    comment="Offsets that retention took away before they were read, or that the topic lost after they were read",
)

topic_ends = Table(
    "topic_ends",
    metadata,
    Column("topic", Text, primary_key=True, comment="Kafka topic"),
    Column("partition", Integer, primary_key=True, comment="Kafka partition"),
    Column("topic_id", UUID, nullable=False, comment="The broker's id of the topic; all zeros for none"),
    Column("end_offset", BigInteger, nullable=False, comment="The offset that the next record will get"),
    Column("seen_at", DateTime(timezone=True), nullable=False, comment="When a consumer asked for it"),
    schema="ingest",
    comment="Where each partition ended when it was last asked, every ten seconds",
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("topic_id", UUID, primary_key=True, comment="The broker's id of the topic"),
    Column("topic", Text, primary_key=True, comment="Kafka topic"),
    Column("partition", Integer, primary_key=True, comment="Kafka partition"),
    Column("offset", BigInteger, primary_key=True, comment="Kafka offset"),
    Column("key", LargeBinary, comment="The record's key"),
    Column("value", LargeBinary, comment="The record's value"),
    Column("headers", JSONB, nullable=False, comment="Pairs of name and base64 value"),
    Column("record_time", DateTime(timezone=True), comment="When the receiver got it"),
    Column("reason", Text, nullable=False, comment="Why it is no row"),
    Column(
        "first_seen_at", DateTime(timezone=True), nullable=False, server_default=text("now()"), comment="When it came"
    ),
    Column("redriven_at", DateTime(timezone=True), comment="When it became a row after all"),
    schema="ingest",
    comment="Records that could not become rows, whole",
)

suppressions = Table(
    "suppressions",
    metadata,
    Column("kind", Text, primary_key=True, comment="user or organization"),
    Column("hash", Text, primary_key=True, comment="Hash of the erased id"),
    Column("erased_at", DateTime(timezone=True), nullable=False, comment="Events up to then are not stored again"),
    CheckConstraint("kind IN ('user', 'organization')", name="kind_is_known"),
    schema="ingest",
    comment="Erased subjects, so that no replay brings them back",
)

erasures = Table(
    "erasures",
    metadata,
    Column("kind", Text, primary_key=True, comment="user or organization"),
    Column("hash", Text, primary_key=True, comment="Hash of the erased id"),
    Column("erased_at", DateTime(timezone=True), nullable=False, comment="Rows and dead letters up to then go"),
    Column(
        "started_at", DateTime(timezone=True), nullable=False, server_default=text("now()"), comment="When it began"
    ),
    _count("deleted", "Rows and dead letters deleted so far"),
    Column("done_at", DateTime(timezone=True), comment="When nothing was left to delete; null while under way"),
    CheckConstraint("kind IN ('user', 'organization')", name="kind_is_known"),
    schema="ingest",
    comment="The deletions that suppressions ask for, with their progress",
)

# An upsert never replaces these by NULL: what an earlier version of a span told is still known.
KEPT_COLUMNS = ("user_id", "organization_id", "session_id")
KEY = ("id", "timestamp")  # a span's start is part of what it is: sent again with another one, it is another row
Row = tuple[Any, ...]
INDEX = {
    name: {column.name: index for index, column in enumerate(table.columns)} for name, table in ANALYTICS_TABLES.items()
}  # of each column in its table's rows

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000


def _row_maker(table: Table) -> Callable[[Any], Row]:
    """Makes a function from an event to its values, in column order and in the form that asyncpg encodes fastest."""
    names = [column.name for column in table.columns]
    values_of = itemgetter(*("timestamp_us" if name == "timestamp" else name for name in names))
    uuids_at = [at for at, column in enumerate(table.columns) if isinstance(column.type, UUID)]
    metadata_at = names.index("event_metadata")

    def made(event: BaseEvent) -> Row:
        values = list(values_of(event.__dict__))  # half the time of its attributes
        for at in uuids_at:
            values[at] = values[at] and str(values[at])
        values[metadata_at] = to_json(values[metadata_at]).decode()
        return tuple(values)

    return made


def row_of(event: BaseEvent) -> Row:
    """The values of the event's table, in the order of its columns.

    Ids are text. The timestamp stays what it is, microseconds since 1970: our connections take it so.
    """
    return _row_makers[event.table](event)


def to_microseconds(timestamp: datetime) -> int:
    """Microseconds since 1970 UTC, as the event had them: exact."""
    return (timestamp - EPOCH) // timedelta(microseconds=1)


def from_microseconds(timestamp_us: int) -> datetime:
    """Microseconds since 1970 as a time: exact, or the nearest that there is."""
    return EPOCH + timedelta(microseconds=min(max(timestamp_us, TIMESTAMP_US_MIN), TIMESTAMP_US_MAX))


_row_makers = {name: _row_maker(table) for name, table in ANALYTICS_TABLES.items()}
