"""The loop: positions from the ledger, fetch, decode, one transaction, and on.

The next batch is fetched and decoded while this one is written. After any error the loop begins again at the ledger, so
there is one way back, and no state to repair.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError

from consumer import metrics
from consumer.pipeline import positions
from consumer.pipeline.batch import Batch
from consumer.pipeline.fetching import BATCH_BYTES_MAX, Fetching, Limits, Moved
from consumer.pipeline.measure import measure
from consumer.pipeline.peek import Peek
from consumer.pipeline.records.parts import Engine
from consumer.pipeline.writer import Writer
from consumer.store.database import explained
from consumer.store.erasures import adopt
from consumer.store.ledger import Fenced, Ledger, Line
from consumer.store.rows.written import Written
from consumer.store.suppressions import Suppressions, unpublished
from consumer.store.suppressions_topic import Topic as SuppressionsTopic
from shared.broker import RebalanceCount
from shared.errors import BrokerUnavailable, DatabaseUnavailable, WrongTopic
from shared.lifecycle import background, backoff_s, sleep_or_stop, stop_within
from shared.logs import error_facts
from shared.probes import Health

log = structlog.get_logger("consumer.pipeline.loop")

BATCHES_AHEAD = 1  # beside the one that is written and the one that is decoded
GROUP_COMMIT_TIMEOUT_S = 5.0
HALTED_RETRY_S = 5.0
INTERRUPTIONS_MAX = 3


class Stuck(Exception):  # noqa: N818  a bug, of ours or a library's: the process ends, and is restarted
    """The loop makes no progress."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which of the process's partitions a pipeline has: those congruent to `index` modulo `of`."""

    index: int = 0
    of: int = 1


WHOLE = Share()


