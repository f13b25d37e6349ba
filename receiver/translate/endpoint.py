"""route or URL -> endpoint template: no host, no query, no ids. Pure.

Some clients put raw paths into `http.route`, so every segment is judged, whichever attribute it comes from.
"""

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from receiver.translate.mapping import Form
from receiver.translate.redaction.normal import normal_form
from receiver.translate.redaction.own_ids import OwnIds
from receiver.translate.redaction.privacy import JUDGED_CHARS_MAX, is_address, secret_in
from receiver.translate.routes import Piece, has_parameter, pieces_of

ID = "{id}"
COLUMN_CHARS = 255

# A route is read up to here: parameters shrink, and 255 characters are stored.
_ROUTE_CHARS_MAX = 4096
_WILDCARDS = frozenset({"*", "**", "/*", "/**"})
_NAMED_BY_METHOD = re.compile(r"[A-Z]{1,32} (/\S*)")


def endpoint_of(text: str, form: Form, *, own_ids: OwnIds) -> str:
    """The template. It may be longer than its column; only the part beyond the column is not judged."""
    if form is Form.ROUTE:
        return _route_template(path_of(text[:_ROUTE_CHARS_MAX], form), own_ids)
    path = path_of(text[:JUDGED_CHARS_MAX], form)
    return "/".join(_segment_template(segment, own_ids) for segment in _segments(_without_own(path, own_ids)))


def route_named_by(span_name: str, *, own_ids: OwnIds) -> str | None:
    """The path of a name `METHOD /path` that has a parameter, or no segment that looks like an id; else None."""
    found = _NAMED_BY_METHOD.fullmatch(span_name[:_ROUTE_CHARS_MAX])
    if found is None:
        return None
    route = found[1]
    is_template = has_parameter(route) or ID not in _route_template(path_of(route, Form.ROUTE), own_ids)
    return route if is_template else None


def path_of(text: str, form: Form) -> str:
    """The path alone: no scheme, host, user info, query or fragment; `/` when it is empty."""
    if form is Form.URL or (form is Form.TARGET and not text.startswith("/")):
        text = text[_ORIGIN.match(text).end() :]  # type: ignore[union-attr]  # it matches everything
    elif absolute := _ABSOLUTE.match(text):
        text = text[absolute.end() :]
    path = text.partition("#")[0]
    if form is Form.ROUTE:
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


def _segments(path: str) -> list[str]:
    """Split a path into segments without their parameters. Segments after the 256th are beyond the column."""
    return [part.partition(";")[0] for part in path.split("/", COLUMN_CHARS + 1)[: COLUMN_CHARS + 1]]


def _without_own(path: str, own_ids: OwnIds) -> str:
    """Replace own ids that hold a slash, because they span more than one segment."""
    for raw in own_ids:
        if "/" in raw and raw.strip("/"):
            path = path.replace(raw, ID)
    return path


# ---- routes


def _route_template(route: str, own_ids: OwnIds) -> str:
    if route in _WILDCARDS:
        return route
    pieces = pieces_of(_without_own(route, own_ids))
    path = "/".join(_joined(segment, own_ids) for segment in _by_segment(pieces))
    return "/" + path.strip("/")


def _by_segment(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    segment: list[Piece] = []
    for piece in pieces:
        if piece.is_parameter:
            segment.append(piece)
            continue
        first, *others = piece.text.split("/")
        segment.append(Piece(first, is_parameter=False))
        for text in others:
            yield segment
            segment = [Piece(text, is_parameter=False)]
    yield segment


def _joined(segment: list[Piece], own_ids: OwnIds) -> str:
    """One segment of a route; `{id}` when a literal of it, or a parameter's name, is an id itself."""
    parts = []
    for text, is_parameter in segment:
        literal = text if is_parameter else text.partition(";")[0]
        if is_parameter and (_names_somebody(text, own_ids) or _HEX_OR_UUID.fullmatch(text)):
            return ID
        if not is_parameter and _segment_template(literal, own_ids) != literal:
            return ID
        parts.append(f"{{{literal}}}" if is_parameter else literal)
    return "".join(parts)


# ---- segments


def _segment_template(segment: str, own_ids: OwnIds) -> str:
    if not segment:
        return segment
    if segment.isdigit():
        return ID
    if _names_somebody(segment, own_ids):
        return ID
    plain = normal_form(segment)
    bare = plain.strip("{}<>")
    if _PLACEHOLDER.fullmatch(segment) and not _HEX_OR_UUID.fullmatch(bare):
        return segment
    return ID if _is_id(bare) else segment


def _names_somebody(text: str, own_ids: OwnIds) -> bool:
    return own_ids.hash_of(text) is not None or secret_in(text) is not None


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
    """Whether letters and digits mix as in a token. `claude-3-5-sonnet-20241022` is a name, no token."""
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
