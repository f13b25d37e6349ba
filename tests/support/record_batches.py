"""Record batches as a broker hands them out, made by aiokafka's own builder."""

import struct
from collections.abc import Iterable

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from consumer.pipeline.records.record_batches import Fetched, records_of

PLACE = TopicPartition("telemetry.events", 3)
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
LOG_APPEND_TIME, TRANSACTIONAL, CONTROL = 0x08, 0x10, 0x20
Headers = list[tuple[str, bytes | None]]


def batch_of(
    values: Iterable[bytes | None],
    *,
    first_offset: int = 0,
    deltas: Iterable[int] | None = None,
    codec: int = ZSTD,
    first_ms: int = 1_795_460_000_000,
    key: bytes | None = b"key",
    headers: Headers | None = None,
) -> bytes:
    """One batch; `deltas` are the offsets' distances from `first_offset`, which compaction leaves gaps in."""
    listed = [*values]
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 30)
    for number, (delta, value) in enumerate(zip(deltas or range(len(listed)), listed, strict=True)):
        builder.append(delta, first_ms + number, key, value, headers or [])
    return at_offset(bytes(builder.build()), first_offset)


def at_offset(batch: bytes, offset: int) -> bytes:
    return struct.pack(">q", offset) + batch[8:]


def with_attributes(batch: bytes, attributes: int) -> bytes:
    """With more bits among the attributes, and a checksum that is right."""
    (before,) = struct.unpack_from(">h", batch, 21)
    return checked(batch[:21] + struct.pack(">h", before | attributes) + batch[23:])


def checked(batch: bytes) -> bytes:
    """With a right length and checksum, whatever the rest."""
    whole = batch[:8] + struct.pack(">i", len(batch) - 12) + batch[12:]
    return whole[:17] + struct.pack(">I", calc_crc32c(whole[21:])) + whole[21:]


def fetched(batch: bytes, from_offset: int = 0) -> Fetched:
    return Fetched(PLACE, batch, from_offset)


def records(batch: bytes, from_offset: int = 0) -> list[ConsumerRecord[bytes, bytes]]:
    """As aiokafka reads them."""
    return records_of(fetched(batch, from_offset))
