"""The topic of erasures: records, reading to the end, and writing. The truth that outlives a restored database."""

import asyncio
import json
from uuid import UUID

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from consumer.store.suppressions import COLUMN, Subject, Suppressions
from consumer.topic_identity import topic_id
from shared.broker import KAFKA_ERRORS, new_consumer, new_producer
from shared.errors import BrokerUnavailable, WrongTopic
from shared.lifecycle import stop_within
from shared.settings import KafkaSettings

READ_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0


def encode(subject: Subject, erased_at_us: int) -> tuple[bytes, bytes]:
    """Key and value of a record in the topic of erasures."""
    value = {"kind": subject.kind, "hash": subject.hash, "erased_at_us": erased_at_us}
    return f"{subject.kind}:{subject.hash}".encode(), json.dumps(value, separators=(",", ":")).encode()


def decode(value: bytes) -> tuple[Subject, int]:
    """A subject and when it was erased, in microseconds since 1970 UTC.

    Raises:
        WrongTopic: this is no suppression. One that cannot be read must stop us, not be passed over.
    """
    try:
        fields = json.loads(value)
        kind, hashed, erased_at_us = fields["kind"], fields["hash"], fields["erased_at_us"]
    except (ValueError, KeyError, TypeError) as error:
        raise WrongTopic(_FOREIGN) from error
    if kind not in COLUMN or not isinstance(hashed, str) or type(erased_at_us) is not int:
        raise WrongTopic(_FOREIGN)
    return Subject(kind, hashed), erased_at_us


_FOREIGN = (
    "the topic of erasures holds a record that is no erasure. Something else writes to it: stop that, delete "
    "the topic, and restart a consumer, which writes it again from ingest.suppressions"
)


class Topic:
    """The topic of erasures, read to its end again and again; each time only what is new."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self.name = settings.kafka_suppressions_topic
        self._place = TopicPartition(self.name, 0)
        self._consumer: AIOKafkaConsumer | None = None
        self._identity: UUID | None = None
        self._known: Suppressions = {}
        self._turn = asyncio.Lock()  # several pipelines share it

    async def read(self) -> Suppressions:
        """Every erasure there is, with its latest date.

        Raises:
            BrokerUnavailable: the end was not reached. Nothing may be written then.
            WrongTopic: the topic does not exist, or holds a record that is no erasure.
        """
        async with self._turn:
            try:
                await self._read_new()
            except KAFKA_ERRORS as error:
                await self._forget()
                raise BrokerUnavailable(f"suppressions: {type(error).__name__}") from error
            except WrongTopic:
                await self._forget()  # or the next reading would begin behind the foreign record
                raise
            return self._known.copy()

    async def _read_new(self) -> None:
        async with asyncio.timeout(READ_TIMEOUT_S):
            identity = await self._identified()
            if identity != self._identity:  # deleted and made anew: what was read is of another topic
                await self._forget()
                identity = await self._identified()
            consumer = self._consumer
            assert consumer is not None
            if self._identity is None:
                consumer.assign([self._place])
                first = await consumer.beginning_offsets([self._place])
                consumer.seek(self._place, first[self._place])
                self._identity = identity
            end = (await consumer.end_offsets([self._place]))[self._place]
            if await consumer.position(self._place) > end:  # made anew, where the broker gives topics no id
                await self._forget()
                raise BrokerUnavailable("suppressions: the topic is shorter than it was")
            while await consumer.position(self._place) < end:
                for records in (await consumer.getmany(self._place, timeout_ms=500)).values():
                    for record in records:
                        self._note(record)

    async def _identified(self) -> UUID:
        """The topic's id, asked with the client that is made where there is none.

        Raises:
            WrongTopic: there is no such topic.
        """
        if self._consumer is None:
            self._consumer = new_consumer(self._settings, group=None)
            await self._consumer.start()
        identity = await topic_id(self._consumer._client, self.name)  # noqa: SLF001
        if identity is None:
            raise WrongTopic(
                f"the topic of erasures {self.name} does not exist. Restart a consumer: it makes the topic, "
                "and fills it from ingest.suppressions"
            )
        return identity

    def _note(self, record: ConsumerRecord) -> None:
        if record.value is not None:
            subject, erased_at_us = decode(record.value)
            self._known[subject] = max(erased_at_us, self._known.get(subject, erased_at_us))

    async def republish(self, erased: Suppressions) -> None:
        """Write erasures that the table knows and the topic lost.

        Raises:
            BrokerUnavailable: some may be missing still.
        """
        producer = new_producer(self._settings)
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await producer.start()
                await publish(producer, self.name, erased)
        except KAFKA_ERRORS as error:
            raise BrokerUnavailable(f"suppressions, republished: {type(error).__name__}") from error
        finally:
            await stop_within(producer.stop(), STOP_TIMEOUT_S)

    async def _forget(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._known = {}
        self._identity = None
        if consumer is not None:
            await stop_within(consumer.stop(), STOP_TIMEOUT_S)

    async def close(self) -> None:
        await self._forget()


async def publish(producer: AIOKafkaProducer, topic: str, erased: Suppressions) -> None:
    """Write the erasures to the topic; returns when every in-sync replica has them. Raises aiokafka's errors."""
    for subject, erased_at_us in erased.items():
        key, value = encode(subject, erased_at_us)
        await producer.send_and_wait(topic, value, key=key, partition=0)
