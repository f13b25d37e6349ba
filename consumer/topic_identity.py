"""topic name -> topic id, leader epochs, and where a leader epoch ended: is it still the same log?

aiokafka 0.14 speaks Metadata up to version 5; ids came with 10 (KIP-516), leader epochs with 7, and
OffsetForLeaderEpoch is not in it. Metadata version 12 is what every broker of Apache Kafka 3.0 or later answers.
Elsewhere the id is NO_TOPIC_ID, and no epoch is known.
"""

import asyncio
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

NO_TOPIC_ID = UUID(int=0)
# aiokafka keeps a connection for each node and group (0 data, 1 coordinator). A broker answers the requests of one
# connection in their order, so on group 0 an answer would wait for the fetch that is under way: up to 100 ms.
_CONNECTION_GROUP = 2


class _Uuid(AbstractType[UUID]):
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


_PARTITION = (
    ("error_code", Int16),
    ("partition", Int32),
    ("leader", Int32),
    ("leader_epoch", Int32),
    ("replicas", CompactArray(Int32)),
    ("isr", CompactArray(Int32)),
    ("offline_replicas", CompactArray(Int32)),
    ("tags", TaggedFields),
)


class MetadataResponseV12(Response):
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                ("partitions", CompactArray(*_PARTITION)),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class MetadataRequestV12(RequestStruct):
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = MetadataResponseV12
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Metadata(Request[MetadataRequestV12]):
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[MetadataRequestV12]) -> MetadataRequestV12:
        return request_struct_class([(NO_TOPIC_ID, self._topic, {})], False, False, {})  # noqa: FBT003  the wire's order


async def topic_id(client: Any, topic: str) -> UUID | None:
    """The broker's id of a topic: NO_TOPIC_ID when the broker gives none, None when there is no such topic.

    `client` is an AIOKafkaClient. Raises aiokafka's errors when no broker answers.
    """
    try:
        response = await client.send(client.get_random_node(), _Metadata(topic))
    except (IncompatibleBrokerVersion, NotImplementedError):
        return NO_TOPIC_ID
    found = response.to_object()["topics"][0]
    if found["error_code"] != 0:
        return None
    identity: UUID = found["topic_id"]
    return identity


async def leader_epochs(client: Any, topic: str) -> dict[int, int]:
    """The epoch of each partition's leader, as the leaders themselves know it; empty when the brokers tell none.

    A leader that has lost its place may still tell the old epoch; the one that answered a fetch never does. Of
    several answers the highest counts. Raises aiokafka's errors when a leader does not answer.
    """
    partitions = client.cluster.partitions_for_topic(topic) or ()
    leaders = _leaders(client, topic, partitions)
    nodes = sorted(set(leaders.values())) or [client.get_random_node()]
    try:
        answers = await asyncio.gather(
            *(client.send(node, _Metadata(topic), group=_CONNECTION_GROUP) for node in nodes)
        )
    except (IncompatibleBrokerVersion, NotImplementedError):
        return {}
    epochs: dict[int, int] = {}
    for answer in answers:
        for partition in answer.to_object()["topics"][0]["partitions"]:
            number = partition["partition"]
            epochs[number] = max(partition["leader_epoch"], epochs.get(number, -1))
    return epochs


def _leaders(client: Any, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """The node that leads each partition, for those that have a leader."""
    found = {
        partition: client.cluster.leader_for_partition(TopicPartition(topic, partition)) for partition in partitions
    }
    return {partition: node for partition, node in found.items() if node is not None and node >= 0}


class OffsetForLeaderEpochResponseV2(Response):
    API_KEY = 23
    API_VERSION = 2
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(("error_code", Int16), ("partition", Int32), ("leader_epoch", Int32), ("end_offset", Int64)),
                ),
            ),
        ),
    )


class OffsetForLeaderEpochRequestV2(RequestStruct):
    API_KEY = 23
    API_VERSION = 2
    RESPONSE_TYPE = OffsetForLeaderEpochResponseV2
    SCHEMA = Schema(
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                ("partitions", Array(("partition", Int32), ("current_leader_epoch", Int32), ("leader_epoch", Int32))),
            ),
        ),
    )


class _OffsetForLeaderEpoch(Request[OffsetForLeaderEpochRequestV2]):
    API_KEY = 23

    def __init__(self, topic: str, epochs: Mapping[int, int]) -> None:
        self._topic = topic
        self._epochs = epochs

    def build(self, request_struct_class: type[OffsetForLeaderEpochRequestV2]) -> OffsetForLeaderEpochRequestV2:
        partitions = [(partition, -1, epoch) for partition, epoch in self._epochs.items()]
        return request_struct_class([(self._topic, partitions)])


async def epoch_ends(client: Any, topic: str, epochs: Mapping[int, int]) -> dict[int, int]:
    """Where the records end that were written under each partition's given leader epoch or an earlier one.

    Offsets from there on were written under a later epoch, or not yet (KIP-320). A partition is left out when
    its leader cannot tell: the epoch is older than the log, or the broker is too old. Raises aiokafka's errors.
    """
    leaders = _leaders(client, topic, epochs)
    ends: dict[int, int] = {}
    for node in sorted(set(leaders.values())):
        asked = {partition: epochs[partition] for partition, leader in leaders.items() if leader == node}
        try:
            response = await client.send(node, _OffsetForLeaderEpoch(topic, asked), group=_CONNECTION_GROUP)
        except (IncompatibleBrokerVersion, NotImplementedError):
            return {}
        for partition in response.to_object()["topics"][0]["partitions"]:
            if partition["error_code"] == 0 and partition["leader_epoch"] >= 0 and partition["end_offset"] >= 0:
                ends[partition["partition"]] = partition["end_offset"]
    return ends
