"""Certificate files -> TLS contexts, read again when they change."""

import ssl
from collections.abc import Sequence
from pathlib import Path

import structlog

from receiver.settings import ReceiverSettings
from shared.errors import WrongSetting
from shared.logs import error_facts

log = structlog.get_logger(__name__)


class Certificates:
    """The TLS files. They are checked for each new connection, and read again when they changed.

    A certificate and a key that do not fit together, as in the middle of a rotation, are not used: the last pair stays.
    """

    def __init__(self, settings: ReceiverSettings, *, protocols: Sequence[str]) -> None:
        assert settings.tls_cert_file is not None
        assert settings.tls_key_file is not None
        self._cert, self._key, self._ca = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
        self._protocols = list(protocols)
        try:
            self._stamp = self._stamps()
            self._context = self._read()
        except (OSError, ssl.SSLError) as error:
            raise WrongSetting(
                f"TLS_CERT_FILE, TLS_KEY_FILE or TLS_CLIENT_CA_FILE cannot be used: {type(error).__name__}"
            ) from error

    def context(self) -> ssl.SSLContext:
        """The context for the next connection."""
        try:
            stamp = self._stamps()
            if stamp != self._stamp:
                fresh = self._read()
                if stamp == self._stamps():  # else a file is still being written, and the next connection checks again
                    self._stamp, self._context = stamp, fresh
                    log.info("certificates_read")
        except (OSError, ssl.SSLError) as error:
            log.warning("certificates_kept", **error_facts(error))
        return self._context

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(self._protocols)
        # Raises when they do not fit together. Without a password here, OpenSSL would ask for an encrypted key's on the
        # terminal.
        context.load_cert_chain(self._cert, self._key, password=b"")
        if self._ca is not None:
            context.load_verify_locations(self._ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _stamps(self) -> list[tuple[int, int, int]]:
        return [_stamp(path) for path in (self._cert, self._key, self._ca) if path is not None]


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
