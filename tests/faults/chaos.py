"""Random faults under load, and the figure: faults, events acknowledged, missing, doubled.

    python tests/faults/chaos.py --minutes 10 --seed 1        (or: make chaos MINUTES=10 SEED=1)
    python tests/faults/chaos.py --brokers 3                  (or: make chaos BROKERS=3)

Real processes, real signals, a real Kafka and a real Postgres. Events are a function of the seed and their
number, so what must be in the tables is computed here and never by the product. Each fault is injected only
while at least 100 events are on their way. All the while retention and rebuilds run, one after the other, and
the events' times cross from one partition to the next.
"""

import argparse
import asyncio
import hashlib
import random
import shutil
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc
import psutil
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deploy.local.kafka import KafkaBroker  # noqa: E402  after the path is set
from deploy.local.postgres import PostgresServer  # noqa: E402
from deploy.local.server import Server  # noqa: E402
from deploy.local.stack import ModuleServer  # noqa: E402
from support.cluster import free_ports, in_sync, new_brokers, start  # noqa: E402
from support.command import command  # noqa: E402
from support.proxy import Proxy  # noqa: E402
from support.stack import Stack, eventually  # noqa: E402

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
DAY_S = 86_400
# Events are a second apart and tables are partitioned by day, so a run crosses a boundary every 86,400 events.
BASE_NS = int((time.time() // DAY_S - 3) * DAY_S + DAY_S * 0.9) * 1_000_000_000
BY_DAY = {"PARTITION_INTERVAL": "day"}
SPANS_PER_REQUEST = 50
SENDERS = 4
ON_THEIR_WAY_MIN = 100
SESSION_S = 12.0  # a little over the consumer's session timeout of 10 s
BROKER_SESSION_S = 6.0  # twice a broker's: its partitions have other leaders then
# What OTLP has exporters send again; RESOURCE_EXHAUSTED only with RetryInfo, and we never mean it so.
OLD_DAYS = 90
OLD_ROWS = f"""
    INSERT INTO feature_usage (id, feature_name, timestamp, deployment_type)
    SELECT gen_random_uuid(), 'old', now() - interval '{OLD_DAYS} days', 'chaos' FROM generate_series(1, 1000)
    RETURNING 1
"""
RETRIED = {
    getattr(grpc.StatusCode, name)
    for name in ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
}
FATES = ("stored", "duplicates", "dead_lettered", "suppressed", "expired", "skipped")


@dataclass(frozen=True, slots=True)
class Event:
    """Event number `number` of a seed: a feature's use, with content that tells it from every other."""

    seed: int
    number: int

    @property
    def ids(self) -> tuple[bytes, bytes]:
        digest = hashlib.sha256(f"{self.seed}/{self.number}".encode()).digest()
        return digest[:16], digest[16:24]

    @property
    def row_id(self) -> uuid.UUID:
        hashed = bytearray(hashlib.sha256(b"".join(self.ids)).digest()[:16])
        hashed[6] = hashed[6] & 0x0F | 0x80
        hashed[8] = hashed[8] & 0x3F | 0x80
        return uuid.UUID(bytes=bytes(hashed))

    @property
    def row(self) -> tuple[str, str, str]:
        """feature_name, action and user_id as they must stand in the table."""
        user = hashlib.sha256(f"user-{self.number % 997}".encode()).hexdigest()[:16]
        return f"feature-{self.number}", f"action-{self.number % 7}", user

    def attributes(self) -> Iterator[KeyValue]:
        name, action, _ = self.row
        for key, value in (
            ("feature.name", name),
            ("feature.action", action),
            ("user.id", f"user-{self.number % 997}"),
        ):
            yield KeyValue(key=key, value=AnyValue(string_value=value))


def request_of(events: list[Event]) -> bytes:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for event in events:
        trace_id, span_id = event.ids
        span = spans.add(
            trace_id=trace_id, span_id=span_id, start_time_unix_nano=BASE_NS + event.number * 1_000_000_000
        )
        span.attributes.extend(event.attributes())
    return request.SerializeToString()


@dataclass
class Figures:
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    least_on_their_way: int = sys.maxsize
    offered: int = 0
    acknowledged: int = 0
    missing: int = 0
    doubled: int = 0
    wrong: int = 0
    dead_letters: int = 0
    unbalanced: int = 0
    retained: int = 0
    rebuilt: int = 0
    seconds: float = 0
    rss_mib: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        kinds = "\n".join(f"    {kind:<38}{count:>5}" for kind, count in sorted(self.faults.items()))
        rss = ", ".join(f"{name} {mib} MiB" for name, mib in sorted(self.rss_mib.items()))
        return (
            f"seed {self.seed}, {self.seconds:.0f} s\n"
            f"  faults injected              {self.faults.total():>10}\n{kinds}\n"
            f"  least events on their way at a fault {self.least_on_their_way}\n"
            f"  old rows deleted, rebuilds swapped meanwhile {self.retained}, {self.rebuilt}\n"
            f"  events acknowledged          {self.acknowledged:>10}\n"
            f"  events missing               {self.missing:>10}\n"
            f"  events doubled               {self.doubled:>10}\n"
            f"  rows of wrong content        {self.wrong:>10}\n"
            f"  good events in dead letters  {self.dead_letters:>10}\n"
            f"  partitions out of balance    {self.unbalanced:>10}\n"
            f"  most memory: {rss}"
        )


class Chaos:
    """One run: the servers, the load, the faults, the verdict."""

    def __init__(
        self, stack: Stack, brokers: list[KafkaBroker], proxy: Proxy, doors: list[Proxy], *, seed: int, rate: int
    ) -> None:
        """`proxy` stands before Postgres, `doors` before the brokers."""
        self.stack = stack
        self.brokers = brokers
        self.proxy = proxy
        self.doors = doors
        self.figures = Figures(seed)
        self._random = random.Random(seed)
        self._rate = rate
        self._acknowledged: list[int] = []
        self._next = 0
        self._is_over = asyncio.Event()
        self.receiver: ModuleServer
        self.consumers: list[ModuleServer] = []

    async def run(self, seconds: float, *, at_least_each: int, has_maintenance: bool) -> Figures:
        """Faults for so many seconds, and until each kind has come so often; then heal, and compare."""
        started_at = time.monotonic()
        self.receiver = await asyncio.to_thread(self.stack.receiver, **self._cluster())
        self.consumers = [await asyncio.to_thread(self._consumer) for _ in range(2)]
        work = [*(self._send() for _ in range(SENDERS)), self._watch_memory()]
        async with self._background(*work, *([self._maintain()] if has_maintenance else [])):
            kinds = list(self.kinds())
            plan = [kind for kind in kinds for _ in range(at_least_each)]
            self._random.shuffle(plan)
            while plan or time.monotonic() - started_at < seconds:
                kind = plan.pop() if plan else self._random.choice(kinds)
                await self._enough_on_their_way()
                sys.stderr.write(f"  {time.monotonic() - started_at:6.1f} s  {kind}\n")
                await self.kinds()[kind]()
                self.figures.faults[kind] += 1
                await self._healed()
            self._is_over.set()
        await self._compare()
        self.figures.seconds = time.monotonic() - started_at
        return self.figures

    def kinds(self) -> dict[str, Callable[[], Awaitable[None]]]:
        stack = self.stack
        cluster = {
            "kill -9 of two brokers of three": self._two_killed,
            "a broker's disk wiped": self._wiped,
        }
        return {
            "kill -9 receiver": lambda: self._killed(self.receiver),
            "kill -9 consumer": lambda: self._killed(self._random.choice(self.consumers)),
            "kill -9 Kafka": lambda: self._killed(self._random.choice(self.brokers)),
            "kill -9 Postgres": lambda: self._killed(stack.postgres),
            "restart of Postgres": lambda: asyncio.to_thread(stack.postgres.restart),
            "SIGTERM of the receiver": lambda: asyncio.to_thread(self.receiver.restart),
            "rebalance: consumer leaves and joins": lambda: asyncio.to_thread(
                self._random.choice(self.consumers).restart
            ),
            "rebalance: one more, one less": self._scaled,
            "SIGSTOP of consumer past its session": lambda: self._paused(
                self._random.choice(self.consumers), SESSION_S
            ),
            "SIGSTOP of Kafka": lambda: self._paused(
                self._random.choice(self.brokers), BROKER_SESSION_S if len(self.brokers) > 1 else 3
            ),
            "Kafka connections cut": self._kafka_cut,
            "Kafka connections stalled": self._kafka_stalled,
            "SIGSTOP of Postgres": lambda: self._paused(stack.postgres, 3),
            "database connections cut": self._cut,
            "database connections stalled": self._stalled,
            "answer to a COMMIT lost": self._lost_commit,
            "backends terminated": self._terminated,
            "tables locked": self._locked,
            **(cluster if len(self.brokers) > 1 else {}),
        }

    # ---- faults

    async def _killed(self, server: Server) -> None:
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

    async def _paused(self, server: Server, seconds: float) -> None:
        server.pause()
        await asyncio.sleep(seconds)
        server.resume()

    async def _scaled(self) -> None:
        self.consumers.append(await asyncio.to_thread(self._consumer))
        await asyncio.to_thread(self.consumers.pop(0).stop)

    async def _two_killed(self) -> None:
        two = self._random.sample(self.brokers, 2)
        await asyncio.gather(*(asyncio.to_thread(broker.kill) for broker in two))
        await asyncio.gather(*(asyncio.to_thread(broker.start) for broker in two))

    async def _wiped(self) -> None:
        broker = self._random.choice(self.brokers)
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(shutil.rmtree, broker.folder / "data")
        await asyncio.to_thread(broker.start)

    async def _kafka_cut(self) -> None:
        for door in self.doors:
            door.cut()

    async def _kafka_stalled(self) -> None:
        """Half-open: whoever waits for an answer hears nothing, and its connection stays."""
        for door in self.doors:
            door.stall()
        await asyncio.sleep(3)
        for door in self.doors:
            door.flow()

    async def _cut(self) -> None:
        self.proxy.cut()

    async def _stalled(self) -> None:
        self.proxy.stall()
        await asyncio.sleep(2)
        self.proxy.flow()

    async def _lost_commit(self) -> None:
        before = self.proxy.swallowed
        self.proxy.swallow_next_commit()

        async def is_swallowed() -> bool:
            return self.proxy.swallowed > before

        await eventually(is_swallowed, 30, "a COMMIT to swallow the answer of", every_s=0.01)

    async def _terminated(self) -> None:
        connection = await asyncpg.connect(self.stack.database_url)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'telemetry-consumer%'"
        )
        await connection.close()

    async def _locked(self) -> None:
        connection = await asyncpg.connect(self.stack.database_url)
        async with connection.transaction():
            await connection.execute("LOCK TABLE feature_usage IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(2)
        await connection.close()

    # ---- load

    def _cluster(self) -> dict[str, str]:
        replicas = len(self.brokers)
        return {
            "KAFKA_BOOTSTRAP_SERVERS": ",".join(f"127.0.0.1:{door.port}" for door in self.doors),
            "KAFKA_TOPIC_REPLICATION": str(replicas),
            "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": str(min(2, replicas)),
        }

    def _consumer(self) -> ModuleServer:
        return self.stack.consumer(
            ANALYTICS_DATABASE_URL=self.proxy.url, CONSUMER_BATCH_ROWS="500", **self._cluster(), **BY_DAY
        )

    async def _send(self) -> None:
        """Send, and send again what was not acknowledged, as every exporter does."""
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.receiver.port_of('PORT')}", options=options) as channel:
            export = channel.unary_unary(EXPORT)
            while not self._is_over.is_set():
                numbers = list(range(self._next, self._next + SPANS_PER_REQUEST))
                self._next += SPANS_PER_REQUEST
                body = request_of([Event(self.figures.seed, number) for number in numbers])
                while True:
                    try:
                        if await export(body, timeout=5) == b"":
                            break
                    except grpc.aio.AioRpcError as error:
                        if error.code() not in RETRIED:
                            raise
                        await asyncio.sleep(0.1)
                self._acknowledged += numbers
                await asyncio.sleep(SENDERS * SPANS_PER_REQUEST / self._rate)

    async def _maintain(self) -> None:
        """Retention, then a rebuild that is resumed after each fault until it has swapped; again and again."""
        url = {"ANALYTICS_DATABASE_URL": self.stack.database_url, **self._cluster(), **BY_DAY}

        async def succeeds(*arguments: str) -> bool:
            code, _, said = await command(self.stack, *arguments, **url)
            assert code in (0, 1, 3), said  # 1 and 3: a fault of ours came between
            return code == 0

        while not self._is_over.is_set():
            old = await self._until_answered(OLD_ROWS)
            while not await succeeds("retain", "--days", str(OLD_DAYS - 1), "--yes"):
                pass
            self.figures.retained += old
            is_done = await succeeds("rebuild")
            while not is_done:
                is_done = await succeeds("rebuild", "--resume") or await succeeds("rebuild")
            self.figures.rebuilt += 1
            while not await succeeds("rebuild", "--drop-old", "--yes"):
                pass

    async def _until_answered(self, sql: str) -> int:
        async def answered() -> list[dict[str, object]]:
            return await self.stack.fetch(sql)

        return len(await eventually(answered, 60, "the database answers"))

    async def _settled(self) -> int:
        lines = await self.stack.fetch(
            "SELECT sum(stored) AS rows FROM ingest.partition_offsets WHERE generation = 'live'"
        )
        return int(lines[0]["rows"] or 0)

    async def _enough_on_their_way(self) -> None:
        async def are_enough() -> int:
            on_their_way = self._next - await self._settled()
            return on_their_way if on_their_way >= ON_THEIR_WAY_MIN else 0

        found = await eventually(are_enough, 60, "events on their way")
        self.figures.least_on_their_way = min(self.figures.least_on_their_way, found)

    async def _healed(self) -> None:
        """New events are acknowledged and stored again, with nothing restarted but what was killed.

        Replicas are in sync again too: two disks that go at once are not survived, nor promised.
        """
        sent, stored = len(self._acknowledged), await self._until_settled()

        async def is_healed() -> bool:
            return len(self._acknowledged) > sent and await self._settled() > stored

        await eventually(is_healed, 90, "spans acknowledged and stored again", every_s=0.05)
        if len(self.brokers) > 1:
            await in_sync(self.brokers[0], self.stack.topic, len(self.brokers))

    async def _until_settled(self) -> int:
        async def settled() -> tuple[int]:
            return (await self._settled(),)

        return int((await eventually(settled, 60, "the database answers"))[0])

    async def _watch_memory(self) -> None:
        while not self._is_over.is_set():
            for process in (self.receiver, *self.consumers):
                with suppress(psutil.Error, TypeError):
                    mib = psutil.Process(process.pid).memory_info().rss // 2**20
                    self.figures.rss_mib[process.name] = max(mib, self.figures.rss_mib.get(process.name, 0))
            await asyncio.sleep(1)

    @asynccontextmanager
    async def _background(self, *work: Awaitable[None]) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            for each in work:
                tasks.create_task(each)  # type: ignore[arg-type]  # coroutines all
            try:
                yield
            finally:
                self._is_over.set()

    # ---- verdict

    async def _compare(self) -> None:
        """By content: every acknowledged event is its row, and no row is nobody's."""
        figures = self.figures
        figures.offered, figures.acknowledged = self._next, len(self._acknowledged)
        wanted = {Event(figures.seed, number).row_id: Event(figures.seed, number) for number in self._acknowledged}

        async def are_there() -> bool:
            return await self._settled() >= len(wanted)

        with suppress(AssertionError):  # the comparison below tells what is missing
            await eventually(are_there, 120, "all is stored")
        rows = await self.stack.fetch("SELECT id, feature_name, action, user_id FROM feature_usage")
        found = {row["id"]: (row["feature_name"], row["action"], row["user_id"]) for row in rows}
        figures.doubled = len(rows) - len({row["feature_name"] for row in rows})
        figures.missing = len(wanted.keys() - found.keys())
        figures.wrong = sum(found[id_] != event.row for id_, event in wanted.items() if id_ in found)
        figures.dead_letters = len(await self.stack.fetch("SELECT 1 FROM ingest.dead_letters"))
        ledger = [line for line in await self.stack.ledger() if line["generation"] == "live"]
        figures.unbalanced = sum(
            line["next_offset"] - line["first_offset"] != sum(line[fate] for fate in FATES) for line in ledger
        )
        applied = sum(line["stored"] for line in ledger)
        figures.doubled += abs(applied - len(rows))


async def chaos(
    folder: Path,
    *,
    seconds: float,
    seed: int,
    at_least_each: int,
    rate: int,
    brokers: int = 1,
    has_maintenance: bool = True,
) -> Figures:
    """A run on servers of its own. `has_maintenance`: retention and rebuilds run meanwhile."""
    async with AsyncExitStack() as running:
        ports = free_ports(brokers)
        made = new_brokers(folder, brokers, doors=ports)
        doors = [
            await running.enter_async_context(Proxy(f"kafka://127.0.0.1:{behind}").running(door))
            for (_, behind), door in zip(made, ports, strict=True)
        ]
        cluster = [broker for broker, _ in made]
        for broker in cluster:
            running.callback(broker.kill)
        await asyncio.to_thread(start, cluster)
        postgres = running.enter_context(PostgresServer(folder / "postgres"))
        postgres.create_database("analytics")
        url = postgres.url("analytics")
        migrating = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "alembic", "upgrade", "head", cwd=ROOT, env={"ANALYTICS_DATABASE_URL": url} | BY_DAY
        )
        assert await migrating.wait() == 0
        stack = Stack(kafka=cluster[0], postgres=postgres, database_url=url, folder=folder)
        running.callback(stack.close)
        proxy = await running.enter_async_context(Proxy(url).running())
        return await Chaos(stack, cluster, proxy, doors, seed=seed, rate=rate).run(
            seconds, at_least_each=at_least_each, has_maintenance=has_maintenance
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Random faults under load, and the figure")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=8, help="least number of faults of each kind")
    parser.add_argument("--brokers", type=int, default=1, choices=(1, 3), help="3: two are killed, a disk is wiped")
    parser.add_argument("--rate", type=int, default=800, help="events offered a second")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="telemetry-chaos-") as folder:
        Path(folder).chmod(0o755)
        figures = asyncio.run(
            chaos(
                Path(folder),
                seconds=chosen.minutes * 60,
                seed=chosen.seed,
                at_least_each=chosen.each,
                rate=chosen.rate,
                brokers=chosen.brokers,
            )
        )
    sys.stdout.write(f"{figures}\n")
    return int(bool(figures.missing or figures.doubled or figures.wrong or figures.dead_letters or figures.unbalanced))


if __name__ == "__main__":
    sys.exit(main())
