"""Several brokers that are one Kafka, with a door in front of each that can be cut and stalled."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from deploy.local.kafka import KafkaBroker
from deploy.local.server import free_port
from support.stack import eventually


@contextmanager
def cluster(folder: Path, count: int, *, properties: Mapping[str, object] | None = None) -> Iterator[list[KafkaBroker]]:
    """So many brokers, started; killed at the end."""
    brokers = [broker for broker, _ in new_brokers(folder, count, properties=properties)]
    start(brokers)
    try:
        yield brokers
    finally:
        for broker in brokers:
            broker.kill()


def start(brokers: Sequence[KafkaBroker]) -> None:
    """All at once, as they wait for one another."""
    with ThreadPoolExecutor(len(brokers)) as pool:
        list(pool.map(KafkaBroker.start, brokers))


def new_brokers(
    folder: Path, count: int, *, doors: Sequence[int] = (), properties: Mapping[str, object] | None = None
) -> list[tuple[KafkaBroker, int]]:
    """Brokers of one cluster, to be started, and the port that each listens on.

    `doors`: the ports that clients are told instead; what stands there must lead to the broker before it starts.
    """
    ports = free_ports(3 * count, besides=doors)
    own, controllers, internal = ports[:count], ports[count : 2 * count], ports[2 * count :]
    voters = dict(enumerate(controllers, 1))
    return [
        (
            KafkaBroker(
                folder / f"cluster-{time.monotonic_ns()}-{node}",
                port=own[index],
                node_id=node,
                controller_port=voters[node],
                voters=voters,
                properties={
                    "offsets.topic.replication.factor": count,
                    **(_behind(doors[index], own[index], voters[node], internal[index]) if doors else {}),
                    **(properties or {}),
                },
                heap_megabytes=256 if count > 1 else 512,
            ),
            own[index],
        )
        for index, node in enumerate(voters)
    ]


def free_ports(count: int, *, besides: Sequence[int] = ()) -> list[int]:
    """So many different ones."""
    ports: list[int] = []
    for _ in range(count):
        ports.append(free_port(besides=[*ports, *besides]))
    return ports


def _behind(door: int, own: int, controller: int, internal: int) -> dict[str, object]:
    """Clients are led through the door; the brokers reach one another without it."""
    host = "127.0.0.1"
    return {
        "listeners": f"PLAINTEXT://{host}:{own},INTERNAL://{host}:{internal},CONTROLLER://{host}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{host}:{door},INTERNAL://{host}:{internal}",
        "inter.broker.listener.name": "INTERNAL",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
    }


async def leader_of(broker: KafkaBroker, topic: str, leader: int) -> None:
    """Wait until that node leads every partition of the topic, as the broker tells it."""
    await _partitions(broker, topic, f"broker {leader} leads", "leader", lambda found: found == leader)


async def in_sync(broker: KafkaBroker, topic: str, replicas: int) -> None:
    """Wait until so many replicas of every partition are in sync, as the broker tells it."""
    await _partitions(broker, topic, f"{replicas} replicas in sync", "isr", lambda found: len(found) == replicas)


async def _partitions(broker: KafkaBroker, topic: str, what: str, field: str, is_so: Callable[[Any], bool]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()

    async def are_so() -> bool:
        try:
            [described] = await admin.describe_topics([topic])
        except KafkaError:  # it asked a broker that is down
            return False
        return bool(described["partitions"]) and all(is_so(each[field]) for each in described["partitions"])

    try:
        await eventually(are_so, 90, what, every_s=0.5)
    finally:
        await admin.close()
