"""An honest client in a process of its own: a call of five events every 50 ms, and what became of each."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EVERY_S = 0.05


@dataclass(frozen=True)
class Service:
    """How the neighbour was served."""

    codes: dict[str, int]
    p99_s: float
    newcomers: dict[str, int]  # calls over connections of their own, one a second, each with 3 s to answer

    @property
    def ok_share(self) -> float:
        return self.codes.get("OK", 0) / max(1, sum(self.codes.values()))


class Neighbour:
    """Calls from the beginning of the block to its end; `service` is set then."""

    service: Service


@contextlib.contextmanager
def beside(port: int) -> Iterator[Neighbour]:
    command = [sys.executable, "-m", "support.neighbour", str(port)]
    process = subprocess.Popen(
        command,
        cwd=ROOT / "tests",
        env={"PATH": "", "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"calling\n"
    neighbour = Neighbour()
    try:
        yield neighbour
        told, _ = process.communicate(b"stop\n", timeout=40)
        neighbour.service = Service(**json.loads(told))
    finally:
        process.kill()
        process.communicate()


async def main(port: int) -> None:
    import grpc  # noqa: PLC0415

    from support.otlp import features, request  # noqa: PLC0415
    from support.receiver import export  # noqa: PLC0415

    codes: Counter[str] = Counter()
    seconds: list[float] = []

    async def call(channel: grpc.aio.Channel) -> None:
        answer = await export(channel, request(features(5)), timeout_s=10)
        codes[answer.code] += 1
        seconds.append(answer.seconds)

    newcomers: Counter[str] = Counter()

    async def come_anew() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            newcomers[(await export(channel, request(features(5)), timeout_s=3)).code] += 1

    stop = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    calls = set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await call(channel)
        codes.clear()
        seconds.clear()
        print("calling", flush=True)  # noqa: T201  to the process that started this one
        next_at = time.monotonic()
        while not stop.done():
            calls.add(asyncio.create_task(call(channel)))
            if len(calls) % 20 == 0:
                calls.add(asyncio.create_task(come_anew()))
            next_at += EVERY_S
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
        await asyncio.gather(*calls)
    seconds.sort()
    print(json.dumps({"codes": codes, "p99_s": seconds[int(len(seconds) * 0.99)], "newcomers": newcomers}))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
