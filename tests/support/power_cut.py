"""A power cut of a broker: killed, and the tail of a partition's log gone, as of pages that never reached the disk."""

from pathlib import Path

from deploy.local.kafka import KafkaBroker

HEADER_BYTES = 12  # base offset and length of a record batch


def cut_power(broker: KafkaBroker, topic: str, partition: int, *, at_offset: int) -> int:
    """Kill the broker and cut the log before the first batch that reaches beyond `at_offset`; the new end."""
    broker.kill()
    folder = broker.folder / "data" / f"{topic}-{partition}"
    [segment] = folder.glob("*.log")
    end, length = _whole_batches(segment, at_offset)
    with segment.open("r+b") as file:
        file.truncate(length)
    for name in ("leader-epoch-checkpoint", "partition.metadata"):
        assert (folder / name).exists()  # they survive; the broker cuts the epochs off by itself
    return end


def _whole_batches(segment: Path, at_offset: int) -> tuple[int, int]:
    """Offset behind the last whole batch up to `at_offset`, and the bytes until there."""
    log = segment.read_bytes()
    position, end = 0, 0
    while position + HEADER_BYTES < len(log):
        base = int.from_bytes(log[position : position + 8])
        size = HEADER_BYTES + int.from_bytes(log[position + 8 : position + HEADER_BYTES])
        last = base + int.from_bytes(log[position + 23 : position + 27])  # last offset delta
        if size == HEADER_BYTES or last >= at_offset:
            break
        position, end = position + size, last + 1
    return end, position
