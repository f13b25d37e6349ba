"""Record values and the rows they must become, from the test's own description and none of the product's code."""

import json
import random
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Made:
    """One record and its row."""

    table: str
    id: uuid.UUID
    timestamp_us: int
    columns: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> bytes:
        fields = {
            "schema_version": 2 if "weight" in self.columns else 1,
            "table": self.table,
            "id": str(self.id),
            "timestamp_us": self.timestamp_us,
            **{name: value for name, value in self.columns.items() if value is not None},
            "event_metadata": self.metadata,
        }
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, default=str).encode()

    def partition(self, partitions: int = 4) -> int:
        return int.from_bytes(self.id.bytes[-4:], "big") % partitions

    def matches(self, row: dict[str, Any]) -> bool:
        """Is this the row, in every column?"""
        rest = dict(row)
        return (
            rest.pop("id") == self.id
            and rest.pop("timestamp") == EPOCH + timedelta(microseconds=self.timestamp_us)
            and json.loads(rest.pop("event_metadata")) == self.metadata
            and rest == {name: self.columns.get(name, 1.0 if name == "weight" else None) for name in rest}
        )


def made(random_: random.Random, table: str | None = None, **columns: Any) -> Made:
    """A record at random, of any table or of one, and of any schema version."""
    table = table or random_.choice(["user_activity", "endpoint_usage", "feature_usage", "model_usage"])
    hashed = f"{random_.getrandbits(64):016x}"
    own: dict[str, Any] = {
        "user_activity": {"user_id": hashed, "event_type": "login", "session_id": random_.choice([None, "s-1"])},
        "endpoint_usage": {
            "endpoint": "/orders/{id}",
            "method": random_.choice(["GET", None]),
            "status_code": random_.choice([200, 404, None]),
            "duration_ms": random_.choice([1.25, None]),
            "user_id": random_.choice([hashed, None]),
        },
        "feature_usage": {"feature_name": "export", "action": random_.choice(["created", None]), "user_id": hashed},
        "model_usage": {
            "operation": "chat",
            "provider": random_.choice(["openai", None]),
            "model": "gpt-4o",
            "input_tokens": random_.choice([2**62, 17, None]),
            "output_tokens": random_.choice([0, None]),
            "duration_ms": random_.choice([1.25, None]),
            "error_type": random_.choice(["timeout", None]),
            "user_id": random_.choice([hashed, None]),
        },
    }[table]
    since_version_2 = {
        "service_name": random_.choice(["shop", None]),
        "service_version": random_.choice(["1.2.3", None]),
        "trace_id": uuid.UUID(int=random_.getrandbits(128)),
        "weight": random_.choice([1.0, 4.0, 100.5]),
    }
    if table == "model_usage" or random_.random() < 0.7:
        own |= since_version_2
    return Made(
        table,
        uuid.UUID(int=random_.getrandbits(128)),
        1_790_000_000_000_000 + random_.randrange(10**12),
        {"deployment_type": "cloud", "organization_id": random_.choice([hashed, None]), **own, **columns},
        random_.choice([{}, {"plan": "pro", "größe": [1, None, {"a": "\u2028"}]}]),
    )
