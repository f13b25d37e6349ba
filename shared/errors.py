"""The kinds of failure. An error outside of both branches is a bug: the process crashes, is restarted, and alerts.

TelemetryError
├── Transient              the same input may work later: retry, or ask the caller to
│   ├── BrokerUnavailable      Kafka is down, slow, or refuses the write
│   └── DatabaseUnavailable    Postgres is down, read-only, locked, or not migrated yet
└── Permanent              the same input never will
    ├── Undecodable            a record that is no event: a dead letter, with its reason
    ├── WrongTopic             the topic is not the one that the ledger knows: a person decides
    └── WrongSetting           the process cannot run as it is configured
"""

from typing import Literal

DeadLetterReason = Literal["empty", "not_json", "unknown_type", "newer_schema", "invalid_fields", "database_refused"]


class TelemetryError(Exception):
    """The root. It never holds the text of a library's error, because such texts repeat data."""


class Transient(TelemetryError):  # noqa: N818  the fate is the name
    pass


class BrokerUnavailable(Transient):
    pass


class DatabaseUnavailable(Transient):
    pass


class Permanent(TelemetryError):  # noqa: N818  the fate is the name
    pass


class Undecodable(Permanent):
    def __init__(self, reason: DeadLetterReason) -> None:
        super().__init__(reason)
        self.reason: DeadLetterReason = reason


class WrongTopic(Permanent):
    pass


class WrongSetting(Permanent):
    pass
