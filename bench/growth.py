"""How cost and rate grow: with workers, writers, partitions, and rows that are in the tables already."""

from datetime import UTC, datetime, timedelta

from bench.consumers import Limit, Run, database, figures_of, filled, ours
from bench.load import Command
from bench.prefill import fill, without_sums
from bench.report import COPY, OURS, Report
from bench.servers import PARTITIONS, Servers, cpu_s, peak_mib
from consumer.store.partitions import interval_of

SUITE, TABLE_SUITE = "growth", "table"
ROWS = 100_000
WORKERS, WRITERS, PARTITION_COUNTS = (1, 2), (1, 2, 4), (1, 4, 12, 48)
LOAD_S = 3.0
DAYS = 150
ONE_PARTITION_ROWS_MAX = 10_000_000  # more make the point no clearer


async def measure(servers: Servers, report: Report, *, repetitions: int) -> None:
    """Each dimension by itself, the others at their defaults."""
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


async def measure_table(servers: Servers, report: Report, *, rows: tuple[int, ...]) -> None:
    """Ours and COPY into a table that holds so many rows, for each number. The first is 0: it gives COPY its rows."""
    topic, filled_rows = await filled(servers, "endpoints", ROWS)
    limit = Limit(servers)
    for rows_before in rows:
        intervals = ["day"] if not 0 < rows_before <= ONE_PARTITION_ROWS_MAX else ["day", "month"]
        for interval in intervals:
            case = f"{rows_before:,} rows before, in {'150 days' if interval == 'day' else 'one partition'}"
            report.say(f"table: {case}")
            settings = (("PARTITION_INTERVAL", interval),)
            await _measure_rows_before(servers, report, Run(topic, filled_rows, case, settings), limit, rows_before)


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
        await _add_ours(servers, report, SUITE, run, where)


async def _add_ours(servers: Servers, report: Report, suite: str, run: Run, where: str) -> None:
    async with ours(servers, run, where) as (moments, again):
        figures = figures_of(moments)
        report.add(
            suite,
            run.case,
            OURS,
            a_second=figures["rows_per_s"],
            us_of_CPU=figures["us_per_row"],
            us_of_Postgres=figures["us_per_row_of_Postgres"],
            MiB=again.resident_mib,
        )


async def _measure_rows_before(servers: Servers, report: Report, run: Run, limit: Limit, rows_before: int) -> None:
    """Ours and COPY, one after the other into the same growing table.

    The rows before fill the present partition up to its end.
    """
    interval = dict(run.settings)["PARTITION_INTERVAL"]
    since, until = interval_of(interval).around(datetime.now(UTC))
    if interval == "day":
        since = until - timedelta(days=DAYS)
    async with database(servers) as where:
        url = servers.postgres.url(where)
        await fill(url, {"endpoint_usage": rows_before}, since, until, interval=interval)
        async with without_sums(url):
            await _add_ours(servers, report, TABLE_SUITE, run, where)
            if not rows_before:
                await limit.take_rows(where)
            copied = figures_of(await limit.copy(where))
        report.add(
            TABLE_SUITE, run.case, COPY, a_second=copied["rows_per_s"], us_of_Postgres=copied["us_per_row_of_Postgres"]
        )
