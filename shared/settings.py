"""environment -> frozen settings. Read once, in a process's __main__; nothing else reads the environment.

Order: environment, then `.env` in the working directory, then the default. An empty variable is unset.
"""

import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.errors import WrongSetting
from shared.identity import IdHashing
from shared.logs import LogFormat


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _split_secrets(value: object) -> object:
    """Split, but refuse a list of nothing but blanks: whoever wrote it meant a key, and without one all are let in."""
    secrets = _split(value)
    if value and not secrets:
        raise ValueError("only blanks and commas stand there")
    return secrets


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _addresses(value: str) -> str:
    parts = [part.strip() for part in value.split(",")]
    if not all(_ADDRESS.fullmatch(part) for part in parts):
        raise ValueError("comma-separated host:port is needed")
    return value


_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+)(:\d{1,5})?")


def _topic_name(value: str) -> str:
    if not _TOPIC_NAME.fullmatch(value) or value in (".", ".."):
        raise ValueError("1 to 249 of A-Z, a-z, 0-9, `.`, `_` and `-` are needed, and not `.` or `..` alone")
    return value


_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")  # what Kafka allows

Addresses = Annotated[str, AfterValidator(_addresses)]
TopicName = Annotated[str, AfterValidator(_topic_name)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
CommaSeparatedSecrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_secrets)]
Port = Annotated[int, Field(ge=1, le=65535)]
PortOrOff = Annotated[int, Field(ge=0, le=65535)]
ID_HASH_KEY_BYTES_MIN = 32


class ProcessSettings(BaseSettings):
    """What every process has. A field `kafka_topic` is the variable `KAFKA_TOPIC`."""

    model_config = SettingsConfigDict(
        frozen=True, env_file=".env", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = Field(
        "INFO", description="minimum log level"
    )
    log_format: LogFormat = Field("auto", description="`json` or `console`; `auto`: console on a terminal, else json")
    metrics_host: str = Field("127.0.0.1", description="address of /livez, /readyz and /metrics; 0.0.0.0 in containers")
    deployment_type: Annotated[str, Field(max_length=50)] = Field(
        "self-hosted", description="`deployment_type` of spans that name none"
    )


class KafkaSettings(ProcessSettings):
    """How to reach the brokers, and the settings of topics that are created."""

    kafka_bootstrap_servers: Addresses = Field("127.0.0.1:9092", description="comma-separated host:port")
    kafka_topic: TopicName = Field("telemetry.events", description="topic of the events")
    kafka_suppressions_topic: TopicName = Field("telemetry.suppressions", description="compacted topic of erasures")
    kafka_topic_create: bool = Field(True, description="create missing topics at start")  # noqa: FBT003
    kafka_topic_partitions: int = Field(12, ge=1, le=10_000, description="partitions of a topic that we create")
    kafka_topic_replication: int = Field(1, ge=1, le=32, description="replicas; 3 in production")
    kafka_topic_min_insync_replicas: int = Field(
        1,
        ge=1,
        le=32,
        description="replicas that must have a write before it is acknowledged; 2 in production",
    )
    kafka_topic_retention_hours: int = Field(
        168, ge=1, le=1_000_000, description="how long records stay, and so how far a replay reaches"
    )
    kafka_consumer_group: str = Field("telemetry-consumer", description="consumer group")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
    )
    kafka_sasl_username: str | None = Field(None, description="SASL user")
    kafka_sasl_password: SecretStr | None = Field(None, description="SASL password")
    kafka_ssl_ca_file: FilePath | None = Field(None, description="PEM file of the authorities that sign brokers")
    kafka_ssl_cert_file: FilePath | None = Field(None, description="PEM file of our certificate")
    kafka_ssl_key_file: FilePath | None = Field(None, description="PEM file of its key")

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> Self:
        if self.kafka_security_protocol.startswith("SASL"):
            for name in ("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name.upper()} is needed by KAFKA_SECURITY_PROTOCOL")
        return self

    @model_validator(mode="after")
    def _topics_can_be(self) -> Self:
        if self.kafka_topic == self.kafka_suppressions_topic:
            raise ValueError("KAFKA_SUPPRESSIONS_TOPIC and KAFKA_TOPIC must be two topics")
        if self.kafka_topic_create and self.kafka_topic_min_insync_replicas > self.kafka_topic_replication:
            raise ValueError("KAFKA_TOPIC_MIN_INSYNC_REPLICAS is above KAFKA_TOPIC_REPLICATION: no write would succeed")
        return self


class ReceiverPlace(ProcessSettings):
    """Where the receiver's metrics are: its own setting, and what doctor looks at."""

    receiver_metrics_port: PortOrOff = Field(9464, description="port of /livez, /readyz and /metrics; 0: off")


class IdSettings(ProcessSettings):
    """How ids are hashed. Receiver and consumer must agree, or an erasure finds nothing."""

    id_hashing: IdHashing = Field("hash", description="`prehashed`: 16 lower-case hex digits pass as they are")
    id_hash_key: SecretStr | None = Field(None, description="key of HMAC-SHA-256, 32 bytes or more; unset: SHA-256")
    id_hash_keys_previous: CommaSeparatedSecrets = Field((), description="former keys, for erase and export")

    @model_validator(mode="after")
    def _keys_are_long(self) -> Self:
        for name, keys in (
            ("ID_HASH_KEY", () if self.id_hash_key is None else (self.id_hash_key,)),
            ("ID_HASH_KEYS_PREVIOUS", self.id_hash_keys_previous),
        ):
            if any(len(key.get_secret_value().encode()) < ID_HASH_KEY_BYTES_MIN for key in keys):
                raise ValueError(f"{name} needs {ID_HASH_KEY_BYTES_MIN} bytes or more")
        return self

    @property
    def hash_key(self) -> bytes:
        """The present key; empty when none is set."""
        return b"" if self.id_hash_key is None else self.id_hash_key.get_secret_value().encode()


S = TypeVar("S", bound=ProcessSettings)


def load(settings: type[S], **overrides: Any) -> S:
    """Read the settings once.

    Raises:
        WrongSetting: a value is missing or bad; the message names the variable and never its value.
    """
    try:
        return settings(**overrides)
    except ValidationError as error:
        found = [(".".join(str(part) for part in fault["loc"][:1]).upper(), fault["msg"]) for fault in error.errors()]
    lines = (f"{name}: {text}" if name else text.removeprefix("Value error, ") for name, text in found)
    raise WrongSetting("; ".join(lines))


def described(settings: ProcessSettings) -> dict[str, str]:
    """Every setting by its variable's name, secrets hidden, for the line that is logged at start."""
    return {name.upper(): str(value) for name, value in settings.model_dump().items() if value is not None}
