"""aiokafka's producer takes ready-made batches of the native engine: what it calls of a batch is there."""

import inspect
import re

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator, MessageBatch
from aiokafka.record.memory_records import MemoryRecords

from shared.engine import native_library

LIBRARY = native_library()
FOR_TRANSACTIONS = {"_set_producer_state"}  # ours begins none
FOR_SINGLE_RECORDS = {"append"}  # ours is closed to them
CALLED = {"_build", "close", "closed", "record_count"}


def test_aiokafka_calls_of_a_batch_what_is_relied_on() -> None:
    """Another release may call more; then this fails, and not every request of a receiver."""
    source = inspect.getsource(MessageBatch) + inspect.getsource(MessageAccumulator)
    called = {*re.findall(r"\b_?builder\.(\w+)", source)}
    assert called == CALLED | FOR_TRANSACTIONS | FOR_SINGLE_RECORDS
    assert [*inspect.signature(AIOKafkaProducer.send_batch).parameters] == ["self", "batch", "topic", "partition"]
    add_batch = inspect.signature(MessageAccumulator.add_batch).parameters
    assert [*add_batch] == ["self", "builder", "tp", "timeout"]


@pytest.mark.parametrize("method", sorted(CALLED | {"size"}))
def test_both_kinds_of_batches_have_it(method: str) -> None:
    """The reference's batches are aiokafka's own; the engine's stand in the same place."""
    assert callable(getattr(BatchBuilder, method))
    if LIBRARY is not None:
        assert callable(getattr(LIBRARY.Batch, method))


@pytest.mark.skipif(LIBRARY is None, reason="without the native engine there are no batches of its own")
def test_an_engines_batch_is_one_that_aiokafka_can_frame() -> None:
    """It goes to the broker as it is: a record batch of format 2, closed, and the same at every call."""
    assert LIBRARY is not None
    batch = LIBRARY.Batch(1 << 20, 1)
    assert batch.closed()
    built = batch._build()
    assert (type(built), batch._build()) == (bytes, built)
    [one] = [MemoryRecords(built).next_batch()]
    assert one is not None
    assert one.validate_crc()
