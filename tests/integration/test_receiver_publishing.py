"""Events on their way to the topic: shared batches, and a broker that dies, freezes, refuses and comes back."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from deploy.local.kafka import KafkaBroker
from support.machine import Lateness
from support.otlp import Feature, features, request
from support.receiver import AS_SHIPPED, Answer, Receiver, export, records_of, until

SENDERS = 16
ANSWERED_WITHIN_S = 4.5
BACK_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One that may be killed and frozen: the others' broker stays out of it."""
    with KafkaBroker(tmp_path_factory.mktemp("broker")) as made:
        yield made


@pytest.fixture
async def receiver(broker: KafkaBroker, tmp_path: Path) -> AsyncIterator[Receiver]:
    made = Receiver(broker.bootstrap_servers, tmp_path, **AS_SHIPPED).start()
    await made.ready()
    yield made
    made.kill()


class Load:
    """Senders who go on sending until they are told to end, each on a connection of its own."""

    def __init__(self, receiver: Receiver, senders: int = SENDERS, spans: int = 20) -> None:
        self.late = Lateness()
        self.answers: list[tuple[float, Answer]] = []  # with the time when each was sent
        self.accepted: set[bytes] = set()
        self._receiver = receiver
        self._spans = spans
        self._is_over = False
        self._senders = senders

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with self.late:
            async with self._sending():
                yield

    @asynccontextmanager
    async def _sending(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._senders):
                group.create_task(self._send())
            try:
                yield
            finally:
                self._is_over = True

    async def _send(self) -> None:
        async with self._receiver.channel() as channel:
            while not self._is_over:
                sent = features(self._spans)
                sent_at = time.monotonic()
                answer = await export(channel, request(sent), timeout_s=20)
                self.answers.append((sent_at, answer))
                if answer.code == "OK":
                    self.accepted |= keys_of(sent)
                else:  # as clients do, only sooner
                    await asyncio.sleep(random.uniform(0.01, 0.1))

    async def answered(self, count: int, code: str = "OK", seconds: float = 20) -> None:
        """Wait for so many more answers of this code."""
        wanted = self.count(code) + count

        async def are_there() -> bool:
            return self.count(code) >= wanted

        await until(are_there, seconds, f"{count} more {code}; until now {Counter(a.code for _, a in self.answers)}")

    def count(self, code: str) -> int:
        return sum(answer.code == code for _, answer in self.answers)

    def check(self, *, allowed: set[str]) -> None:
        """Every answer is a true one, in time, and says when to come again."""
        assert {answer.code for _, answer in self.answers} <= allowed
        for _, answer in self.answers:
            assert answer.seconds < ANSWERED_WITHIN_S + self.late.allowance_s, answer
            if answer.code == "UNAVAILABLE":
                assert answer.retry_s is not None, answer
                assert 1 <= answer.retry_s <= 30


def keys_of(sent: list[Feature]) -> set[bytes]:
    return {str(feature.id).encode() for feature in sent}


async def stored_keys(broker: KafkaBroker, receiver: Receiver) -> set[bytes]:
    return {record.key for record in await records_of(broker, receiver.topic)}


