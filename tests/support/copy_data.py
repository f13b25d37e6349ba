"""Postgres' binary COPY format -> rows, independent of what writes it."""

import struct
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Double, Integer
from sqlalchemy.dialects import postgresql

from consumer.store.schema import ANALYTICS_TABLES

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_2000_US = 946_684_800_000_000


def rows_of(table: str, data: bytes, *, is_staged: bool = False) -> list[tuple[Any, ...]]:
    """The rows as `row_of` makes them; staged ones with their partition behind."""
    assert data.startswith(SIGNATURE)
    types: Sequence[Any] = [column.type for column in ANALYTICS_TABLES[table].columns]
    types = [*types, Integer()] if is_staged else types
    rows, at = [], len(SIGNATURE)
    while (count := struct.unpack_from(">h", data, at)[0]) != -1:
        assert count == len(types)
        at += 2
        row = []
        for column_type in types:
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            row.append(None if length == -1 else _value(column_type, data[at : at + length]))
            at += max(length, 0)
        rows.append(tuple(row))
    assert at + 2 == len(data)
    return rows


def _value(column_type: Any, raw: bytes) -> Any:
    match column_type:
        case postgresql.UUID():
            return str(UUID(bytes=raw))
        case postgresql.JSONB():
            assert raw[0] == 1
            return raw[1:].decode()
        case DateTime():
            return struct.unpack(">q", raw)[0] + _2000_US
        case BigInteger():
            return struct.unpack(">q", raw)[0]
        case Integer():
            return struct.unpack(">i", raw)[0]
        case Double():
            return struct.unpack(">d", raw)[0]
        case _:
            return raw.decode()
