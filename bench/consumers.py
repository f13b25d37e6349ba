"""a filled topic -> rows: ours beside the textbook's, and beside what Postgres itself can take by COPY."""

import asyncio
import io
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from bench.load import Command
from bench.report import COPY, OURS, TEXTBOOK, Goal, Key, Report
from bench.servers import PARTITIONS, ROOT, Servers, cpu_s, resident_mib
from bench.traffic import Mix
from deploy.local.server import Server

SUITE = "consumer"
TABLES = ("user_activity", "endpoint_usage", "feature_usage", "model_usage")
COPY_ROWS = 10_000
# For several writers or processes: each has read three batches before its first commit, so that of a shorter topic
# nothing but the writing of what was read already would be measured.
SHARED_ROWS = 120_000
POLL_S = 0.02
DRAIN_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 900.0
SLOWEST_ROWS_PER_S = 10_000
FILL_SPANS = 512
FILL_ATTEMPTS = 10
MIXED, ONE_TABLE = "three tables", "one table"
REFILL = "ours, tables emptied"
TWO_WRITERS, TWO_PROCESSES = "the same, two writers", "the same, two processes"
STOPPED_S = 2.5  # longer than a consumer's looks at the ledger are apart: all look when they go on

Progress = Callable[[], Awaitable[int]]


def duplicates_of(case: str) -> str:
    return f"{case}, all there"


def _rows_per_s(subject: str, case: str = MIXED) -> Key:
    return Key(SUITE, case, subject, "rows/s")


GOALS = (
    Goal("consumer, fresh rows: ours / COPY", _rows_per_s(OURS), 0.8, is_at_least=True, against=_rows_per_s(COPY)),
    Goal(
        "consumer, fresh rows: ours / textbook", _rows_per_s(OURS), 5.5, is_at_least=True, against=_rows_per_s(TEXTBOOK)
    ),
    Goal(
        "consumer, all rows there: ours / COPY",
        _rows_per_s(OURS, duplicates_of(MIXED)),
        1.0,
        is_at_least=True,
        against=_rows_per_s(COPY),
    ),
    Goal(
        "consumer, two processes / one",
        _rows_per_s(TWO_PROCESSES),
        1.0,
        is_at_least=True,
        against=_rows_per_s(REFILL),
    ),
)


