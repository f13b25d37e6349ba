"""records -> what each of them is, by the reference. Pure."""

from typing import NamedTuple

from aiokafka import ConsumerRecord

from consumer.store.dead_letters import DeadLetter, Place
from consumer.store.schema import INDEX, Row, row_of
from shared.errors import Undecodable
from shared.wire import decode


class Decoded(NamedTuple):
    """A record and what it is: an event's row, a dead letter, or a tombstone (neither).

    Of the event its row is kept and nothing else: three batches of models would be memory, and work for the
    garbage collector.
    """

    record: ConsumerRecord
    table: str = ""  # of its row; empty when it has none
    row: Row = ()
    dead_letter: DeadLetter | None = None

    @property
    def place(self) -> Place:
        return self.record.partition, self.record.offset

    @property
    def user_id(self) -> str | None:
        hashed: str | None = self.row[INDEX[self.table]["user_id"]]
        return hashed

    @property
    def organization_id(self) -> str | None:
        hashed: str | None = self.row[INDEX[self.table]["organization_id"]]
        return hashed

    @property
    def timestamp_us(self) -> int:
        happened_us: int = self.row[INDEX[self.table]["timestamp"]]
        return happened_us


def decoded(record: ConsumerRecord) -> Decoded:
    """One record -> one row, or why it has none. Never raises for any bytes."""
    if record.value is None:
        return Decoded(record)
    try:
        event = decode(record.value)
    except Undecodable as undecodable:
        return Decoded(record, dead_letter=DeadLetter(record, undecodable.reason))
    return Decoded(record, event.table, row_of(event))
