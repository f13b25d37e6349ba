"""A broker that refuses writes for want of a right: not ready, and ready again when the right is given."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

from deploy.local.kafka import KafkaBroker
from support.otlp import features, request
from support.receiver import AS_SHIPPED, Receiver, export, until

TOPIC, LITERAL, DENY, WRITE = 2, 3, 2, 4  # as Kafka's protocol numbers them


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[KafkaBroker]:
    """A broker that knows rights; what nobody has a rule for is allowed."""
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with KafkaBroker(folder / "kafka-guarded", properties=properties) as broker:
        yield broker


async def rule(broker: KafkaBroker, topic: str, *, is_given: bool) -> None:
    """Deny everybody to write the topic, or take that back."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        line = (TOPIC, topic, LITERAL, "User:ANONYMOUS", "*", WRITE, DENY)
        response = await admin._send_request(CreateAclsRequest(*line) if is_given else DeleteAclsRequest(*line))
        assert "Security" not in str(response)
    finally:
        await admin.close()


async def test_a_receiver_that_may_not_write_is_not_ready(guarded: KafkaBroker, tmp_path: Path) -> None:
    """Its /readyz said ok while every request was refused: a load balancer sent it all there was."""
    receiver = Receiver(guarded.bootstrap_servers, tmp_path, **AS_SHIPPED).start()
    try:
        await receiver.ready()
        async with receiver.channel() as channel:
            assert (await export(channel, request(features(3)))).code == "OK"
            await rule(guarded, receiver.topic, is_given=True)

            async def is_refused() -> bool:
                answer = await export(channel, request(features(3)))
                return answer.code == "UNAVAILABLE" and answer.retry_s is not None

            await until(is_refused, 10, "refused")
            assert not await receiver.is_ready()
            assert "give this user WRITE" in receiver._get("/readyz")[1]
            await rule(guarded, receiver.topic, is_given=False)

            async def is_taken() -> bool:
                return (await export(channel, request(features(3)))).code == "OK"

            await until(is_taken, 20, "taken again")
            assert await receiver.is_ready()
    finally:
        receiver.kill()
