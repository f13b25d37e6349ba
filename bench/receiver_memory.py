"""What a request takes: peak memory of a receiver over what it had before, by kind of request and how many at once.

    python bench/receiver_memory.py

Starts a Kafka and a receiver for each line. `ratio` is the growth divided by the bytes sent.
"""

import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deploy.local.kafka import KafkaBroker  # noqa: E402
from support.otlp import empty_spans, features, request, span  # noqa: E402
from support.receiver import Receiver, export  # noqa: E402

MEBIBYTE = 1024 * 1024


def peak_bytes(receiver: Receiver) -> int:
    status = Path(f"/proc/{receiver.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


async def measure(kafka: KafkaBroker, folder: Path, what: str, body: bytes, count: int) -> None:
    receiver = Receiver(kafka.bootstrap_servers, folder).start()
    try:
        await receiver.ready()

        async def call(sent: bytes) -> str:
            async with receiver.channel() as channel:
                return (await export(channel, sent, timeout_s=30)).code

        await call(request(features(100)))
        before = peak_bytes(receiver)
        codes = Counter(await asyncio.gather(*(call(body) for _ in range(count))))
        growth = peak_bytes(receiver) - before
        sent = len(body) * count
        print(
            f"{what:28} {count:3} x {len(body) / MEBIBYTE:5.1f} MiB  before {before / MEBIBYTE:4.0f}"
            f"  growth {growth / MEBIBYTE:5.0f} MiB  ratio {growth / sent:4.1f}  {dict(codes)}"
        )
    finally:
        receiver.kill()


async def main(kafka: KafkaBroker, folder: Path) -> None:
    ids = [(number.to_bytes(16, "big"), number.to_bytes(8, "big")) for number in range(1, 95_000)]
    events = request(features(15_000, filler="x" * 900))
    ignored = request(span(trace, span_id, {"db.statement": "s" * 120}) for trace, span_id in ids)
    empty = empty_spans(8 * MEBIBYTE - 16)
    zeros = b"\x0a\x80\x80\x80\x1e" + b"\0" * (60 * MEBIBYTE)
    for what, body, count in (
        ("events", events, 1),
        ("spans of no event", ignored, 1),
        ("empty spans", empty, 1),
        ("events", events, 10),
        ("spans of no event", ignored, 10),
        ("nearly the largest, refused", zeros, 1),
        ("nearly the largest, refused", zeros, 8),
    ):
        await measure(kafka, folder, what, body, count)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, KafkaBroker(Path(name, "kafka")) as broker:
        asyncio.run(main(broker, Path(name)))
