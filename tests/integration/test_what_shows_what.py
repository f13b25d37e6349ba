"""docs/operations.md says which metric, which probe and which alert show a part that has stopped. Here it stops."""

import asyncio
import json
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import yaml

from deploy.local.kafka import KafkaBroker
from deploy.local.postgres import PostgresServer
from deploy.local.server import Server
from deploy.local.stack import ModuleServer
from shared.logs import LINES_MAX as LOG_LINES_MAX
from shared.logs import WINDOW_S as LOG_WINDOW_S
from support.otlp import features, request
from support.promql import Scrape, evaluated, scrape
from support.receiver import export
from support.stack import Stack, eventually

ROOT = Path(__file__).resolve().parents[2]
WINDOW_S = 6.0  # the scrapes that a rate looks back on; the rules' own five minutes are too long for a test
RULES = {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
NO_ANSWER = "no answer"


@dataclass(frozen=True)
class Row:
    """What the table says of one part."""

    metrics: tuple[str, ...]
    why_not_ready: dict[str, str]  # by process: a key of its why_not, or NO_ANSWER
    alerts: tuple[str, ...]


def table() -> dict[str, Row]:
    page = (ROOT / "docs/operations.md").read_text()
    lines = page.partition("## What shows what")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]
    return {
        stopped: Row(
            tuple(re.findall(r"`([^`]+)`", metrics)),
            {process: why.strip("`") for process, why in re.findall(r"(receiver|consumer): (`\w+`|no answer)", ready)},
            tuple(re.findall(r"\[(\w+)\]", alerts)),
        )
        for stopped, metrics, ready, alerts in rows
    }


TABLE = table()


class Watcher:
    """Scrapes both processes and asks their probes, as Prometheus and an orchestrator do."""

    def __init__(self, *, window_s: float = WINDOW_S, **processes: ModuleServer) -> None:
        self._window_s = window_s
        self._processes = processes
        self._scrapes: list[Scrape] = []

    def _url(self, name: str, path: str) -> str:
        return f"http://127.0.0.1:{self._processes[name].port_of(f'{name.upper()}_METRICS_PORT')}{path}"

    async def look(self) -> None:
        """One more scrape; those that are too old go, as long as two are left."""
        targets = {f"telemetry-{name}": self._url(name, "/metrics") for name in self._processes}
        self._scrapes.append(await asyncio.to_thread(scrape, targets))
        while len(self._scrapes) > 2 and self._scrapes[0].at < time.monotonic() - self._window_s:
            del self._scrapes[0]

    def forget(self) -> None:
        self._scrapes.clear()

    @property
    def is_rate_known(self) -> bool:
        return len(self._scrapes) > 1 and self._scrapes[-1].at - self._scrapes[0].at > WINDOW_S / 2

    def fires(self, expression: str) -> bool:
        return bool(evaluated(expression, self._scrapes))

    async def why_not_ready(self, name: str) -> set[str]:
        return await asyncio.to_thread(self._why_not_ready, name)

    def _why_not_ready(self, name: str) -> set[str]:
        try:
            with urllib.request.urlopen(self._url(name, "/readyz"), timeout=10) as answer:
                return set(json.loads(answer.read())["why_not"])
        except urllib.error.HTTPError as refusal:
            with refusal:
                return set(json.loads(refusal.read())["why_not"])
        except OSError:
            return {NO_ANSWER}

    async def is_shown(self, row: Row) -> bool:
        """Everything that the row says, at once; and of a process that it does not name, that it is ready."""
        await self.look()
        if not self.is_rate_known or not all(map(self.fires, (*row.metrics, *(RULES[name] for name in row.alerts)))):
            return False
        found = {name: await self.why_not_ready(name) for name in self._processes}
        return all(
            row.why_not_ready[name] in why_not if name in row.why_not_ready else not why_not
            for name, why_not in found.items()
        )

    async def is_well(self) -> bool:
        """No expression of any row, no alert at all, and both are ready."""
        await self.look()
        if not self.is_rate_known:
            return False
        expressions = {expression for row in TABLE.values() for expression in row.metrics} | set(RULES.values())
        expressions.discard(RULES["TelemetryProcessAbsent"])  # a test of one process has no other
        return not any(map(self.fires, expressions)) and not [
            why for name in self._processes for why in await self.why_not_ready(name)
        ]

    async def sees(self, stopped: str) -> None:
        self.forget()
        await eventually(lambda: self.is_shown(TABLE[stopped]), 60, f"{stopped}: {TABLE[stopped]}", every_s=0.5)


