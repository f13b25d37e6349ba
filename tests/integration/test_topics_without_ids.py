"""Brokers that give a topic no id: it is known again by its last record, until the first real id comes."""

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from consumer.pipeline import positions
from consumer.topic_identity import NO_TOPIC_ID
from support.command import answered, command
from support.loop import consumer_loop
from support.records import made
from support.stack import Stack, eventually

LAST = b'{"schema_version":1,"table":"page_views"}'


async def no_id(_: Any, __: str) -> UUID:
    """What the request gives where the broker is too old for it."""
    return NO_TOPIC_ID


@asynccontextmanager
async def old_broker(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A consumer in this process whose request for the topic's id is answered as by an old broker."""
    with monkeypatch.context() as patch:
        patch.setattr(positions, "topic_id", no_id)
        async with consumer_loop(stack, monkeypatch, in_group=False) as loop:
            loop.start(loop.pipeline.run(loop.stop))
            yield


async def settled_without_ids(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows, a dead letter behind them, and a ledger that knows no id."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, made(random.Random(index)).value) for index in range(3)])
    await stack.send([(0, LAST)])
    async with old_broker(stack, monkeypatch):
        await stack.settled(4)
    [line] = await stack.ledger()
    assert (line["topic_id"], line["last_record_hash"]) == (NO_TOPIC_ID, hashlib.sha256(LAST).digest())


async def topic_ids(stack: Stack) -> set[UUID]:
    """Of ledger and dead letters."""
    return {
        row["topic_id"]
        for table in ("partition_offsets", "dead_letters")
        for row in await stack.fetch(f"SELECT topic_id FROM ingest.{table}")
    }


async def test_the_first_real_id_replaces_the_zeros_in_dead_letters_too(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade of the broker is no new topic: a replay after it must know its own dead letters again."""
    await settled_without_ids(stack, monkeypatch)
    stack.consumer()

    async def are_replaced() -> bool:
        ids = await topic_ids(stack)
        return len(ids) == 1 and NO_TOPIC_ID not in ids

    await eventually(are_replaced, 20, "the topic's own id everywhere")
    await answered(stack, "rewind", "--to-start")
    await stack.settled(4)
    assert len(await stack.fetch("SELECT 1 FROM ingest.dead_letters")) == 1
    assert (await stack.ledger())[0]["epoch"] == 1


async def test_a_rewind_before_any_consumer_knows_the_id_finds_its_dead_letters_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would be written a second time, and count for the breaker."""
    await settled_without_ids(stack, monkeypatch)
    await answered(stack, "rewind", "--to-start")
    assert NO_TOPIC_ID not in await topic_ids(stack)
    stack.consumer()
    await stack.settled(4)
    assert len(await stack.fetch("SELECT 1 FROM ingest.dead_letters")) == 1


async def test_another_record_before_the_position_is_another_topic(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ids the last record is all that tells a recreated topic that has outgrown the ledger."""
    await settled_without_ids(stack, monkeypatch)
    await stack.fetch("UPDATE ingest.partition_offsets SET last_record_hash = sha256('another')")
    code, _, err = await command(stack, "rewind", "--to-start")
    assert (code, "--accept-new-topic" in err) == (1, True)
    consumer = stack.consumer(is_awaited=False)

    async def is_refused() -> bool:
        return "topic_refused" in consumer.log.read_text()

    await eventually(is_refused, 20, "the consumer stopped")
    assert (await stack.ledger())[0]["topic_id"] == NO_TOPIC_ID
    await answered(stack, "rewind", "--to-start", "--accept-new-topic")
    await stack.settled(4, 40)

    async def are_two() -> bool:  # the old topic's, and the new one's at the same place
        return len(await stack.fetch("SELECT 1 FROM ingest.dead_letters")) == 2

    await eventually(are_two, 40, "the new topic's own dead letter")
    assert NO_TOPIC_ID not in await topic_ids(stack)
