"""The page's settings."""

from ipaddress import ip_address
from typing import Self

from pydantic import Field, FilePath, SecretStr, model_validator

from shared.database_settings import DatabaseSettings, address_of
from shared.settings import Port

PASSWORD_CHARACTERS_MIN = 8


class ViewerSettings(DatabaseSettings):
    """Everything that `python -m viewer` reads."""

    viewer_host: str = Field("127.0.0.1", description="address of the page; any other needs a password or a proxy")
    viewer_port: Port = Field(8090, description="port of the page")
    viewer_password_file: FilePath | None = Field(None, description="file whose first line is the page's password")
    viewer_proxy_header: str | None = Field(
        None,
        pattern="^[A-Za-z0-9-]+$",
        description="header in which a proxy names the person it signed in; only that proxy may reach the port",
    )
    viewer_database_url: SecretStr | None = Field(
        None, description="where the page reads, best as `analytics_reader`; unset: the analytics database"
    )
    viewer_smallest_group: int = Field(
        5, ge=1, le=1_000_000, description="the page hides groups of fewer people; never below the database's own limit"
    )

    @model_validator(mode="after")
    def _address_is_whole(self) -> Self:
        """In the place of the analytics address's own check, which a page with a URL of its own does not need."""
        if self.viewer_database_url is None:
            self._check_analytics_address()
            return self
        address_of(self.viewer_database_url, "VIEWER_DATABASE_URL")
        return self

    @model_validator(mode="after")
    def _is_closed(self) -> Self:
        if not (self.is_local or self.viewer_password_file or self.viewer_proxy_header):
            raise ValueError(
                "VIEWER_HOST is not this machine alone: VIEWER_PASSWORD_FILE or VIEWER_PROXY_HEADER is needed"
            )
        if self.viewer_password_file is not None and len(self.password or "") < PASSWORD_CHARACTERS_MIN:
            raise ValueError(
                f"VIEWER_PASSWORD_FILE needs {PASSWORD_CHARACTERS_MIN} characters or more in its first line"
            )
        return self

    @property
    def is_local(self) -> bool:
        if self.viewer_host == "localhost":
            return True
        try:
            return ip_address(self.viewer_host).is_loopback
        except ValueError:
            return False

    @property
    def password(self) -> str | None:
        """Read at start; None when no file is named."""
        if self.viewer_password_file is None:
            return None
        try:
            lines = self.viewer_password_file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError("VIEWER_PASSWORD_FILE cannot be read as text") from error
        return lines[0].strip() if lines else ""

    @property
    def page_database_url(self) -> str:
        """The address as asyncpg reads it; holds a password, so it is never logged."""
        if self.viewer_database_url is None:
            return self.database_url
        return address_of(self.viewer_database_url, "VIEWER_DATABASE_URL")
