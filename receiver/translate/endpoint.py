"""route or URL -> endpoint template: no host, no query, no ids. Pure.

Some clients put raw paths into `http.route`, so every segment is judged wherever it came from.
"""

import re
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address
from typing import Literal
from urllib.parse import unquote

from receiver.translate.memo import remembered
from receiver.translate.privacy import JUDGED_CHARS_MAX, is_address, secret_in

ID = "{id}"
COLUMN_CHARS = 255

Form = Literal["route", "path", "target", "url"]

# The attributes that may name an endpoint, in order, with the form of each.
FORMS: dict[bytes, Form] = {
    b"http.route": "route",
    b"url.path": "path",
    b"http.target": "target",
    b"url.full": "url",
    b"http.url": "url",
}

# Enough to judge a segment of which at most 255 characters are ever stored.
_UNQUOTED_CHARS_MAX = 16_384


def endpoint_of(text: str, form: Form, *, own_ids: Collection[str]) -> str:
    """The template, perhaps longer than its column: only what lies beyond the column is left unjudged.

    `own_ids` are the span's raw user and organization id.
    """
    path = path_of(text[:JUDGED_CHARS_MAX], form)
    # Each segment brings its slash, so what follows the 256th is beyond the column.
    segments = [part.partition(";")[0] for part in path.split("/", COLUMN_CHARS + 1)[: COLUMN_CHARS + 1]]
    if own_ids and ("%" in path or any(own_id in path for own_id in own_ids)):
        return "/".join([_segment_template(segment, own_ids) for segment in segments])
    return "/".join(map(_template_of_any, segments))


def path_of(text: str, form: Form) -> str:
    """The path alone: no scheme, host, user info, query or fragment; `/` when it is empty."""
    if form == "url" or (form == "target" and not text.startswith("/")):
        text = text[_ORIGIN.match(text).end() :]  # type: ignore[union-attr]  # it matches everything
    elif absolute := _ABSOLUTE.match(text):
        text = text[absolute.end() :]
    path = text.partition("#")[0]
    if form == "route":
        query = _ROUTE_QUERY.search(path)  # `/users/:id?` has an optional part, no query
        path = path[: query.start()] if query else path
    else:
        path = path.partition("?")[0]
        if not path.startswith("/"):
            path = "/" + path
    return path or "/"


_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*+://[^/?#]*+")
_ORIGIN = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*+://|//)?+[^/?#]*+")
_ROUTE_QUERY = re.compile(r"\?[\w.~%\[\]-]++=")


@remembered(entries=8192, length_max=64)
def _template_of_any(segment: str) -> str:
    return _segment_template(segment, ())


def _segment_template(segment: str, own_ids: Collection[str]) -> str:
    if not segment:
        return segment
    if segment.isdigit():
        return ID
    plain = unquote(segment[:_UNQUOTED_CHARS_MAX]) if "%" in segment else segment
    if plain in own_ids or secret_in(segment) or (plain is not segment and secret_in(plain)):
        return ID
    bare = plain.strip("{}<>")
    if _PLACEHOLDER.fullmatch(segment) and not _HEX_OR_UUID.fullmatch(bare):
        return segment
    return ID if _is_id(bare) else segment


_PLACEHOLDER = re.compile(r"\{[A-Za-z_*][^{}@]*\}|:[A-Za-z_]\w*\??|<[A-Za-z_][^<>@]*>")


def _is_id(plain: str) -> bool:
    return (
        plain.isdigit()
        or "@" in plain
        or _HEX_OR_UUID.fullmatch(plain) is not None
        or (len(plain) >= 20 and _TOKEN.fullmatch(plain) is not None and _is_mixed(plain))
        or (("." in plain or ":" in plain) and _is_address(plain))
    )


def _is_mixed(plain: str) -> bool:
    """Letters and digits stand together as they do in no name: `claude-3-5-sonnet-20241022` is a name."""
    return len(_TOUCH.findall(plain)) >= 3 or any(
        not run.isdigit() and not run.isalpha() for run in _LONG_RUN.findall(plain)
    )


def _is_address(plain: str) -> bool:
    bare = plain.removeprefix("[").removesuffix("]")
    return is_address(bare, IPv4Address) or is_address(bare, IPv6Address)


_HEX_OR_UUID = re.compile(r"[0-9A-Fa-f]{16,}|[0-9A-Fa-f]{8}-?(?:[0-9A-Fa-f]{4}-?){3}[0-9A-Fa-f]{12}")
_TOKEN = re.compile(r"[A-Za-z0-9._~-]+")
_LONG_RUN = re.compile(r"[A-Za-z0-9]{16,}")
_TOUCH = re.compile(r"(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
