"""How cost and rate grow: with workers, writers, partitions, and rows that are in the tables already."""

import asyncpg

from bench.consumers import Limit, Run, database, figures_of, filled, ours
from bench.load import Command
from bench.report import COPY, OURS, Report
from bench.servers import PARTITIONS, Servers, cpu_s, peak_mib

SUITE = "growth"
ROWS = 100_000
WORKERS, WRITERS, PARTITION_COUNTS = (1, 2), (1, 2, 4), (1, 4, 12, 48)
LOAD_S = 3.0
PREFILL_ROWS = 250_000  # an INSERT, so that none runs for minutes
PREFILL_TIMEOUT_S = 300.0

# Rows as ours: the same people, a time before all others, and an id that is as good as random.
_PREFILL = """
    INSERT INTO endpoint_usage (
        id, endpoint, method, user_id, organization_id, status_code, duration_ms, timestamp, deployment_type,
        event_metadata
    )
    SELECT
        gen_random_uuid(), '/api/v1/orders/{id}', 'GET',
        left(encode(sha256(('user-' || lpad(person::text, 5, '0'))::bytea), 'hex'), 16),
        left(encode(sha256(('org-' || lpad((person % 200)::text, 3, '0'))::bytea), 'hex'), 16),
        200, random() * 100, now() - interval '30 days' + number * interval '10 ms', 'self-hosted',
        '{"service.name": "orders", "service.version": "2.14.1", "service.namespace": "shop"}'
    FROM (
        SELECT number, floor(10000 * random() ^ 2)::int AS person FROM generate_series($1::bigint, $2::bigint) AS number
    ) AS people
"""


async def measure(servers: Servers, report: Report, *, rows: tuple[int, ...], repetitions: int) -> None:
    """Each dimension by itself, the others at their defaults. `rows`: how many are there before, in turn."""
    for workers in WORKERS:
        report.say(f"growth: {workers} receiver workers")
        for _ in range(repetitions):
            await _measure_receiver(servers, report, f"receiver, {workers} workers", workers=workers)
    for partitions in PARTITION_COUNTS:
        report.say(f"growth: {partitions} partitions")
        for _ in range(repetitions):
            await _measure_receiver(servers, report, f"receiver, {partitions} partitions", partitions=partitions)
        topic, filled_rows = await filled(servers, "events", ROWS, partitions=partitions)
        for _ in range(repetitions):
            await _measure_consumer(servers, report, Run(topic, filled_rows, f"consumer, {partitions} partitions"))
    topic, filled_rows = await filled(servers, "events", ROWS)
    for writers in WRITERS:
        report.say(f"growth: {writers} writers")
        settings = (("CONSUMER_WRITERS", str(writers)),)
        for _ in range(repetitions):
            await _measure_consumer(servers, report, Run(topic, filled_rows, f"consumer, {writers} writers", settings))
    topic, filled_rows = await filled(servers, "endpoints", ROWS)
    limit = Limit(servers)
    for rows_before in rows:
        report.say(f"growth: {rows_before:,} rows before")
        run = Run(topic, filled_rows, f"one table, {rows_before:,} rows before")
        await _measure_table(servers, report, run, limit, rows_before)


async def _measure_receiver(
    servers: Servers, report: Report, case: str, *, workers: int = 1, partitions: int = PARTITIONS
) -> None:
    topic = await servers.topics.create("growth", partitions)
    async with servers.running(servers.receiver(topic, WORKERS=str(workers))) as receiver:
        # The kernel gives each worker its connections by chance: many of them, so that all have some.
        command = Command(receiver.target, "events", 512, callers=16, connections=16, seconds=1.0)
        await servers.load(command)
        cpu_before_s = cpu_s(receiver.pid)
        sent = await servers.load(Command(receiver.target, "events", 512, callers=16, connections=16, seconds=LOAD_S))
        report.add(
            SUITE,
            case,
            OURS,
            a_second=sent.acknowledged_spans / sent.seconds,
            us_of_CPU=(cpu_s(receiver.pid) - cpu_before_s) / sent.acknowledged_spans * 1e6,
            MiB=peak_mib(receiver.pid),
            s_to_ready=receiver.seconds,
        )


async def _measure_consumer(servers: Servers, report: Report, run: Run) -> None:
    async with database(servers) as where:
        await _add_ours(servers, report, run, where)


async def _add_ours(servers: Servers, report: Report, run: Run, where: str) -> None:
    async with ours(servers, run, where) as (moments, again):
        figures = figures_of(moments)
        report.add(
            SUITE,
            run.case,
            OURS,
            a_second=figures["rows_per_s"],
            us_of_CPU=figures["us_per_row"],
            us_of_Postgres=figures["us_per_row_of_Postgres"],
            MiB=again.resident_mib,
        )


async def _measure_table(servers: Servers, report: Report, run: Run, limit: Limit, rows_before: int) -> None:
    """Ours and COPY, one after the other into the same growing table."""
    async with database(servers) as where:
        connection = await asyncpg.connect(servers.postgres.url(where))
        try:
            for first in range(0, rows_before, PREFILL_ROWS):
                last = min(rows_before, first + PREFILL_ROWS) - 1
                await connection.execute(_PREFILL, first, last, timeout=PREFILL_TIMEOUT_S)
            for statement in ("VACUUM ANALYZE", "CHECKPOINT"):
                await connection.execute(statement, timeout=PREFILL_TIMEOUT_S)
        finally:
            await connection.close()
        await _add_ours(servers, report, run, where)
        if not rows_before:
            await limit.take_rows(where)
        copied = figures_of(await limit.copy(where))
        report.add(
            SUITE, run.case, COPY, a_second=copied["rows_per_s"], us_of_Postgres=copied["us_per_row_of_Postgres"]
        )
