"""The consumer's settings, and the one rule for database addresses that services and migrations share."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import quote, unquote

import asyncpg
from asyncpg.connect_utils import _parse_connect_dsn_and_args  # type: ignore[attr-defined]
from pydantic import Field, SecretStr, model_validator

from consumer.store.plain_rows import EngineSetting
from shared.settings import IdSettings, KafkaSettings, Port, PortOrOff, ProcessSettings, ReceiverPlace

_SCHEME = re.compile(r"(?:postgresql|postgres|postgresql\+asyncpg)://")
# Up to the first @ that a host list, a name and a query can follow: so a password may hold what belongs encoded.
_HOST = r"(?:\[[^\]@]*\]|[^][/?#@:,]*)(?::\d+)?"
_PLACE = re.compile(rf"{_HOST}(?:,{_HOST})*(?:/[^/?#@]*)?(?:\?[A-Za-z_]+=[^#]*)?")
_LOGIN = re.compile(rf"(?P<login>.*?)@(?P<place>{_PLACE.pattern})", re.DOTALL)


class DatabaseSettings(ProcessSettings):
    """Where Postgres is: a whole URL, or its parts."""

    analytics_database_url: SecretStr | None = Field(
        None, description="postgresql://user:password@host:port/name; wins over the ANALYTICS_DB_ parts"
    )
    analytics_db_user: str | None = Field(None, description="database user")
    analytics_db_pass: SecretStr | None = Field(None, description="its password, any characters")
    analytics_db_host: str | None = Field(None, description="host, or a socket folder when it begins with /")
    analytics_db_port: Port = Field(5432, description="port")
    analytics_db_name: str | None = Field(None, description="database name")
    partition_interval: Literal["month", "week", "day"] = Field(
        "month", description="what one partition of the tables holds: `month`, `week` or `day`"
    )

    @model_validator(mode="after")
    def _address_is_whole(self) -> Self:
        url = self.analytics_database_url
        if url is None and not (self.analytics_db_host and self.analytics_db_name):
            raise ValueError(
                "ANALYTICS_DATABASE_URL, or ANALYTICS_DB_HOST and ANALYTICS_DB_NAME, must name the database"
            )
        if url is not None and not _SCHEME.match(url.get_secret_value()):
            raise ValueError("ANALYTICS_DATABASE_URL must begin with postgresql://")
        if not _is_readable(self.database_url):
            named = "ANALYTICS_DB_HOST and its like" if url is None else "ANALYTICS_DATABASE_URL"
            raise ValueError(f"{named} cannot be read: check host, port, sslmode and the certificates' files")
        return self

    @property
    def database_url(self) -> str:
        """The address as asyncpg reads it; holds the password, so it is never logged."""
        if self.analytics_database_url is not None:
            return _encoded(_SCHEME.sub("", self.analytics_database_url.get_secret_value(), count=1))
        user = quote(self.analytics_db_user or "", safe="")
        if self.analytics_db_pass is not None:
            user += ":" + quote(self.analytics_db_pass.get_secret_value(), safe="")
        host, name = self.analytics_db_host or "", quote(self.analytics_db_name or "", safe="")
        login = user and f"{user}@"
        if host.startswith("/"):
            return f"postgresql://{login}/{name}?host={quote(host, safe='/')}&port={self.analytics_db_port}"
        return f"postgresql://{login}{f'[{host}]' if ':' in host else host}:{self.analytics_db_port}/{name}"


def _encoded(address: str) -> str:
    """With user and password percent-encoded, whether they were or not."""
    found = None if _PLACE.fullmatch(address) else _LOGIN.fullmatch(address)
    if found is None:
        return f"postgresql://{address}"
    login = ":".join(quote(unquote(part), safe="") for part in found["login"].split(":", 1))
    return f"postgresql://{login}@{found['place']}"


def _is_readable(url: str) -> bool:
    """Whether asyncpg (0.32) can make anything of it; its own reading, as there is no public way to ask."""
    names = ("host", "port", "user", "password", "passfile", "database", "ssl", "service", "servicefile", "direct_tls")
    more = ("server_settings", "target_session_attrs", "krbsrvname", "gsslib")
    try:
        _parse_connect_dsn_and_args(dsn=url, **dict.fromkeys((*names, *more)))
    except (asyncpg.InterfaceError, ValueError, LookupError, AttributeError, OSError):
        return False
    return True


class ConsumerSettings(DatabaseSettings, KafkaSettings, IdSettings):
    """Everything that `python -m consumer` reads."""

    engine: EngineSetting = Field(
        "auto", description="`native` or `python` forces an engine; `auto`: native where it was built"
    )
    consumer_batch_rows: int = Field(10_000, ge=1, le=100_000, description="most records in one transaction")
    consumer_linger_ms: int = Field(250, ge=0, le=60_000, description="longest wait for a batch to fill")
    consumer_writers: int = Field(1, ge=1, le=64, description="connections that write disjoint partitions side by side")
    retention_days: int = Field(0, ge=0, le=36_500, description="age at which rows are deleted; 0: never")
    dead_letter_max_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of dead letters in the window that opens the breaker; 1: never"
    )
    dead_letter_window: int = Field(1000, ge=1, le=1_000_000, description="records that the breaker looks back on")
    consumer_metrics_port: PortOrOff = Field(9465, description="port of /livez, /readyz and /metrics; 0: off")


class DoctorSettings(ConsumerSettings, ReceiverPlace):
    """Doctor looks at the receiver's metrics as well."""
