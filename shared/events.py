"""The typed events, one class a table: the fields of a record and of its row. Pure.

Field order is column order is the order on the wire. Limits are the columns' own, in code points.
"""

from hashlib import sha256
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Discriminator, Field

SCHEMA_VERSION = 2  # the newest of any event

# What Python and timestamptz both hold: 0001-01-01 to 9999-12-31, in microseconds since 1970 UTC.
TIMESTAMP_US_MIN = -62_135_596_800_000_000
TIMESTAMP_US_MAX = 253_402_300_799_999_999

Text32 = Annotated[str, Field(max_length=32)]
Text50 = Annotated[str, Field(max_length=50)]
Text100 = Annotated[str, Field(max_length=100)]
Text255 = Annotated[str, Field(max_length=255)]
Duration = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=0, le=2**63 - 1)]


class BaseEvent(BaseModel):
    """The fields that every event has. `id` identifies the span; `timestamp_us` is its start, UTC.

    `weight` is how many spans this one stands for when the sender kept a share of them. Since version 2:
    `service_name`, `service_version`, `trace_id`, `weight`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, hide_input_in_errors=True)

    schema_version: int
    table: str
    id: UUID
    timestamp_us: Annotated[int, Field(ge=TIMESTAMP_US_MIN, le=TIMESTAMP_US_MAX)]
    deployment_type: Text50
    user_id: Text32 | None = None
    organization_id: Text32 | None = None
    service_name: Text255 | None = None
    service_version: Text100 | None = None
    trace_id: UUID | None = None
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0


class UserActivity(BaseEvent):
    """A person did something: login, logout, a session."""

    schema_version: Literal[1, 2] = 2
    table: Literal["user_activity"] = "user_activity"
    user_id: Text32
    event_type: Text50
    session_id: Text255 | None = None
    event_metadata: dict[str, Any]


class EndpointUsage(BaseEvent):
    """An endpoint answered a request."""

    schema_version: Literal[1, 2] = 2
    table: Literal["endpoint_usage"] = "endpoint_usage"
    endpoint: Text255
    method: Annotated[str, Field(max_length=10)] | None = None
    status_code: Annotated[int, Field(ge=0, le=999)] | None = None
    duration_ms: Duration | None = None
    event_metadata: dict[str, Any]


class FeatureUsage(BaseEvent):
    """A feature was used."""

    schema_version: Literal[1, 2] = 2
    table: Literal["feature_usage"] = "feature_usage"
    feature_name: Text100
    action: Text100 | None = None
    event_metadata: dict[str, Any]


class ModelUsage(BaseEvent):
    """A language model answered a call: how many tokens, how long. Since version 2."""

    schema_version: Literal[2] = 2
    table: Literal["model_usage"] = "model_usage"
    operation: Text50
    provider: Text100 | None = None
    model: Text255 | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    duration_ms: Duration | None = None
    error_type: Text100 | None = None
    event_metadata: dict[str, Any]


ProductEvent = UserActivity | EndpointUsage | FeatureUsage | ModelUsage
Event = Annotated[ProductEvent, Discriminator("table")]
Table = Literal["user_activity", "endpoint_usage", "feature_usage", "model_usage"]

EVENT_MODELS: tuple[type[ProductEvent], ...] = get_args(ProductEvent)
TABLES: tuple[Table, ...] = get_args(Table)


def text_limits(model: type[BaseEvent]) -> dict[str, int]:
    """Longest text of each text field, in code points, from the model itself."""
    fields: dict[str, dict[str, Any]] = model.model_json_schema()["properties"]
    return {
        name: kind["maxLength"]
        for name, field in fields.items()
        for kind in (field, *field.get("anyOf", ()))  # an optional text is any of text and null
        if "maxLength" in kind
    }


def event_id(trace_id: bytes, span_id: bytes) -> UUID:
    """The row's key: a version 8 UUID (RFC 9562) from SHA-256 over 16 bytes of trace and 8 of span id.

    A pure function of the two, so a span that is sent twice is one row. `span_id` alone would not do:
    it is unique within its trace only.
    """
    number = int.from_bytes(sha256(trace_id + span_id).digest()[:16])
    number = number & ~(0xF << 76) | 0x8 << 76  # version
    number = number & ~(0x3 << 62) | 0x2 << 62  # variant
    return UUID(int=number)


def partition_of(id_: UUID, partitions: int) -> int:
    """The last 4 bytes of the id, big-endian, modulo the number of partitions.

    Both are uniform, and so one span always meets its own earlier record in one partition.
    """
    return (id_.int & 0xFFFF_FFFF) % partitions
