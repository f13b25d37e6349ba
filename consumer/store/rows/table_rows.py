"""The rows of one table in a batch: what the upsert asks of them, and the reference's own. Pure."""

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Protocol

from consumer.store.rows.decoded import Decoded
from consumer.store.schema import ANALYTICS_TABLES, DAY_US, INDEX, KEPT_COLUMNS, KEY, Row

Key = tuple[Any, int]  # id, timestamp in microseconds since 1970


class TableRows(Protocol):
    """Rows of one table, at least one. Of several versions of a row the latest counts: see `latest_rows`."""

    @property
    def counts(self) -> Counter[int]:
        """Rows by partition, all versions."""

    @property
    def latest_counts(self) -> Counter[int]:
        """Rows by the partition of their latest version."""

    def sample(self, count: int) -> list[Key]:
        """At most so many keys, spread evenly."""

    def times(self) -> list[int]:
        """The beginning of each UTC day that has a row, and the latest time of a row."""

    def copy_data(self, *, is_staged: bool) -> bytes | None:
        """The latest rows in Postgres' binary COPY format, sorted by key; None when asyncpg has to encode them.

        With `is_staged` the partition is one more column, of int4.
        """

    def copy_records(self, *, is_staged: bool) -> list[tuple[Any, ...]]:
        """The same as tuples, where there is no COPY data."""

    def decoded(self) -> Sequence[Decoded]:
        """All versions, by the reference, in the order of the batch."""


class ReferenceRows:
    """Rows that the reference made."""

    def __init__(self, table: str, rows: Sequence[Decoded]) -> None:
        self._rows = rows
        self._latest = latest_rows(table, rows)
        self.counts = Counter(each.record.partition for each in rows)

    @property
    def latest_counts(self) -> Counter[int]:
        return Counter(partition for _, partition in self._latest.values())

    def sample(self, count: int) -> list[Key]:
        return list(self._latest)[:: len(self._latest) // count + 1]

    def times(self) -> list[int]:
        times = {timestamp_us for _, timestamp_us in self._latest}
        return [*{time_us // DAY_US * DAY_US for time_us in times}, max(times)]

    def copy_data(self, *, is_staged: bool) -> None:  # noqa: ARG002
        return None

    def copy_records(self, *, is_staged: bool) -> list[tuple[Any, ...]]:
        latest = [self._latest[key] for key in sorted(self._latest)]
        return [(*row, partition) if is_staged else row for row, partition in latest]

    def decoded(self) -> Sequence[Decoded]:
        return self._rows


def latest_rows(table: str, rows: Sequence[Decoded]) -> dict[Key, tuple[Row, int]]:
    """By key, the last version of each row and its partition; an id that it lacks comes from an earlier version."""
    key_of = _key_of[table]
    latest: dict[Key, tuple[Row, int]] = {key_of(each.row): (each.row, each.record.partition) for each in rows}
    if len(latest) == len(rows):
        return latest
    kept_at = _KEPT_AT[table]
    merged: dict[Key, tuple[Row, int]] = {}
    for each in rows:
        row, key = each.row, key_of(each.row)
        if earlier := merged.get(key):
            values = list(row)
            for at in kept_at:
                if values[at] is None:
                    values[at] = earlier[0][at]
            row = tuple(values)
        merged[key] = (row, each.record.partition)
    return merged


_key_of = {name: itemgetter(*(index[column] for column in KEY)) for name, index in INDEX.items()}
_KEPT_AT = {
    name: [index for index, column in enumerate(table.columns) if column.name in KEPT_COLUMNS]
    for name, table in ANALYTICS_TABLES.items()
}