async def test_concurrent_requests_share_batches_and_each_span_is_there_once(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    """One batch a request would be 100 times the load on the broker."""
    sent = [features(20, filler="x" * random.randrange(500)) for _ in range(20 * SENDERS)]
    # Batches stay open for long, so that requests really meet in them, however slow this machine is.
    receiver = Receiver(broker.bootstrap_servers, tmp_path, PUBLISH_LINGER_MS=1000).start()
    try:
        await receiver.ready()
        async with receiver.channel() as channel:
            before = await receiver.metric("receiver_batches_total")
            answers = await asyncio.gather(*(export(channel, request(spans)) for spans in sent))
            batches = await receiver.metric("receiver_batches_total") - before
        assert {(answer.code, answer.has_partial) for answer in answers} == {("OK", False)}
        records = Counter(record.key for record in await records_of(broker, receiver.topic))
        assert records == Counter(dict.fromkeys(keys_of([feature for spans in sent for feature in spans]), 1))
        assert batches < len(sent) / 2, "each request meets all 4 partitions: alone it would make 4 batches"
    finally:
        receiver.kill()


async def test_batches_that_fill_up_lose_nothing_and_wait_their_turn(broker: KafkaBroker, tmp_path: Path) -> None:
    """At the seam of two batches, and when five of them queue for a partition that stands still for a while.

    Not for longer than the producer's request timeout of 3 s, or they fail: a machine that is slower tries again.
    """
    for _ in range(8):
        if await are_queued_batches_stored(broker, tmp_path):
            return
    pytest.fail("the batches could not be queued within 3 s, eight times over")


async def are_queued_batches_stored(broker: KafkaBroker, folder: Path) -> bool:
    """One try, with a topic of its own; false when it took too long."""
    sent = features(4500, filler="y" * 900)
    body = request(sent)
    settings = {"KAFKA_TOPIC_PARTITIONS": 1, "PUBLISH_LINGER_MS": 1000, "PUBLISH_TIMEOUT_MS": 30_000}
    receiver = Receiver(broker.bootstrap_servers, folder, **settings).start()
    try:
        await receiver.ready()
        async with receiver.channel() as channel:
            broker.pause()
            frozen_at = time.monotonic()
            call = asyncio.create_task(export(channel, body, timeout_s=40))

            async def are_queued() -> bool:
                return await receiver.metric("receiver_inflight_bytes") > 4 * len(body) or is_late()

            def is_late() -> bool:
                return time.monotonic() - frozen_at > 2.5

            try:
                await until(are_queued, 15, "body and records in flight")
            finally:
                broker.resume()
            is_lost = is_late()
            answer = await call
        if is_lost:
            return False
        assert answer.code == "OK"
        assert await receiver.metric("receiver_batches_total") > 4
        records = await records_of(broker, receiver.topic)
        values = {record.key: json.loads(record.value) for record in records}
        assert len(records) == len(sent)
        assert values == {str(feature.id).encode(): feature.value() for feature in sent}
        return True
    finally:
        receiver.kill()


async def kill_and_start(broker: KafkaBroker, load: Load) -> float:
    await asyncio.to_thread(broker.kill)
    await load.answered(SENDERS, "UNAVAILABLE")
    await asyncio.to_thread(broker.start)
    return time.monotonic()


async def freeze_and_thaw(broker: KafkaBroker, load: Load) -> float:
    broker.pause()
    await load.answered(2 * SENDERS, "UNAVAILABLE")
    broker.resume()
    return time.monotonic()


async def shutdown_and_start(broker: KafkaBroker, load: Load) -> float:
    await asyncio.to_thread(broker.stop)
    await load.answered(SENDERS, "UNAVAILABLE")
    await asyncio.to_thread(broker.start)
    return time.monotonic()


async def outage(broker: KafkaBroker, receiver: Receiver, cycles: int, fault: object) -> None:
    load = Load(receiver)
    async with load.running():
        await load.answered(5 * SENDERS)
        for _ in range(cycles):
            back_at = await fault(broker, load)  # type: ignore[operator]
            await load.answered(1)
            first_ok = min(at + a.seconds for at, a in load.answers if a.code == "OK" and at + a.seconds > back_at)
            assert first_ok - back_at < BACK_WITHIN_S + load.late.allowance_s
            await load.answered(SENDERS)
    load.check(allowed={"OK", "UNAVAILABLE"})
    assert load.accepted <= await stored_keys(broker, receiver)
    assert await receiver.is_ready()
    await receiver.idle()


@pytest.mark.parametrize("fault", [kill_and_start, freeze_and_thaw, shutdown_and_start])
async def test_a_lost_broker_costs_no_accepted_span_and_the_receiver_recovers(
    broker: KafkaBroker, receiver: Receiver, fault: object
) -> None:
    """Fact 1 of the guarantee, and the reason that no exporter drops a batch meanwhile."""
    await outage(broker, receiver, 1, fault)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", [kill_and_start, freeze_and_thaw, shutdown_and_start])
async def test_ten_lost_brokers(broker: KafkaBroker, receiver: Receiver, fault: object) -> None:
    """The same, ten times over in one process: nothing wears out."""
    await outage(broker, receiver, 10, fault)


async def test_a_receiver_started_without_kafka_becomes_ready(broker: KafkaBroker, tmp_path: Path) -> None:
    """After a power cut everything starts at once, in any order."""
    await asyncio.to_thread(broker.stop)
    receiver = Receiver(broker.bootstrap_servers, tmp_path).start()
    try:
        async with receiver.channel() as channel:

            async def is_open() -> bool:
                return (await export(channel, b"", timeout_s=1)).code == "OK"

            await until(is_open, 20, "alive")
            assert not await receiver.is_ready()
            answer = await export(channel, request(features(1)))
            assert answer.code == "UNAVAILABLE"
            await asyncio.to_thread(broker.start)
            await receiver.ready(BACK_WITHIN_S)
            assert (await export(channel, request(features(1)))).code == "OK"
    finally:
        await asyncio.to_thread(lambda: broker.is_running or broker.start())
        receiver.kill()


async def test_a_refused_write_is_told_and_the_next_one_works(broker: KafkaBroker, tmp_path: Path) -> None:
    """Too few replicas in sync: the broker is well, and still nothing may be called stored."""
    topic = f"refusing-{random.getrandbits(32)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    receiver = Receiver(broker.bootstrap_servers, tmp_path, KAFKA_TOPIC=topic)
    try:
        await admin.create_topics([NewTopic(topic, 4, 1, topic_configs={"max.message.bytes": "1000"})])
        receiver.start()
        await receiver.ready()
        async with receiver.channel() as channel:
            refused = await export(channel, request(features(1, filler="".join(map(chr, range(256, 1256))))))
            assert refused.code == "UNAVAILABLE"
            assert refused.retry_s is not None
            assert (await export(channel, request(features(1)))).code == "OK"
    finally:
        receiver.kill()
        await admin.close()


async def test_added_partitions_are_used_without_a_restart(broker: KafkaBroker, receiver: Receiver) -> None:
    """An operator adds partitions when the consumers need them, and not when it suits the receivers."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_partitions({receiver.topic: NewPartitions(7)})
    finally:
        await admin.close()
    async with receiver.channel() as channel:

        async def are_used() -> bool:
            sent = features(50)
            assert (await export(channel, request(sent))).code == "OK"
            keys = keys_of(sent)
            used = {record.partition for record in await records_of(broker, receiver.topic) if record.key in keys}
            return used == set(range(7))

        await until(are_used, 20, "all 7 partitions in use")


async def test_callers_who_leave_take_nothing_of_the_others_along(broker: KafkaBroker, receiver: Receiver) -> None:
    """A batch belongs to all whose records it holds."""
    async with receiver.channel() as channel:
        for _ in range(20):
            staying, leaving = features(20), features(20)
            call = asyncio.create_task(export(channel, request(leaving)))
            answer = asyncio.create_task(export(channel, request(staying)))
            await asyncio.sleep(random.uniform(0, 0.008))
            call.cancel()
            assert (await answer).code == "OK"
            assert keys_of(staying) <= await stored_keys(broker, receiver)
    await receiver.idle()