class Pipeline:
    """One loop with one writer over its share of the assigned partitions."""

    def __init__(
        self,
        *,
        consumer: AIOKafkaConsumer,
        rebalances: RebalanceCount,
        ledger: Ledger,
        engine: Engine,
        writer: Writer,
        suppressions: SuppressionsTopic,
        peek: Peek,
        health: Health,
        batch_rows: int,
        linger_ms: int,
        share: Share = WHOLE,
        pace: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """`pace` is awaited after each batch, with the number of its records. A rebuild uses it to limit its rate."""
        self._consumer = consumer
        self._rebalances = rebalances
        self._ledger = ledger
        self._engine = engine
        self._writer = writer
        self._suppressions = suppressions
        self._peek = peek
        self._health = health
        self._batch_rows = self._batch_rows_max = batch_rows
        self._linger_s = linger_ms / 1000
        self._share = share
        self._batch_bytes = BATCH_BYTES_MAX // share.of
        self._pace = pace
        self._generation = 0
        self._lines: dict[int, Line] = {}
        self._in_flight: dict[int, int] = {}
        self._record_times: dict[int, float] = {}
        self._is_moved = False
        self._group_commit: asyncio.Task[None] | None = None
        self._cycle: asyncio.Task[bool] | None = None
        self._is_interrupted = False
        self._interruptions = 0
        self._unwritten: set[int] = set()  # partitions of the batch whose write failed last
        self.attempts = 0  # that have ended, well or not: what the watchdog takes for progress
        self._write_need = "write" if share == WHOLE else f"write_{share.index}"

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`: load the ledger, consume until something moves or fails, and again.

        Returns early, and only then, when the breaker has opened.

        Raises:
            Stuck: restarts of the loop gave no progress, so the process must be restarted.
        """
        attempt = 0
        while not stop.is_set():
            self._cycle = asyncio.create_task(self._load_and_consume(stop), name="cycle")
            try:
                if await self._cycle:
                    return
                attempt = 0
            except asyncio.CancelledError:
                if not self._is_interrupted:
                    raise
                self._is_interrupted = False
            except Fenced:
                metrics.fenced.inc()
                log.info("batch_fenced")
            except Moved:
                pass
            except WrongTopic as error:
                metrics.retries.labels("topic").inc()
                self._health.block("topic", str(error))
                log.error("topic_refused", why=str(error))  # noqa: TRY400  the text is ours, the trace says nothing
                await sleep_or_stop(stop, HALTED_RETRY_S)
            except (BrokerUnavailable, DatabaseUnavailable) as error:
                cause = "broker" if isinstance(error, BrokerUnavailable) else "database"
                if isinstance(error, DatabaseUnavailable):
                    self._health.block(self._write_need, f"the last write failed: {explained(str(error))}")
                metrics.retries.labels(cause).inc()
                log.warning("loop_restarted", cause=cause, why=str(error), attempt=attempt, **error_facts(error))
                await sleep_or_stop(stop, backoff_s(attempt))
                attempt += 1
            finally:
                self.attempts += 1

    def interrupt(self) -> None:
        """Cancel what the loop hangs in, so that it begins again at the ledger. For the watchdog.

        Raises:
            Stuck: INTERRUPTIONS_MAX interruptions before this one, and no batch was written since.
        """
        self._interruptions += 1
        metrics.interruptions.inc()
        log.error("loop_stalled", interruptions=self._interruptions)
        if self._interruptions > INTERRUPTIONS_MAX:
            raise Stuck
        if self._cycle is not None:
            self._is_interrupted = True
            self._cycle.cancel()

    async def _load_and_consume(self, stop: asyncio.Event) -> bool:
        """One cycle, from the ledger on; True when the breaker has opened."""
        lines = await self._load()
        if not lines:
            await sleep_or_stop(stop, 0.2)
            return False
        self._health.unblock("topic")
        return await self._consume(lines, stop)

    async def _consume(self, lines: dict[int, Line], stop: asyncio.Event) -> bool:
        """Batch after batch from `lines` on; True when the breaker has opened.

        Raises:
            Transient: begin again at the ledger.
        """
        fetched: asyncio.Queue[Batch] = asyncio.Queue(BATCHES_AHEAD)
        async with background(self._fetch_ahead(lines, fetched), "fetch") as fetching:
            while not stop.is_set():
                batch = await _next(fetched, fetching)
                # Until this returns, everything since the ledger may be redone. After it, the batch is durable.
                written = await self._write(batch)
                self._lines |= (batch if written.cut_at is None else batch.cut(written.cut_at)).lines_after()
                self._tell_group(written)
                if written.cut_at is not None:
                    self._stop_at(written)
                    return True
                if self._pace:
                    await self._pace(batch.count)
        return False

    async def _fetch_ahead(self, lines: dict[int, Line], fetched: asyncio.Queue[Batch]) -> None:
        """Fetch and read while the database works."""
        fetching = Fetching(self._consumer, self._engine, self._ledger.topic, self._check_unmoved)
        while True:
            batch = await fetching.batch(lines, Limits(self._batch_rows, self._batch_bytes, self._linger_s))
            if batch.count:
                await self._check_leaders(lines)
            lines = batch.lines_after()
            await fetched.put(batch)

    async def _load(self) -> dict[int, Line]:
        """Our lines, with the consumer sought to them. No await between the last check and the seeks."""
        self._generation = self._rebalances.generation
        self._is_moved = False
        self._in_flight = {}
        self._record_times = {}
        mine = [
            place.partition
            for place in self._consumer.assignment()
            if place.topic == self._ledger.topic and place.partition % self._share.of == self._share.index
        ]
        if not mine:
            self._lines = {}
            self._unwritten = set()
            self._health.unblock(self._write_need)
            return {}
        erased = await self._suppressions.read()  # before any write: what was erased stays so
        await self._writer.using(lambda connection: adopt(connection, erased))
        await self._republish(erased)
        lines = await self._writer.using(
            lambda connection: positions.load(self._consumer, self._ledger, connection, mine, self._peek)
        )
        self._check_unmoved()
        if not self._unwritten <= set(lines):  # another consumer's now, and so is the failed write
            self._unwritten = set()
        if not self._unwritten:
            self._health.unblock(self._write_need)
        try:
            for line in lines.values():
                self._consumer.seek(TopicPartition(self._ledger.topic, line.partition), line.next_offset)
        except IllegalStateError as error:
            raise Moved("assignment") from error
        self._lines = lines
        log.info("positions_loaded", partitions=len(lines))
        return lines

    async def _republish(self, erased: Suppressions) -> None:
        """Publish erasures of the table that the topic has lost. Table and topic each hold every erasure."""
        lost = await self._writer.using(lambda connection: unpublished(connection, erased))
        if lost:
            await self._suppressions.republish(lost)
            log.warning("suppressions_republished", count=len(lost))

    async def _check_leaders(self, lines: dict[int, Line]) -> None:
        """Begin again at the ledger when a leader changed: the log may have lost its tail, as the loading detects."""
        epochs = await positions.leader_epochs(self._consumer, self._ledger.topic)
        if any(epochs.get(partition) != line.leader_epoch for partition, line in lines.items()):
            raise Moved("leader")

    async def _write(self, batch: Batch) -> Written:
        if not batch.count:
            return Written({})
        self._in_flight = batch.next_offsets()
        try:
            with metrics.stage_seconds.labels("write").time():
                written = await self._writer.write(batch)
        except DatabaseUnavailable as error:
            self._unwritten = set(batch.last)
            if str(error) in ("57014", "TimeoutError"):  # too much for one statement's time, perhaps
                self._batch_rows = max(1, self._batch_rows // 2)
            raise
        self._batch_rows = min(self._batch_rows_max, self._batch_rows * 2)
        self._interruptions = 0
        self.attempts += 1
        self._unwritten = set()
        self._health.unblock(self._write_need)
        self._record_times |= {partition: record.timestamp / 1000 for partition, record in batch.last.items()}
        measure(batch, written)
        return written

    def _check_unmoved(self) -> None:
        if self._generation != self._rebalances.generation or self._is_moved:
            raise Moved("assignment or ledger")

    def notice(self, found: dict[int, Line]) -> None:
        """Take the ledger as the monitor has just read it. Begin again when it is not where this loop is or will be."""
        for partition, line in self._lines.items():
            there = found.get(partition)
            if (
                there is None
                or (there.topic_id, there.epoch) != (line.topic_id, line.epoch)
                or there.next_offset not in (line.next_offset, self._in_flight.get(partition))
            ):
                self._is_moved = True

    def notice_topic(self) -> None:
        """The monitor has found another topic under the name: begin again."""
        self._is_moved = True

    def next_offsets(self) -> dict[int, int]:
        """The first offset without a fate, by partition, as far as this loop knows."""
        return {partition: line.next_offset for partition, line in self._lines.items()}

    def record_times(self) -> dict[int, float]:
        """When the last settled record was received, in seconds since 1970, by partition; since the last loading."""
        return dict(self._record_times)

    def _tell_group(self, written: Written) -> None:
        """Commit the offsets to the Kafka group, for lag tools only. Skipped while the last such commit still runs."""
        if not self._ledger.may_begin or not written.moves or (self._group_commit and not self._group_commit.done()):
            return
        offsets = {
            TopicPartition(self._ledger.topic, partition): move.next_offset for partition, move in written.moves.items()
        }

        async def commit() -> None:
            with metrics.stage_seconds.labels("commit").time():
                if not await stop_within(self._consumer.commit(offsets), GROUP_COMMIT_TIMEOUT_S):
                    metrics.group_commit_failures.inc()

        self._group_commit = asyncio.create_task(commit(), name="group-commit")

    def _stop_at(self, written: Written) -> None:
        metrics.breaker_open.set(1)
        self._health.block(
            "breaker", "too many dead letters: remove their cause (consumer dead-letters list), then restart"
        )
        log.error("breaker_opened", records_before=written.cut_at)

    async def close(self) -> None:
        """End the loop's tasks and its connection."""
        if self._group_commit:
            await asyncio.wait([self._group_commit], timeout=1)
            self._group_commit.cancel()
        self._writer.close()


async def _next(fetched: asyncio.Queue[Batch], fetching: asyncio.Task[None]) -> Batch:
    """The next batch; raises the error that ended the fetching."""
    if fetched.empty():
        getting = asyncio.create_task(fetched.get(), name="next")
        try:
            await asyncio.wait([getting, fetching], return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
        finally:
            getting.cancel()
        fetching.result()
    return fetched.get_nowait()
