"""Every metric of the consumer: name with unit, labels from closed sets, a sentence."""

import time
from collections import Counter as TallyCounter
from functools import partial
from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from consumer.store.rows.plain_rows import DECLINED
from consumer.store.schema import ANALYTICS_TABLES
from shared.errors import DeadLetterReason

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

records = Counter(
    "consumer_records",
    "Settled records, by fate; the label table is empty for a record that belongs to no table",
    ["fate", "table"],
)
dead_letters = Counter("consumer_dead_letters", "New dead letters, by reason", ["reason"])
offsets_lost = Counter("consumer_offsets_lost", "Offsets that retention deleted before they were read")
truncations = Counter("consumer_truncations", "Times that a partition's log lost settled records")
lag_records = Gauge("consumer_lag_records", "Records of the partition that have no fate yet", ["partition"])
lag_seconds = Gauge(
    "consumer_lag_seconds", "Age of the oldest record of the partition that has no fate yet", ["partition"]
)
retention_used_ratio = Gauge("consumer_retention_used_ratio", "Share of the topic's retention that the lag has used")
breaker_open = Gauge(
    "consumer_breaker_open", "1 while the breaker is open: too many dead letters, and the process waits for a restart"
)
stage_seconds = Histogram("consumer_stage_seconds", "Time a batch spent in a stage", ["stage"], buckets=SECONDS)
end_to_end_seconds = Histogram(
    "consumer_end_to_end_seconds", "Time from a record's arrival at the receiver to its commit", buckets=SECONDS
)
batch_rows = Histogram(
    "consumer_batch_records", "Records in one transaction", buckets=(1, 10, 100, 500, 1000, 2500, 5000, 10_000, 100_000)
)
rebalances = Counter("consumer_rebalances", "Changes of the partitions that this process owns")
fenced = Counter("consumer_fenced", "Batches dropped because another writer had moved the ledger")
retries = Counter("consumer_retries", "Loop restarts after an error, by failing dependency", ["cause"])
group_commit_failures = Counter(
    "consumer_group_commit_failures", "Failed offset commits to the Kafka group, which only lag tools read"
)

interruptions = Counter("consumer_loop_interruptions", "Stalled loops that the watchdog restarted")
newest_row_age_seconds = Gauge(
    "consumer_newest_row_age_seconds",
    "Time since the newest stored event was received, or since the process started while nothing was stored",
    ["table"],
)
writers = Gauge("consumer_writers", "Writers of this process: CONSUMER_WRITERS")
database_connections = Gauge("consumer_database_connections", "Connections to Postgres that this process has open")
ready = Gauge("consumer_ready", "1 while /readyz answers 200")
ledger_balanced = Gauge("consumer_ledger_balanced", "1 while every offset of the ledger has exactly one fate")
drain_seconds = Gauge(
    "consumer_drain_seconds",
    "Time until the lag is gone, at the rate of the last minute; -1: never, NaN: not known yet",
)
engine_info = Gauge("consumer_engine_info", "1 for the engine that reads records", ["engine"])
records_declined = Counter(
    "consumer_records_declined", "Records that the native engine left to the slower reference, by reason", ["reason"]
)
ledger_balanced.set(1)

_newest_at = dict.fromkeys(ANALYTICS_TABLES, time.time())


def declined(counts: TallyCounter[str]) -> None:
    """Count records, and forget them."""
    for reason, count in counts.items():
        records_declined.labels(reason).inc(count)
    counts.clear()


def row_stored(table: str, received_at_s: float) -> None:
    """A replay of older records makes nothing newer."""
    _newest_at[table] = max(_newest_at[table], received_at_s)


def _age(table: str) -> float:
    return max(0.0, time.time() - _newest_at[table])


for _table in ANALYTICS_TABLES:  # reckoned when it is asked for, so it grows whatever hangs
    newest_row_age_seconds.labels(_table).set_function(partial(_age, _table))

for _reason in DECLINED:
    records_declined.labels(_reason)
FATES = ("stored", "duplicates", "suppressed", "expired")
for _fate in FATES:
    for _table in ANALYTICS_TABLES:
        records.labels(_fate, _table)
for _fate in ("dead_lettered", "skipped"):
    records.labels(_fate, "")
for _reason in get_args(DeadLetterReason):
    dead_letters.labels(_reason)
for _stage in ("fetch", "decode", "write", "commit"):
    stage_seconds.labels(_stage)
for _cause in ("broker", "database", "topic"):
    retries.labels(_cause)
