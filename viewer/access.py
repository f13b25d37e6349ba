"""Who may see the page: whom a proxy signed in, or who knows the password; and never another site's page."""

import asyncio
import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass

from aiohttp import web

from viewer import metrics

WRONG_PASSWORD_S = 1.0  # each, one after another
WAITING_MAX = 20  # wrong passwords; more are refused at once
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = frozenset({"/healthz"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """The status and the text for a request that is refused."""

    status: int
    text: str


class Access:
    """Judges requests. Right passwords are answered at once, also while wrong ones wait.

    `proxy_header` is a header that only a proxy can set, with the name of the person whom it signed in.
    """

    def __init__(self, password: str | None, host: str, *, proxy_header: str | None = None) -> None:
        self._proxy_header = proxy_header
        self._digest = None if password is None else _digest(password)
        self._hosts = LOCAL_HOSTS | {host.lower(), f"[{host.lower()}]"}
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0

    async def refusal(self, request: web.Request) -> Refusal | None:
        """None lets it in."""
        if request.path in OPEN_PATHS or self._is_signed_in(request):
            return None
        if self._digest is not None:
            return await self._wrong_password(request.headers.get("Authorization"), self._digest)
        if self._proxy_header is not None:
            return Refusal(403, "Open the page through the proxy that signs you in.")
        return self._foreign_name(request.headers.get("Host", ""))

    def _is_signed_in(self, request: web.Request) -> bool:
        return self._proxy_header is not None and bool(request.headers.get(self._proxy_header, "").strip())

    async def _wrong_password(self, header: str | None, right: bytes) -> Refusal | None:
        if header is None:
            return Refusal(401, "A password is needed.")
        if hmac.compare_digest(_digest(_password_of(header)), right):
            return None
        metrics.wrong_passwords.inc()
        if self._waiting >= WAITING_MAX:
            return Refusal(429, "Too many wrong passwords: try again in a minute.")
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                await asyncio.sleep(WRONG_PASSWORD_S)
        finally:
            self._waiting -= 1
        return Refusal(401, "The password is wrong.")

    def _foreign_name(self, host: str) -> Refusal | None:
        """Another site can give its own name this machine's address, and so read a page that asks for no password."""
        name = host.lower()
        name = name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]
        return None if name in self._hosts else Refusal(403, "Open the page as http://localhost or 127.0.0.1.")


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode()).digest()


def _password_of(header: str) -> str:
    """Of HTTP Basic, with any user name; empty when it is none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
