"""events <-> record values, side by side. Pure.

A value is compact JSON without nulls; it names its schema version and its table. Decoders accept every
past version for ever: tests/golden holds a record of each.
"""

from typing import Any, NamedTuple

import orjson
from pydantic import TypeAdapter, ValidationError

from shared.errors import Undecodable
from shared.events import EVENT_MODELS, SCHEMA_VERSION, TABLES, BaseEvent, Event

_validate = TypeAdapter[Event](
    Event
).validator.validate_json  # without the adapter's own wrapping: a tenth of a decoding


# Below the broker's default max.message.bytes of 1 MiB, with room for headers.
BATCH_BYTES_MAX = 900 * 1024
RECORD_OVERHEAD_BYTES = 128  # headers, lengths, offsets and times around key and value, rounded up
RECORD_BYTES_MAX = BATCH_BYTES_MAX - RECORD_OVERHEAD_BYTES  # of key and value; a larger one fits into no batch


class Record(NamedTuple):
    """What goes to the topic, with its table's HEADERS. `key` is the event id as text, and tells the partition."""

    table: str
    key: bytes
    value: bytes

    def partition(self, partitions: int) -> int:
        """As `partition_of` its event's id."""
        return int(self.key[-8:], 16) % partitions


def encode(event: BaseEvent) -> Record:
    return Record(event.table, str(event.id).encode(), event.model_dump_json(exclude_none=True).encode())


def decode(value: bytes) -> Event:
    """One event of any schema version up to ours.

    Raises:
        Undecodable: it is none, and never will be for this code; the reason is of a closed set and
            repeats nothing of the value.
    """
    if not value:
        raise Undecodable("empty")
    try:
        event: Event = _validate(value)
    except ValidationError:
        undecodable = _why(value)
    else:
        if value.startswith(_BEGINNINGS) or _names_version(value):
            return event
        undecodable = Undecodable("invalid_fields")
    raise undecodable  # outside the except: the ValidationError repeats the data


# As our own encoder begins. Other orders of fields are as good, and take a second look.
_BEGINNINGS = tuple(f'{{"schema_version":{version},'.encode() for version in range(1, SCHEMA_VERSION + 1))


def _names_version(value: bytes) -> bool:
    """Whether the field is present and a whole number: pydantic takes true for 1, and fills in a missing one."""
    try:
        return type(orjson.loads(value).get("schema_version")) is int
    except orjson.JSONDecodeError:
        return False


def _why(value: bytes) -> Undecodable:
    try:
        fields: Any = orjson.loads(value)
    except orjson.JSONDecodeError:
        return Undecodable("not_json")
    if not isinstance(fields, dict):
        return Undecodable("invalid_fields")
    version = fields.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        return Undecodable("newer_schema")
    if fields.get("table") not in TABLES:
        return Undecodable("unknown_type")
    return Undecodable("invalid_fields")


def _headers(model: type[BaseEvent]) -> list[tuple[str, bytes]]:
    fields = model.model_fields
    version, table = (str(fields[name].default).encode() for name in ("schema_version", "table"))
    return [("event_type", table), ("schema_version", version)]


HEADERS = {model.model_fields["table"].default: _headers(model) for model in EVENT_MODELS}
