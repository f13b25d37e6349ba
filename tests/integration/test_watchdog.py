"""The watchdog: a loop that hangs is begun anew; one that has nothing to do is left alone."""

import asyncio
import random
from typing import Any

import pytest

from consumer.pipeline.monitor import Monitor
from consumer.pipeline.peek import peek_with
from support.loop import consumer_loop
from support.records import made
from support.stack import Stack, eventually


async def test_a_loop_that_hangs_with_records_before_it_is_begun_anew_and_an_idle_one_is_not(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client library that never answers again must not need a person at night."""
    async with consumer_loop(stack, monkeypatch, in_group=True) as loop:
        pipeline, client = loop.pipeline, loop.client
        monitor = Monitor(
            consumer=client,
            pipelines=[pipeline],
            ledger=loop.ledger,
            health=loop.health,
            database_url=loop.settings.database_url,
            peek=peek_with(loop.settings),
            suppressions=loop.erasures,
            retention_s=3600,
            stall_s=3,
        )
        interrupted: list[int] = []
        interrupt, getmany = pipeline.interrupt, client.getmany
        hangs, is_hanging = False, asyncio.Event()

        async def hanging(*places: Any, **options: Any) -> Any:
            if hangs and not interrupted:
                is_hanging.set()
                await asyncio.Event().wait()  # an answer that never comes
            return await getmany(*places, **options)

        def counted() -> None:
            interrupted.append(1)
            interrupt()

        monkeypatch.setattr(client, "getmany", hanging)
        monkeypatch.setattr(pipeline, "interrupt", counted)
        loop.start(pipeline.run(loop.stop), monitor.run(loop.stop))
        records = [made(random.Random(index)) for index in range(60)]
        await stack.send([(record.partition(), record.value) for record in records[:30]])
        await stack.settled(30)
        await asyncio.sleep(8)  # bounded: idle for more than twice the stall
        assert interrupted == []
        hangs = True
        await asyncio.wait_for(is_hanging.wait(), 20)  # or the fetch that is under way would take the records
        await stack.send([(record.partition(), record.value) for record in records[30:]])

        async def is_over() -> bool:
            return await stack.row_count() == 60

        await eventually(is_over, 60, "the loop begun anew")
        assert interrupted == [1]