@dataclass(frozen=True, slots=True)
class Moment:
    """How far a consumer was at a commit, and what it and Postgres had used until then."""

    at: float
    rows: int
    consumer_cpu_s: float
    postgres_cpu_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One consumer, or several of a group, on one topic."""

    topic: str
    rows: int
    case: str
    settings: tuple[tuple[str, str], ...] = ()
    processes: int = 1


def figures_of(moments: Sequence[Moment]) -> dict[str, float]:
    """Between the first commit and the last but one.

    Starting up is over with the first; and before the last a consumer has waited whether more records come.
    """
    early = next((moment for moment in moments if moment.rows > 0), None)
    late = moments[-2] if len(moments) > 2 else moments[-1]
    if early is None or late.rows <= early.rows:
        raise RuntimeError(f"too few commits to tell a rate: {[moment.rows for moment in moments]}")
    stored = late.rows - early.rows
    figures = {
        "rows_per_s": stored / (late.at - early.at),
        "us_per_row": (late.consumer_cpu_s - early.consumer_cpu_s) / stored * 1e6,
        "us_per_row_of_Postgres": (late.postgres_cpu_s - early.postgres_cpu_s) / stored * 1e6,
    }
    if not late.consumer_cpu_s:  # COPY has no consumer
        del figures["us_per_row"]
    return figures


async def measure(servers: Servers, report: Report, *, is_quick: bool, repetitions: int) -> None:
    """Fresh rows and replays, by each peer in turns, into tables of the same indexes."""
    report.aim(*GOALS)
    rows = 40_000 if is_quick else 60_000
    cases: list[tuple[Mix, str]] = [("events", MIXED)] if is_quick else [("events", MIXED), ("endpoints", ONE_TABLE)]
    for mix, case in cases:
        report.say(f"consumer: {case}")
        topic, filled_rows = await filled(servers, mix, rows)
        limit = Limit(servers)
        for turn in range(repetitions):
            has_replay = case == MIXED and not is_quick
            await _take_turn(servers, report, Run(topic, filled_rows, case), limit, turn=turn, has_replay=has_replay)
        if is_quick or case == ONE_TABLE:
            continue
        report.say(f"consumer: {case}, more of ours")
        topic, filled_rows = await filled(servers, mix, SHARED_ROWS)
        for _ in range(repetitions):
            for name, writers, processes in ((REFILL, 1, 1), (TWO_WRITERS, 2, 1), (TWO_PROCESSES, 1, 2)):
                settings = (("CONSUMER_WRITERS", str(writers)),)
                run = Run(topic, filled_rows, case, settings=settings, processes=processes)
                async with database(servers) as where, ours(servers, run, where) as (_, again):
                    report.add(SUITE, case, name, **figures_of(await again.from_nothing()))


async def _take_turn(
    servers: Servers, report: Report, run: Run, limit: "Limit", *, turn: int, has_replay: bool
) -> None:
    async def measure_ours() -> None:
        async with database(servers) as where, ours(servers, run, where) as (moments, again):
            report.add(SUITE, run.case, OURS, **figures_of(moments))
            report.add("memory", "consumer under load", OURS, MiB=again.resident_mib)
            await limit.take_rows(where)
            if has_replay:
                report.add(SUITE, duplicates_of(run.case), OURS, **figures_of(await again()))

    async def measure_textbook() -> None:
        async with database(servers) as where:
            moments = await textbook(servers, run, where)
            report.add(SUITE, run.case, TEXTBOOK, **figures_of(moments))

    async def measure_copy() -> None:
        async with database(servers) as where:
            report.add(SUITE, run.case, COPY, **figures_of(await limit.copy(where)))

    steps = [measure_ours, measure_copy, measure_textbook]  # the rows that COPY takes are made by ours
    for step in steps if turn % 2 == 0 else [steps[1], steps[0], steps[2]]:
        await step()


# ---- what runs


async def filled(servers: Servers, mix: Mix, rows: int, *, partitions: int = PARTITIONS) -> tuple[str, int]:
    """A topic of so many records or a few more, as our receiver makes them; and how many."""
    topic = await servers.topics.create("filled", partitions)
    async with servers.running(servers.receiver(topic)) as receiver:
        for _ in range(FILL_ATTEMPTS):  # on a busy machine some requests run out of time, and may be there all the same
            records = sum((await servers.topics.ends(topic)).values())
            if records >= rows:
                return topic, records
            await servers.load(Command(receiver.target, mix, FILL_SPANS, callers=4, total_spans=rows - records))
    raise RuntimeError(f"the topic could not be filled: {records} of {rows} records")


@asynccontextmanager
async def database(servers: Servers) -> AsyncIterator[str]:
    """An empty one, with no checkpoint of an earlier measurement still to come."""
    name = await asyncio.to_thread(servers.new_database)
    await _execute(servers, "CHECKPOINT")
    try:
        yield name
    finally:
        await _execute(servers, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(servers: Servers, sql: str) -> None:
    connection = await asyncpg.connect(servers.postgres.url("postgres"))
    try:
        await connection.execute(sql, timeout=DRAIN_TIMEOUT_S)
    finally:
        await connection.close()


class Again:
    """Replays the topic into the same tables with the same running consumer."""

    def __init__(self, servers: Servers, run: Run, where: str, group: Sequence[Server], progress: Progress) -> None:
        self._servers = servers
        self._run = run
        self._where = where
        self._group = group
        self._progress = progress
        self.resident_mib = sum(resident_mib(pid) for pid in _pids(group))

    async def from_nothing(self) -> list[Moment]:
        """Empty the tables and the ledger, so that all processes fill them again from the same moment on.

        What a start costs, and a group that changes, is not measured so.
        """
        connection = await asyncpg.connect(self._servers.postgres.url(self._where))
        _signal(self._group, signal.SIGSTOP)
        try:
            await connection.execute(f"TRUNCATE {', '.join(TABLES)}, ingest.partition_offsets", timeout=DRAIN_TIMEOUT_S)
            await asyncio.sleep(STOPPED_S)
        finally:
            _signal(self._group, signal.SIGCONT)
            await connection.close()
        return await watch(self._servers, self._group, self._progress, self._run.rows)

    async def __call__(self) -> list[Moment]:
        environment = self._servers.environment(
            self._run.topic, ANALYTICS_DATABASE_URL=self._servers.postgres.url(self._where)
        )
        watching = asyncio.create_task(
            watch(self._servers, self._group, self._progress, self._run.rows, is_replay=True)
        )
        await command(environment, "rewind", "--to-start", "--json")
        return await watching


async def command(environment: Mapping[str, str], *arguments: str, code: int = 0) -> tuple[float, Any]:
    """Seconds from start to end of a command of the consumer, and its answer in JSON when it was asked for."""
    started_at = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "consumer", *arguments),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT_S)
    seconds = time.monotonic() - started_at
    if process.returncode != code:
        raise RuntimeError(f"consumer {arguments[0]} ended with {process.returncode}, not {code}")
    return seconds, json.loads(output) if "--json" in arguments else None


@asynccontextmanager
async def ours(servers: Servers, run: Run, where: str) -> AsyncIterator[tuple[list[Moment], Again]]:
    """Drain the topic; inside, the consumer still runs."""
    name = f"group-{run.topic}-{where}"  # one for all, or each process would read all partitions and fence the others
    environment = dict(run.settings) | {"KAFKA_CONSUMER_GROUP": name}
    group = [servers.consumer(run.topic, where, **environment) for _ in range(run.processes)]
    async with AsyncExitStack() as stack:
        connection = await asyncpg.connect(servers.postgres.url(where))
        stack.push_async_callback(connection.close)

        async def progress() -> int:
            found = await connection.fetchval(
                "SELECT coalesce(sum(next_offset - first_offset), 0) FROM ingest.partition_offsets"
            )
            return int(found)

        watching = asyncio.create_task(watch(servers, group, progress, run.rows))
        stack.callback(watching.cancel)
        starting = [asyncio.create_task(stack.enter_async_context(servers.running(server))) for server in group]
        await asyncio.gather(*starting)
        moments = await watching
        await servers.topics.complete(name, run.processes)
        yield moments, Again(servers, run, where, group, progress)


async def textbook(servers: Servers, run: Run, where: str) -> list[Moment]:
    """Its first part of the topic, as its rate is the same all along."""
    server = servers.textbook_consumer(run.topic, where)
    rows = run.rows // 4

    async def progress() -> int:
        last = server.last_log_lines(1) if server.log.exists() else ""
        return int(last) if last.isdigit() else 0

    async with servers.running(server):
        return await watch(servers, [server], progress, rows)


async def watch(
    servers: Servers, group: Sequence[Server], progress: Progress, rows: int, *, is_replay: bool = False
) -> list[Moment]:
    """A moment for each change of the progress, until it reaches `rows`. A replay begins when it falls back."""
    postgres_pid = servers.postgres.pid
    assert postgres_pid is not None
    moments: list[Moment] = []
    last = rows if is_replay else 0
    async with asyncio.timeout(max(DRAIN_TIMEOUT_S, rows / SLOWEST_ROWS_PER_S)):
        while last < rows or is_replay:
            found = await progress()
            if found != last:
                is_replay = False
                used_s = sum(cpu_s(pid) for pid in _pids(group))
                moments.append(Moment(time.monotonic(), found, used_s, cpu_s(postgres_pid)))
                last = found
            await asyncio.sleep(POLL_S)
    return moments


def _signal(group: Sequence[Server], number: signal.Signals) -> None:
    for pid in _pids(group):
        os.kill(pid, number)


def _pids(group: Sequence[Server]) -> list[int]:
    return [pid for server in group if (pid := server.pid) is not None]


class Limit:
    """COPY of ready-made binary rows: what Postgres takes when nothing but Postgres works."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._batches: list[dict[str, bytes]] = []
        self._batch_rows = COPY_ROWS

    async def take_rows(self, where: str) -> None:
        """Make the rows from those of a database, in the order in which they came, under new ids."""
        if self._batches:
            return
        connection = await asyncpg.connect(self._servers.postgres.url(where))
        try:
            counts = {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}
            batches = max(3, sum(counts.values()) // COPY_ROWS)
            self._batch_rows = sum(counts.values()) // batches
            self._batches = [
                {table: await _binary_rows(connection, table, number, counts[table] // batches) for table in TABLES}
                for number in range(batches)
            ]
        finally:
            await connection.close()

    async def copy(self, where: str) -> list[Moment]:
        """A transaction a batch, on one connection."""
        postgres_pid = self._servers.postgres.pid
        assert postgres_pid is not None
        connection = await asyncpg.connect(self._servers.postgres.url(where))
        moments = []
        try:
            for number, batch in enumerate(self._batches, 1):
                async with connection.transaction():
                    for table, rows in batch.items():
                        await connection.copy_to_table(table, source=io.BytesIO(rows), format="binary")
                moments.append(Moment(time.monotonic(), number * self._batch_rows, 0.0, cpu_s(postgres_pid)))
        finally:
            await connection.close()
        return [*moments, moments[-1]]  # each of these batches is full: the last one counts


async def _binary_rows(connection: asyncpg.Connection, table: str, number: int, rows: int) -> bytes:
    columns = [
        name
        for (name,) in await connection.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 ORDER BY attnum", table
        )
    ]
    values = ", ".join(name if name != "id" else "gen_random_uuid() AS id" for name in columns)
    copied = io.BytesIO()
    query = f"SELECT {values} FROM (SELECT * FROM {table} ORDER BY ctid OFFSET {number * rows} LIMIT {rows}) AS part"
    await connection.copy_from_query(query, output=copied, format="binary")
    return copied.getvalue()
