"""What a transaction has settled. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from consumer.store.dead_letters import DeadLetter
from consumer.store.ledger import Move


@dataclass(slots=True)
class Written:
    """A fate for every offset that the moves pass."""

    moves: dict[int, Move]
    fates: Counter[tuple[str, str]] = field(default_factory=Counter)  # (fate, table)
    reasons: Counter[str] = field(default_factory=Counter)  # of new dead letters
    cut_at: int | None = None  # the breaker let only so many records pass

    def count(self, fate: str, table: str, partition: int, records: int = 1) -> None:
        self.moves[partition].counts[fate] += records
        self.fates[fate, table] += records

    def count_rows(self, table: str, rows: Mapping[int, int], new_rows: Mapping[int, int]) -> None:
        """Both by partition: the rows that were written, and those that were not there before."""
        for partition, records in rows.items():
            stored = new_rows.get(partition, 0)
            self.count("stored", table, partition, stored)
            self.count("duplicates", table, partition, records - stored)

    def count_dead_letters(self, letters: Iterable[DeadLetter], new: Iterable[DeadLetter]) -> None:
        for letter in letters:
            self.count("dead_lettered", "", letter.record.partition)
        self.reasons.update(letter.reason for letter in new)

    def settle(self) -> None:
        """Count as skipped the offsets without a fate: they held no record, or a tombstone."""
        for move in self.moves.values():
            self.fates["skipped", ""] += move.settle()
