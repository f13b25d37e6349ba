"""Through a real agent, as most spans come: SDK -> agent -> receiver -> topic, over outages too."""

import asyncio
import gzip
import json
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local.kafka import KafkaBroker
from support.agent import Agent
from support.otlp import features, request, span
from support.receiver import Receiver, records_of, until
from support.spans import Sent, Shop, exported, exporter

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 14), reason="the agent comes in no wheel for it")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One that may be frozen."""
    with KafkaBroker(tmp_path_factory.mktemp("broker")) as made:
        yield made


@asynccontextmanager
async def started(broker: KafkaBroker, folder: Path) -> AsyncIterator[tuple[Receiver, Agent]]:
    receiver = Receiver(broker.bootstrap_servers, folder).start()
    agent = Agent(folder / "agent", receiver.port)
    try:
        await receiver.ready()
        await asyncio.to_thread(agent.start)
        yield receiver, agent
    finally:
        await asyncio.to_thread(agent.stop)
        receiver.kill()


async def send(agent: Agent, spans: Sequence[Sent]) -> None:
    """From the SDK's own exporter to the agent, which says yes at once and has everything in memory."""
    client = exporter(agent.port_of("grpc"))
    try:
        assert await asyncio.to_thread(exported, client, spans)
    finally:
        await asyncio.to_thread(client.shutdown)


async def stored(broker: KafkaBroker, receiver: Receiver, keys: set[bytes], seconds: float = 30) -> dict[bytes, Any]:
    """The values of these records, once all of them are in the topic."""

    async def are_there() -> dict[bytes, Any]:
        records = {record.key: json.loads(record.value) for record in await records_of(broker, receiver.topic)}
        return records if keys <= set(records) else {}

    found = await until(are_there, seconds, "every span in the topic")
    return {key: found[key] for key in keys}


def keys_of(spans: Sequence[Sent]) -> set[bytes]:
    return {str(sent.id).encode() for sent in spans}


async def test_what_the_sdk_gives_to_an_agent_is_in_the_topic(broker: KafkaBroker, tmp_path: Path) -> None:
    """The agent re-groups, re-encodes and compresses: the events must be what the application said."""
    shop = Shop(seed=7)
    sent = [shop.any() for _ in range(300)]
    async with started(broker, tmp_path) as (receiver, agent):
        for start in range(0, len(sent), 100):
            await send(agent, sent[start : start + 100])
        values = await stored(broker, receiver, keys_of(sent))
        assert await receiver.metric("receiver_requests_total", code="OK") > 0
        assert await receiver.metric("receiver_spans_rejected_total") == 0
    for each in sent:
        value = values[str(each.id).encode()]
        assert value["table"] == each.table
        assert {name: value.get(name) for name in each.columns} == each.columns
        assert value["event_metadata"]["service.name"] == "shop"


async def test_what_comes_to_the_agent_over_http_is_in_the_topic(broker: KafkaBroker, tmp_path: Path) -> None:
    """Browsers and many SDKs speak OTLP/HTTP alone; an agent in between is how they reach a gRPC receiver."""
    plain, zipped = features(50, seed=3), features(50, seed=4)
    others = [span(bytes([n]) * 16, bytes([n]) * 8, {"db.system": "redis"}) for n in range(1, 11)]
    async with started(broker, tmp_path) as (receiver, agent):
        for body, encoding in ((request([*plain, *others]), "identity"), (gzip.compress(request(zipped)), "gzip")):
            headers = {"content-type": "application/x-protobuf", "content-encoding": encoding}
            post = urllib.request.Request(f"http://127.0.0.1:{agent.port_of('http')}/v1/traces", body, headers)
            assert await asyncio.to_thread(status_of, post) in (200, 202)
        values = await stored(broker, receiver, {str(feature.id).encode() for feature in (*plain, *zipped)})
        assert await receiver.metric("receiver_spans_ignored_total", reason="not_product_event") == len(others)
    assert values == {str(feature.id).encode(): feature.value() for feature in (*plain, *zipped)}


def status_of(post: urllib.request.Request) -> int:
    with urllib.request.urlopen(post, timeout=10) as answer:
        return int(answer.status)


async def test_an_agent_brings_again_what_came_while_the_receiver_was_away(broker: KafkaBroker, tmp_path: Path) -> None:
    """A crash, or a deploy of one replica: the spans wait in the agent."""
    shop = Shop(seed=8)
    async with started(broker, tmp_path) as (receiver, agent):
        before, during, after = [[shop.any() for _ in range(50)] for _ in range(3)]
        await send(agent, before)
        await stored(broker, receiver, keys_of(before))
        receiver.kill()
        await send(agent, during)
        await said(agent, "retry")
        receiver.start()
        await receiver.ready()
        await send(agent, after)
        await stored(broker, receiver, keys_of([*before, *during, *after]))


async def test_an_agent_brings_again_what_the_broker_did_not_take(broker: KafkaBroker, tmp_path: Path) -> None:
    """Our answer is one upon which it does so. An answer of another kind, and it throws the spans away."""
    shop = Shop(seed=9)
    async with started(broker, tmp_path) as (receiver, agent):
        before, during = [[shop.any() for _ in range(50)] for _ in range(2)]
        await send(agent, before)
        await stored(broker, receiver, keys_of(before))
        broker.pause()
        try:
            for start in range(0, len(during), 10):
                await send(agent, during[start : start + 10])

            async def are_refused() -> bool:
                return await receiver.metric("receiver_requests_total", code="UNAVAILABLE") >= 2

            await until(are_refused, 30, "refusals")
        finally:
            broker.resume()
        await stored(broker, receiver, keys_of(during))
        assert await receiver.metric("receiver_requests_total", code="UNAVAILABLE") >= 2
        assert await receiver.is_ready()


async def said(agent: Agent, text: str, seconds: float = 20) -> None:
    """Wait until the agent's log holds the text."""

    async def has_said() -> bool:
        return text in agent.log.read_text()

    await until(has_said, seconds, f"{text!r} in the agent's log")
