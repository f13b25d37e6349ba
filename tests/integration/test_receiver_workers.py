"""Several workers on one port are one receiver to everybody else."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from deploy.local.kafka import KafkaBroker
from support.otlp import features, request
from support.receiver import Receiver, export, records_of, until

WORKERS = 2


@asynccontextmanager
async def started(kafka: KafkaBroker, folder: Path) -> AsyncIterator[Receiver]:
    receiver = Receiver(kafka.bootstrap_servers, folder, "run", "--workers", str(WORKERS)).start()
    try:
        await receiver.ready()
        yield receiver
    finally:
        receiver.kill()


def workers_of(receiver: Receiver) -> set[int]:
    found = set()
    for child in psutil.Process(receiver.pid).children():
        with suppress(psutil.Error):  # it has just ended
            if "worker" in child.cmdline():
                found.add(child.pid)
    return found


async def spread(receiver: Receiver, connections: int = 40) -> int:
    """One request of one span over each of many connections, which the kernel deals out; how many were OK."""

    async def call() -> bool:
        async with receiver.channel() as channel:
            return (await export(channel, request(features(1)))).code == "OK"

    return sum(await asyncio.gather(*(call() for _ in range(connections))))


async def test_metrics_are_summed_and_survive_a_workers_death(kafka: KafkaBroker, tmp_path: Path) -> None:
    """A counter that falls back looks like a restart of the world; one worker's part of it like an outage."""
    async with started(kafka, tmp_path) as receiver:
        before = workers_of(receiver)
        assert len(before) == WORKERS
        assert await spread(receiver) == 40
        assert await receiver.metric("receiver_requests_total", code="OK") == 40
        assert await receiver.metric("receiver_requests_total", code="INVALID_ARGUMENT") == 0
        used = [psutil.Process(pid).cpu_times().user for pid in before]
        assert min(used) > 0
        victim = min(before)
        os.kill(victim, signal.SIGKILL)

        async def is_noticed() -> bool:
            return victim not in workers_of(receiver) and len(workers_of(receiver)) == WORKERS

        await until(is_noticed, 10, "another worker in its place")
        await receiver.ready()
        assert len(receiver.log_lines("worker_ended")) == 1
        assert await spread(receiver) == 40
        assert await receiver.metric("receiver_requests_total", code="OK") == 80
        assert await receiver.metric("receiver_events_published_total", table="feature_usage") == 80
        await receiver.idle()


async def test_readiness_is_that_of_the_worst_worker(kafka: KafkaBroker, tmp_path: Path) -> None:
    """The kernel goes on dealing connections to a worker that hangs."""
    async with started(kafka, tmp_path) as receiver:
        victim = min(workers_of(receiver))
        os.kill(victim, signal.SIGKILL)

        async def is_unready() -> bool:
            return not await receiver.is_ready()

        await until(is_unready, 5, "not ready while a worker is missing")
        await receiver.ready()


async def test_sigterm_drains_all_workers(kafka: KafkaBroker, tmp_path: Path) -> None:
    """As with one."""
    accepted: set[bytes] = set()
    codes: Counter[str] = Counter()
    async with started(kafka, tmp_path) as receiver:

        async def send() -> None:
            while receiver.exit_code is None:
                async with receiver.channel() as channel:
                    for _ in range(10):
                        sent = features(20)
                        answer = await export(channel, request(sent))
                        codes[answer.code] += 1
                        if answer.code == "OK":
                            accepted.update(str(feature.id).encode() for feature in sent)
                        else:  # as exporters do, over another connection
                            await asyncio.sleep(answer.retry_s or 1)
                            break

        senders = [asyncio.create_task(send()) for _ in range(8)]

        async def is_busy() -> bool:
            return codes["OK"] > 100

        await until(is_busy, 20, "load")
        workers = workers_of(receiver)
        assert await receiver.stop() == 0
        assert not any(map(psutil.pid_exists, workers))
        await asyncio.gather(*senders)
        assert set(codes) <= {"OK", "UNAVAILABLE"}
        assert accepted <= {record.key for record in await records_of(kafka, receiver.topic)}


async def test_workers_end_when_their_supervisor_is_killed(kafka: KafkaBroker, tmp_path: Path) -> None:
    """Orphans would hold the port against the next start."""
    async with started(kafka, tmp_path) as receiver:
        workers = workers_of(receiver)
        receiver.signal(signal.SIGKILL)

        async def are_gone() -> bool:
            return not any(psutil.pid_exists(pid) for pid in workers)

        await until(are_gone, 15, "no workers left")


@pytest.mark.parametrize("setting", ["PORT", "TLS_CERT_FILE"])
async def test_what_no_worker_can_run_with_stops_the_start(kafka: KafkaBroker, tmp_path: Path, setting: str) -> None:
    """Restarting for ever would hide it."""
    async with started(kafka, tmp_path) as first:
        settings = (
            {"PORT": first.port} if setting == "PORT" else {"TLS_CERT_FILE": "/nowhere", "TLS_KEY_FILE": "/nowhere"}
        )
        second = Receiver(kafka.bootstrap_servers, tmp_path, "run", "--workers", "2", **settings).start()
        try:
            assert await second.ended() == 2
            assert setting in second.log_text()
        finally:
            second.kill()
