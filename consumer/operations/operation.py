"""What every command of the operator's works with: one connection, one Kafka client, one ledger, one way to answer."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer.settings import ConsumerSettings
from consumer.store.database import (
    DATABASE_ERRORS,
    Fate,
    connect,
    error_name,
    explained,
    fate_of,
    is_out_of_reach,
    refuse_transaction_pooling,
)
from consumer.store.ledger import Ledger
from shared.broker import KAFKA_ERRORS, new_consumer
from shared.errors import BrokerUnavailable, DatabaseUnavailable, Permanent
from shared.lifecycle import background, stop_within
from shared.output import write_out

CONNECT_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
# A statement of a command may take hours, and silence looks the same: so it is asked beside it. 24 s in all.
PROBE_EVERY_S = 3.0
SILENT_PROBES = 3
REBUILD_LOCK = 0x7E1E_0001  # advisory: a rebuild has it alone; who writes rows past the ledger shares it


class Refused(Permanent):
    """The command found that it must not do this. The text says why, and what to do."""


class DatabaseRefused(Permanent):
    """Postgres was reached and refused. The text names the error and what to do."""


class WrongUse(Permanent):
    """Arguments that contradict each other or that no value answers to."""


@dataclass(frozen=True, slots=True)
class Operation:
    """The servers, reached."""

    settings: ConsumerSettings
    database: asyncpg.Connection
    kafka: AIOKafkaConsumer
    ledger: Ledger

    @property
    def topic(self) -> str:
        return self.settings.kafka_topic

    def places(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self.topic, partition) for partition in partitions]

    async def partitions(self) -> list[int]:
        """The topic's partitions now.

        Raises:
            BrokerUnavailable: nobody answered, or the topic is not there.
        """
        found = (await self.kafka._client.fetch_all_metadata()).partitions_for_topic(self.topic)  # noqa: SLF001
        if not found:
            raise BrokerUnavailable(f"there is no topic {self.topic}")
        return sorted(found)


@asynccontextmanager
async def operation(settings: ConsumerSettings, name: str) -> AsyncIterator[Operation]:
    """Connect to both servers for one command.

    Raises:
        BrokerUnavailable, DatabaseUnavailable: one was not reached, or went away meanwhile.
    """
    kafka = new_consumer(settings, group=None)
    try:
        async with _kafka_errors():
            await kafka.start()
        async with _kafka_errors(), database_alone(settings, name) as database:
            yield Operation(settings, database, kafka, Ledger(settings.kafka_topic))
    finally:
        await stop_within(kafka.stop(), STOP_TIMEOUT_S)


@asynccontextmanager
async def database_alone(settings: ConsumerSettings, name: str) -> AsyncIterator[asyncpg.Connection]:
    """For commands that ask Kafka nothing. Statements may take as long as the server is alive.

    Raises:
        DatabaseUnavailable: it was not reached, went away, or fell silent.
        DatabaseRefused: it was reached, and refused.
    """
    async with _database_errors():
        await refuse_transaction_pooling(settings.database_url)
        database = await connect(settings.database_url, application_name=f"telemetry-{name}", statement_timeout_s=0)
        try:
            async with background(_cut_off_when_silent(database, settings.database_url), "probes") as silence:
                yield database
        except DATABASE_ERRORS as error:
            if silence.done() and not silence.cancelled():
                raise DatabaseUnavailable(f"Postgres: no answer to {SILENT_PROBES} attempts to connect") from error
            raise
        finally:
            await stop_within(database.close(), STOP_TIMEOUT_S)


async def _cut_off_when_silent(database: asyncpg.Connection, database_url: str) -> None:
    """Cut the connection once new ones go unanswered as well: who waits at it gets an error, and a rollback too."""
    silent = 0
    while silent < SILENT_PROBES:
        await asyncio.sleep(PROBE_EVERY_S)
        silent = 0 if await _answers(database_url) else silent + 1
    database.terminate()


async def _answers(database_url: str) -> bool:
    try:
        probe = await connect(database_url, application_name="telemetry-probe")
    except asyncpg.PostgresError:  # a refusal is an answer
        return True
    except DATABASE_ERRORS:
        return False
    await stop_within(probe.close(), STOP_TIMEOUT_S)
    return True


@asynccontextmanager
async def _kafka_errors() -> AsyncIterator[None]:
    try:
        yield
    except KAFKA_ERRORS as error:
        raise BrokerUnavailable(f"Kafka: {type(error).__name__}") from error


@asynccontextmanager
async def _database_errors() -> AsyncIterator[None]:
    try:
        yield
    except DATABASE_ERRORS as error:
        if fate_of(error) is Fate.BUG:
            raise
        text = f"Postgres: {explained(error_name(error))}"
        raise (DatabaseUnavailable(text) if is_out_of_reach(error) else DatabaseRefused(text)) from error


def say(text: str) -> None:
    """To the person at the terminal; standard output may be a machine's."""
    sys.stderr.write(text + "\n")


def answer(value: Any, *, as_json: bool, text: str) -> None:
    """The command's one answer on standard output."""
    write_out(json.dumps(value, default=str) if as_json else text)


def told(value: Any) -> str:
    """A value in a line of text: JSON where it is nested."""
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
