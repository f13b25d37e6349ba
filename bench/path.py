"""sender -> row: how long an event takes through receiver, Kafka and consumer, for every row of a steady load.

A span starts at the moment it is sent, and Postgres keeps the moment of each commit: their difference is in the rows.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from bench.consumers import TABLES, database
from bench.load import Command, Sent
from bench.report import OURS, Goal, Key, Report
from bench.servers import Servers, Started, peak_mib, resident_mib

SUITE = "receive to row"
RATES = 5_000, 20_000  # spans a second
SPANS = 64  # a request: some tens of requests a second, as of a few Collectors
WARM_UP_S = 1.0
SETTLED_TIMEOUT_S = 60.0


def case_of(rate: int) -> str:
    return f"{rate:,} spans/s"


GOALS = (
    Goal(f"receive to row at {case_of(RATES[0])}: p50, ms", Key(SUITE, case_of(RATES[0]), OURS, "p50 ms"), 400),
    *(
        Goal(f"receive to row at {case}: p99, ms", Key(SUITE, case, OURS, "p99 ms"), 1000)
        for case in map(case_of, RATES)
    ),
    Goal("receiver at rest, MiB", Key("memory", "receiver at rest", OURS, "MiB"), 150),
    Goal("consumer at rest, MiB", Key("memory", "consumer at rest", OURS, "MiB"), 300),
)

# The moment is that of the commit record; its way to disk, some ms, comes on top.
_ROWS = " UNION ALL ".join(f"SELECT timestamp, xmin FROM {table}" for table in TABLES)
LATENCIES = f"""
    SELECT count(*) AS rows, percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (
        ORDER BY extract(epoch FROM pg_xact_commit_timestamp(xmin) - timestamp) * 1000
    ) AS ms FROM ({_ROWS}) AS stored WHERE timestamp > to_timestamp($1)
"""


async def measure(servers: Servers, report: Report, *, is_quick: bool, repetitions: int) -> None:
    """One receiver and one consumer under a load that is given, not found."""
    report.say("receive to row")
    report.aim(*GOALS)
    seconds = 3.0 if is_quick else 5.0
    topic = await servers.topics.create("path")
    async with database(servers) as where, both(servers, topic, where) as (receiver, consumer):
        for name, process in (("receiver", receiver), ("consumer", consumer)):
            report.add("start", f"{name} to ready", OURS, s=process.seconds)
            report.add("memory", f"{name} at rest", OURS, MiB=resident_mib(process.pid))
        connection = await asyncpg.connect(servers.postgres.url(where))
        try:
            stored = 0
            await send(servers, receiver, RATES[0], WARM_UP_S)
            for rate in RATES * repetitions:
                since_s = time.time()
                sent = await send(servers, receiver, rate, seconds)
                stored = await settled(connection, since_s, sent.acknowledged_spans)
                p50_ms, p99_ms = await connection.fetchval(f"SELECT ms FROM ({LATENCIES}) AS found", since_s)
                report.add(
                    SUITE,
                    case_of(rate),
                    OURS,
                    p50_ms=p50_ms,
                    p99_ms=p99_ms,
                    spans_per_s=sent.acknowledged_spans / sent.seconds,
                    rows_missing=sent.acknowledged_spans - stored,
                    reply_p99_ms=sent.p99_ms,
                )
        finally:
            await connection.close()
        for name, process in (("receiver", receiver), ("consumer", consumer)):
            report.add("memory", f"{name}, most at {case_of(RATES[-1])}", OURS, MiB=peak_mib(process.pid))


@asynccontextmanager
async def both(servers: Servers, topic: str, where: str) -> AsyncIterator[tuple[Started, Started]]:
    """One after the other, so that each has the machine for its start."""
    async with (
        servers.running(servers.consumer(topic, where)) as consumer,
        servers.running(servers.receiver(topic)) as receiver,
    ):
        yield receiver, consumer


async def send(servers: Servers, receiver: Started, rate: int, seconds: float) -> Sent:
    command = Command(receiver.target, "events", SPANS, seconds=seconds, spans_per_second=rate)
    return await servers.load(command)


async def settled(connection: asyncpg.Connection, since_s: float, rows: int) -> int:
    """Wait until so many rows of this time are there; how many there are, if they do not all come."""
    deadline = time.monotonic() + SETTLED_TIMEOUT_S
    while True:
        found: int = await connection.fetchval(f"SELECT rows FROM ({LATENCIES}) AS found", since_s)
        if found >= rows or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.1)
