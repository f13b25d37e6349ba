"""The original product's senders, and its topic: what they have always sent, through a real receiver."""

import json
from pathlib import Path

import grpc
import pytest

from deploy.local.kafka import KafkaBroker
from support.golden import SENDERS, fates_of, sent_by
from support.receiver import Receiver, export, records_of


@pytest.mark.parametrize(
    ("sender", "compression"),
    [(SENDERS[0], grpc.Compression.NoCompression), (SENDERS[1], grpc.Compression.Gzip)],
)
async def test_the_original_senders_are_served_as_they_are(
    kafka: KafkaBroker, tmp_path: Path, sender: str, compression: grpc.Compression
) -> None:
    """They hash ids themselves: hashed once more, every user of theirs would be a new one."""
    fates = fates_of(sender)
    values = [fate for fate in fates if isinstance(fate, dict)]
    rejected = [fate for fate in fates if fate == "missing_user_id"]
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, ID_HASHING="prehashed").start()
    try:
        await receiver.ready()
        async with receiver.channel() as channel:
            answer = await export(channel, sent_by(sender), compression=compression)
        assert (answer.code, answer.rejected) == ("OK", len(rejected))
        ignored = await receiver.metric("receiver_spans_ignored_total")
        assert ignored == len(fates) - len(values) - len(rejected)
        records = {record.key.decode(): record for record in await records_of(kafka, receiver.topic)}
        assert {key: json.loads(record.value) for key, record in records.items()} == {
            value["id"]: value for value in values
        }
        for value in values:
            headers = dict(records[value["id"]].headers)
            assert headers == {"event_type": value["table"].encode(), "schema_version": b"2"}
    finally:
        receiver.kill()
