"""What `make run` shows while it runs: rows by table, rows a second, lag, the last few rows."""

import http.client
import json
import re
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.local.postgres import PostgresServer

TABLES = ("user_activity", "endpoint_usage", "feature_usage", "model_usage")
_RATE_SECONDS = 5
_LAST_ROWS = 6
_METRICS_TIMEOUT_SECONDS = 2

_COUNTS = ", ".join(f"'{table}', (SELECT count(*) FROM public.{table})" for table in TABLES)  # noqa: S608  our names
_SQL = f"""
WITH latest AS (
  (SELECT timestamp, user_id, 'user_activity' AS source, concat_ws(' ', event_type, session_id) AS what
     FROM public.user_activity ORDER BY timestamp DESC LIMIT {_LAST_ROWS})
  UNION ALL
  (SELECT timestamp, user_id, 'endpoint_usage',
          concat_ws(' ', method, endpoint, status_code, round(duration_ms::numeric, 1) || ' ms')
     FROM public.endpoint_usage ORDER BY timestamp DESC LIMIT {_LAST_ROWS})
  UNION ALL
  (SELECT timestamp, user_id, 'feature_usage', concat_ws(' ', feature_name, action, event_metadata)
     FROM public.feature_usage ORDER BY timestamp DESC LIMIT {_LAST_ROWS})
  ORDER BY timestamp DESC LIMIT {_LAST_ROWS})
SELECT json_build_object(
  'rows', json_build_object({_COUNTS}),
  'people', (SELECT count(DISTINCT user_id) FROM public.user_activity WHERE timestamp > now() - interval '1 day'),
  'endpoint', (SELECT mode() WITHIN GROUP (ORDER BY endpoint) FROM public.endpoint_usage
     WHERE timestamp > now() - interval '1 hour'),
  'latest', (SELECT coalesce(json_agg(json_build_array(
       to_char(timestamp, 'HH24:MI:SS.MS'), source, coalesce(user_id, '-'), what)), '[]') FROM latest))
"""  # noqa: S608  our names


@dataclass(frozen=True, slots=True)
class Snapshot:
    rows: dict[str, int]
    latest: list[list[str]]  # time, table, user, what
    people: int  # who logged in within a day
    endpoint: str | None  # the most used of the last hour
    lag_records: int | None  # None: the consumer does not tell
    taken_at: float

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def snapshot_of(postgres: PostgresServer, database: str, metrics_port: int | None = None) -> Snapshot:
    """Raises StackError when Postgres does not answer."""
    shown: dict[str, Any] = json.loads(postgres.query(_SQL, database))
    lag_records = None if metrics_port is None else _lag_records(metrics_port)
    return Snapshot(shown["rows"], shown["latest"], shown["people"], shown["endpoint"], lag_records, time.monotonic())


class Display:
    """The last few snapshots, as a table for a terminal or as a line for a file."""

    def __init__(self, first: Snapshot, page: str) -> None:
        self._page = page
        self._snapshots = deque([first], maxlen=_RATE_SECONDS + 1)

    def add(self, snapshot: Snapshot) -> None:
        """To be called about once a second."""
        self._snapshots.append(snapshot)

    def line(self) -> str:
        now = self._snapshots[-1]
        counts = "  ".join(f"{table} {now.rows[table]}" for table in TABLES)
        return f"rows: {counts}  ({self._per_second(now.total, self._snapshots[0].total):.1f}/s)  lag {_shown(now)}"

    def panel(self) -> RenderableType:
        oldest, now = self._snapshots[0], self._snapshots[-1]
        counts = Table("table", box=None)
        counts.add_column("rows", justify="right")
        counts.add_column("rows a second", justify="right")
        for table in TABLES:
            rate = self._per_second(now.rows[table], oldest.rows[table])
            counts.add_row(table, f"{now.rows[table]:,}", f"{rate:.1f}")
        latest = Table("time (UTC)", "table", "user", "last rows", box=None, pad_edge=True)
        for row in now.latest:
            latest.add_row(*(Text(cell, overflow="ellipsis", no_wrap=True) for cell in row))
        lag = Text(f" lag: {_shown(now)} records in Kafka that are not in Postgres yet")
        people = Text(f" people who logged in today: {now.people:,}   top endpoint: {now.endpoint or '-'}")
        page = Text(f" the page: {self._page}", "bold")
        end = Text(" Ctrl-C stops everything; the rows stay.", "dim")
        return Group(Text(), counts, lag, people, page, Text(), latest, end)

    def _per_second(self, new: int, old: int) -> float:
        seconds = self._snapshots[-1].taken_at - self._snapshots[0].taken_at
        return (new - old) / seconds if seconds else 0.0


def _shown(snapshot: Snapshot) -> str:
    return "?" if snapshot.lag_records is None else str(snapshot.lag_records)


def _lag_records(metrics_port: int) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", metrics_port, timeout=_METRICS_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    values = re.findall(r"^consumer_lag_records(?:\{[^}]*\})? (\S+)", text, re.MULTILINE)
    return int(sum(map(float, values))) if values else None
