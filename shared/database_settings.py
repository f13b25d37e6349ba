"""The address of Postgres: one rule for the consumer, the page and the migrations."""

import re
from typing import Literal, Self
from urllib.parse import quote, unquote

import asyncpg
from asyncpg.connect_utils import _parse_connect_dsn_and_args  # type: ignore[attr-defined]
from pydantic import Field, SecretStr, model_validator

from shared.settings import Port, ProcessSettings

_SCHEME = re.compile(r"(?:postgresql|postgres|postgresql\+asyncpg)://")
# Up to the first @ that a host list, a name and a query can follow: so a password may hold what belongs encoded.
_HOST = r"(?:\[[^\]@]*\]|[^][/?#@:,]*)(?::\d+)?"
_PLACE = re.compile(rf"{_HOST}(?:,{_HOST})*(?:/[^/?#@]*)?(?:\?[A-Za-z_]+=[^#]*)?")
_LOGIN = re.compile(rf"(?P<login>.*?)@(?P<place>{_PLACE.pattern})", re.DOTALL)

UNREADABLE = "{} cannot be read: check host, port, sslmode and the certificates' files"


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
        self._check_analytics_address()
        return self

    def _check_analytics_address(self) -> None:
        url = self.analytics_database_url
        if url is None and not (self.analytics_db_host and self.analytics_db_name):
            raise ValueError(
                "ANALYTICS_DATABASE_URL, or ANALYTICS_DB_HOST and ANALYTICS_DB_NAME, must name the database"
            )
        if url is not None:
            address_of(url, "ANALYTICS_DATABASE_URL")
        elif not _is_readable(self.database_url):
            raise ValueError(UNREADABLE.format("ANALYTICS_DB_HOST and its like"))

    @property
    def database_url(self) -> str:
        """The address as asyncpg reads it; holds the password, so it is never logged."""
        if self.analytics_database_url is not None:
            return address_of(self.analytics_database_url, "ANALYTICS_DATABASE_URL")
        user = quote(self.analytics_db_user or "", safe="")
        if self.analytics_db_pass is not None:
            user += ":" + quote(self.analytics_db_pass.get_secret_value(), safe="")
        host, name = self.analytics_db_host or "", quote(self.analytics_db_name or "", safe="")
        login = user and f"{user}@"
        if host.startswith("/"):
            return f"postgresql://{login}/{name}?host={quote(host, safe='/')}&port={self.analytics_db_port}"
        return f"postgresql://{login}{f'[{host}]' if ':' in host else host}:{self.analytics_db_port}/{name}"


def address_of(url: SecretStr, name: str) -> str:
    """The URL in asyncpg's form.

    Raises:
        ValueError: it is none; the message names the variable `name` and not its value.
    """
    given = url.get_secret_value()
    if not _SCHEME.match(given):
        raise ValueError(f"{name} must begin with postgresql://")
    address = _encoded(_SCHEME.sub("", given, count=1))
    if not _is_readable(address):
        raise ValueError(UNREADABLE.format(name))
    return address


def _encoded(address: str) -> str:
    """With user and password percent-encoded, whether they were or not."""
    found = None if _PLACE.fullmatch(address) else _LOGIN.fullmatch(address)
    if found is None:
        return f"postgresql://{address}"
    login = ":".join(quote(unquote(part), safe="") for part in found["login"].split(":", 1))
    return f"postgresql://{login}@{found['place']}"


def _is_readable(url: str) -> bool:
    """Whether asyncpg (0.32) can parse it, by its private parser: there is no public one."""
    names = ("host", "port", "user", "password", "passfile", "database", "ssl", "service", "servicefile", "direct_tls")
    more = ("server_settings", "target_session_attrs", "krbsrvname", "gsslib")
    try:
        _parse_connect_dsn_and_args(dsn=url, **dict.fromkeys((*names, *more)))
    except (asyncpg.InterfaceError, ValueError, LookupError, AttributeError, OSError):
        return False
    return True
