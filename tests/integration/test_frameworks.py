"""What real frameworks sent, through a running receiver and consumer, by both engines, to rows."""

import asyncio

import grpc
import pytest

from shared.engine import is_native_built
from support.frameworks import ROWS, sent_by, table_of
from support.receiver import EXPORT
from support.stack import Stack

EVENTS = sum(map(len, ROWS.values()))


@pytest.mark.parametrize("engine", ["python", *(["native"] if is_native_built() else [])])
async def test_every_framework_has_its_rows(stack: Stack, engine: str) -> None:
    """Who and which: the two questions that the product is there for."""
    receiver = stack.receiver(ENGINE=engine)
    stack.consumer()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{receiver.port_of('PORT')}") as channel:
        export = channel.unary_unary(EXPORT)
        replies = await asyncio.gather(*(export(sent_by(framework), timeout=10) for framework in ROWS))
    assert replies == [b""] * len(ROWS)  # nothing was rejected
    await stack.settled(EVENTS)
    for framework, expected in ROWS.items():
        names = ", ".join(expected[0])
        query = f"SELECT {names} FROM {table_of(framework)} WHERE service_name = $1"
        assert sorted(await stack.fetch(query, framework), key=str) == sorted(expected, key=str), framework
