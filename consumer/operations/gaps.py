"""Gaps: offsets that retention took away unread, or that the topic lost. Listed, and acknowledged by an operator."""

from collections.abc import Sequence
from typing import Any

from asyncpg import Connection

from consumer.operations.operation import WrongUse


async def listed(connection: Connection, topic: str, *, acknowledged: bool) -> list[dict[str, Any]]:
    """The topic's gaps in the order of their finding; those that were acknowledged too if wished."""
    rows = await connection.fetch(
        """
        SELECT id, partition, from_offset, to_offset, reason, seen_at, acknowledged_at FROM ingest.gaps
        WHERE topic = $1 AND ($2 OR acknowledged_at IS NULL) ORDER BY id
        """,
        topic,
        acknowledged,
    )
    return [dict(row) for row in rows]


async def acknowledge(connection: Connection, topic: str, ids: Sequence[int]) -> int:
    """Mark the gaps as known, all of the topic's when no ids are given; how many were not before. Idempotent.

    Raises:
        WrongUse: the topic has no gap of such an id; nothing was marked.
    """
    known = {gap["id"] for gap in await listed(connection, topic, acknowledged=True)}
    if unknown := set(ids) - known:
        raise WrongUse(f"there is no gap {min(unknown)}: `consumer gaps list` shows those that are open")
    status = await connection.execute(
        """
        UPDATE ingest.gaps SET acknowledged_at = now()
        WHERE topic = $1 AND acknowledged_at IS NULL AND ($2::bigint[] = '{}' OR id = ANY($2))
        """,
        topic,
        list(ids),
    )
    return int(status.rpartition(" ")[2])
