"""The receiver's settings. The limits bound memory, and the README shows the sum."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from receiver.translate.mapping import METADATA_ATTRIBUTES
from receiver.translate.rules import ENDPOINT_EXCLUDE
from shared.engine import EngineSetting
from shared.settings import (
    CommaSeparated,
    CommaSeparatedSecrets,
    IdSettings,
    KafkaSettings,
    Port,
    PortOrOff,
    ReceiverPlace,
)

MEBIBYTE = 1024 * 1024


def _globs(value: object) -> object:
    if not isinstance(value, str):
        return value
    return () if value.strip() == "none" else tuple(part.strip() for part in value.split(",") if part.strip())


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(_ORIGIN.fullmatch(origin) for origin in value):
        raise ValueError("origins like https://shop.example, comma-separated, or * are needed")
    return value


_ORIGIN = re.compile(r"\*|https?://[^\s/,]+")

Origins = Annotated[CommaSeparated, AfterValidator(_origins)]
Globs = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_globs)]


class ReceiverSettings(ReceiverPlace, KafkaSettings, IdSettings):
    """Everything that `python -m receiver` reads."""

    host: str = Field("0.0.0.0", description="address that OTLP/gRPC is served at")  # noqa: S104
    port: Port = Field(4317, description="port that OTLP/gRPC is served at")
    http_port: PortOrOff = Field(4318, description="port that OTLP/HTTP is served at; 0: off")
    http_cors_origins: Origins = Field(
        (), description="origins of pages that may send from a browser, comma-separated; `*`: all"
    )
    accept_other_signals: bool = Field(
        default=True, description="answer metrics and logs with success, and drop them; false: refuse them"
    )
    workers: int = Field(1, ge=1, le=128, description="processes that share the port")
    telemetry_enabled: bool = Field(True, description="false: accept, drop and count every span")  # noqa: FBT003

    api_keys: CommaSeparatedSecrets = Field((), description="keys that callers may show; none set: everybody may call")
    otel_api_key: SecretStr | None = Field(None, description="one more key")
    api_keys_file: Path | None = Field(
        None, description="file of more keys, one a line, `#` begins a comment; read again when it changes"
    )
    tls_cert_file: Path | None = Field(None, description="PEM certificate chain; read again when it changes")
    tls_key_file: Path | None = Field(None, description="PEM key of the certificate; read again when it changes")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM authorities that callers' certificates must come from; read again when it changes"
    )

    max_connections: int = Field(
        1000, ge=16, le=100_000, description="most connections at once, a worker and port; then the quietest gives way"
    )
    max_request_bytes: int = Field(
        64 * MEBIBYTE, ge=1024, le=1024 * MEBIBYTE, description="largest request, after decompression"
    )
    max_spans_per_request: int = Field(100_000, ge=1, le=10_000_000, description="most spans of a request")
    max_span_bytes: int = Field(4 * MEBIBYTE, ge=1024, le=64 * MEBIBYTE, description="largest event, as a span")
    max_span_attributes: int = Field(
        1024, ge=1, le=100_000, description="most attributes of an event's span; of span events and links likewise"
    )
    max_inflight_bytes: int = Field(
        256 * MEBIBYTE, ge=MEBIBYTE, le=1024 * 1024 * MEBIBYTE, description="memory of all requests at once, a worker"
    )
    publish_timeout_ms: int = Field(
        3500, ge=100, le=60_000, description="longest wait for a reply; exporters give up after 5 s or more"
    )
    publish_linger_ms: int = Field(5, ge=0, le=1000, description="how long a batch of records stays open for more")

    metadata_attributes: CommaSeparated = Field(
        METADATA_ATTRIBUTES, description="attributes that event_metadata may hold; `*` at the end stands for any rest"
    )
    engine: EngineSetting = Field(
        "auto", description="`native` or `python` forces an engine; `auto`: native where it was built"
    )
    infer_events: bool = Field(True, description="take feature.name, served requests and model calls for events")  # noqa: FBT003
    identity_by_trace: bool = Field(True, description="let ids on other spans of the trace count")  # noqa: FBT003
    endpoint_exclude: Globs = Field(
        ENDPOINT_EXCLUDE, description="globs of endpoints that are no events; `none`: no exclusion"
    )
    endpoints_per_service: int = Field(
        200, ge=0, le=10_000, description="distinct endpoints of a service's raw paths, then `{other}`; 0: no bound"
    )

    tracing_endpoint: Annotated[str, Field(pattern=r"^(https?://[^/\s]+/?)?$")] = Field(
        "", description="http(s)://host:port of the OTLP/gRPC endpoint for spans about the receiver itself; empty: none"
    )
    tracing_sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="share of requests that make such spans"
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS_CERT_FILE and TLS_KEY_FILE need each other")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("TLS_CLIENT_CA_FILE needs TLS_CERT_FILE and TLS_KEY_FILE")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.http_port and self.http_port in (self.port, self.receiver_metrics_port):
            raise ValueError("HTTP_PORT must be another port than PORT and RECEIVER_METRICS_PORT")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that the environment gives; those of API_KEYS_FILE come on top."""
        secrets = (*self.api_keys, *((self.otel_api_key,) if self.otel_api_key else ()))
        return tuple(secret.get_secret_value() for secret in secrets)
