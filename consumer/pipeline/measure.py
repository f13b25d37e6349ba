"""a written batch -> metrics."""

import time

from consumer import metrics
from consumer.pipeline.batch import Batch
from consumer.store.rows.written import Written


def measure(batch: Batch, written: Written) -> None:
    """Count what became of the records, and how long they were on their way."""
    metrics.batch_rows.observe(batch.count)
    first, last = batch.parts[0].record(0), batch.parts[-1].record(len(batch.parts[-1]) - 1)
    for (fate, table), count in written.fates.items():
        metrics.records.labels(fate, table).inc(count)
        if fate == "stored":
            metrics.row_stored(table, last.timestamp / 1000)
    for reason, count in written.reasons.items():
        metrics.dead_letters.labels(reason).inc(count)
    now_ms = time.time() * 1000
    for at_ms in (first.timestamp, last.timestamp):
        metrics.end_to_end_seconds.observe(max(0.0, (now_ms - at_ms) / 1000))