class Senders:
    """Five spans, ten times a second, whatever the receiver says."""

    def __init__(self, receiver: ModuleServer) -> None:
        self._receiver = receiver
        self.may_send = asyncio.Event()
        self.may_send.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._send())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _send(self) -> None:
        address = f"127.0.0.1:{self._receiver.port_of('PORT')}"
        options = [("grpc.max_reconnect_backoff_ms", 500)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            while True:
                await self.may_send.wait()
                await export(channel, request(features(5)), timeout_s=5)
                await asyncio.sleep(0.1)


@pytest.fixture
def own_stack(stack: Stack, folder: Path) -> Iterator[Stack]:
    """Servers of the test's own, to be killed."""
    mark = time.monotonic_ns()
    stack.kafka, stack.postgres = KafkaBroker(folder / f"kafka-{mark}"), PostgresServer(folder / f"postgres-{mark}")
    servers: list[Server] = [stack.kafka, stack.postgres]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Server.start, servers))
        yield stack
    finally:
        stack.close()
        for server in servers:
            server.kill()


@pytest.mark.long
async def test_each_part_that_stops_shows_as_the_table_says(
    own_stack: Stack, migrate: Callable[[PostgresServer], Awaitable[str]]
) -> None:
    """At night one looks at one of the three, and it must not be the one that shows nothing."""
    own_stack.database_url = await migrate(own_stack.postgres)
    receiver = await asyncio.to_thread(own_stack.receiver)
    consumer = await asyncio.to_thread(own_stack.consumer)
    watcher, senders = Watcher(receiver=receiver, consumer=consumer), Senders(receiver)

    async def recovers(what: str) -> None:
        watcher.forget()
        await eventually(watcher.is_well, 90, f"all is well {what}", every_s=0.5)

    started_at = time.monotonic()
    async with senders.running():
        await recovers("at first")
        senders.may_send.clear()
        await watcher.sees("the senders")
        senders.may_send.set()
        for name, server in (("the receiver", receiver), ("Kafka", own_stack.kafka), ("Postgres", own_stack.postgres)):
            await asyncio.to_thread(server.kill)
            await watcher.sees(name)
            await asyncio.to_thread(server.start)
            await recovers(f"after {name}")
        await asyncio.to_thread(consumer.kill)
        await watcher.sees("the consumer")
    windows = 2 + (time.monotonic() - started_at) / LOG_WINDOW_S  # and the receiver began a second time
    for process in (receiver, consumer):
        assert max(lines_by_name(process).values()) <= windows * LOG_LINES_MAX


def lines_by_name(process: ModuleServer) -> Counter[str]:
    """How often each event of ours, and each logger of a library, was heard."""
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
    return Counter(line.get("logger") or line["event"] for line in lines)


async def test_missing_migrations_show_as_the_table_says(stack: Stack, postgres: PostgresServer) -> None:
    """The consumer of a first deploy, or of the next version, waits for them, and says for what."""
    name = f"empty_{time.monotonic_ns()}"
    postgres.create_database(name)
    stack.database_url = postgres.url(name)
    consumer = await asyncio.to_thread(lambda: stack.consumer(is_awaited=False))
    await Watcher(consumer=consumer).sees("the migrations")


async def test_an_open_breaker_shows_as_the_table_says(stack: Stack) -> None:
    """The one fault that waits for a person."""
    await stack.create_topic(partitions=1)
    await stack.send([(0, b"good bytes would be JSON")])
    consumer = await asyncio.to_thread(lambda: stack.consumer(DEAD_LETTER_WINDOW="4", CONSUMER_LINGER_MS="0"))
    await stack.settled(1)
    watcher = Watcher(window_s=120, consumer=consumer)  # its counter rises once
    await watcher.look()
    await stack.send([(0, b"more of them")] * 9)
    await eventually(lambda: watcher.is_shown(TABLE["the breaker"]), 60, str(TABLE["the breaker"]), every_s=0.5)


def test_the_table_has_what_is_stopped_here_and_no_more() -> None:
    """A row that nobody tries may say anything."""
    source = Path(__file__).read_text()
    assert all(f'"{stopped}"' in source for stopped in TABLE)
    assert len(TABLE) == 7
    for row in TABLE.values():
        assert row.metrics
        assert row.alerts
        assert set(row.alerts) <= RULES.keys()
