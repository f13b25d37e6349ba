r"""a framework's route -> one spelling: `{name}` for a parameter, a leading slash and no trailing one. Pure.

:id  :id?  :id(\d+)  {id}  {id:int}  {id?}  <id>  <int:id>  [id]  (?P<id>[0-9]+)      {id}
{*path}  {path...}  *path  [...path]                                                    {path}
(\d+)  {$}  (.:format)                                                                  {id}, nothing, nothing
users/  ^users/$                                                                         /users
*  /**  /files/*                                                                         as they are
"""

import re
from typing import NamedTuple

_PAIRS = {"(": ")", "{": "}", "[": "]", "<": ">"}
_CLOSING = {close: opening for opening, close in _PAIRS.items()}
# Optional parts: a format is left out, a segment stays.
_OPTIONAL_FORMAT = re.compile(r"\(\.:\w{1,64}\)")
_OPTIONAL_SEGMENT = re.compile(r"\((/:?\w{1,64})\)|\{(/[^{}]{0,255})\}")
_BRACKETS = re.compile(r"\\.|[(){}\[\]<>]", re.DOTALL)
_IS_PATTERN = re.compile(r"\(\?P?<|^\^|\$$|\\Z$")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NAME_OF_GROUP = re.compile(r"\(\?P?<([A-Za-z_]\w{0,63})>")
# A parameter in brackets: perhaps a converter before its name, perhaps a pattern, default or dots behind it.
_BRACED = re.compile(r"\{\**([A-Za-z_][\w-]{0,63})(?:\.\.\.|[?*+]|[:=<].*)?\}", re.DOTALL)
_ANGLED = re.compile(r"<(?:[A-Za-z_]\w{0,63}(?:\([^()<>]{0,64}\))?:)?([A-Za-z_]\w{0,63})(?::.*)?>", re.DOTALL)
_SQUARE = re.compile(r"\[{1,2}(?:\.\.\.)?([A-Za-z_][\w-]{0,63})\]{1,2}")
_COLON_MAY_FOLLOW = frozenset("/-.(")  # in `/{name}:cancel` the colon begins a verb


class Piece(NamedTuple):
    """A run of a route: literal text, or the name of a parameter."""

    text: str
    is_parameter: bool


def pieces_of(route: str) -> list[Piece]:
    """The route as literals and parameters, in order. Linear in its length.

    A parameter without a name of its own is called `id`.
    """
    if _IS_PATTERN.search(route):
        route = _without_anchors(route)
    route = _OPTIONAL_SEGMENT.sub(lambda found: found[1] or found[2], _OPTIONAL_FORMAT.sub("", route))
    ends = _ends(route)
    pieces: list[Piece] = []
    literal_from = at = 0
    while at < len(route):
        found = _parameter_at(route, at, ends)
        if found is None:
            at += 1
            continue
        name, end = found
        if literal_from < at:
            pieces.append(Piece(route[literal_from:at], is_parameter=False))
        if name:
            pieces.append(Piece(name, is_parameter=True))
        literal_from = at = end
    if literal_from < len(route):
        pieces.append(Piece(route[literal_from:], is_parameter=False))
    return pieces


def has_parameter(route: str) -> bool:
    return any(piece.is_parameter for piece in pieces_of(route))


def _ends(route: str) -> dict[int, int]:
    """The closed brackets: position of the opening one -> position behind the closing one."""
    ends: dict[int, int] = {}
    open_at: list[int] = []
    for found in _BRACKETS.finditer(route):
        character = found[0]
        if character in _PAIRS:
            open_at.append(found.start())
        elif character in _CLOSING and open_at and route[open_at[-1]] == _CLOSING[character]:
            ends[open_at.pop()] = found.end()
    return ends


def _parameter_at(route: str, at: int, ends: dict[int, int]) -> tuple[str, int] | None:
    """The name and the end of the parameter that begins at `at`; the name is "" for a part that is left out."""
    character = route[at]
    if character in ":*" and (at == 0 or route[at - 1] in _COLON_MAY_FOLLOW):
        name = _NAME.match(route, at + 1)
        if name is None:
            return None
        end = name.end()
        end = ends.get(end, end) if route[end : end + 1] == "(" else end
        return name[0], end + (route[end : end + 1] in ("?", "+"))
    if character not in _PAIRS or at not in ends:
        return None
    end = ends[at]
    name_ = _bracketed(route[at:end])
    return None if name_ is None else (name_, end + (character == "(" and route[end : end + 1] in ("?", "+", "*")))


def _bracketed(part: str) -> str | None:
    match part[0]:
        case "{":
            if part == "{$}":
                return ""
            found = _BRACED.fullmatch(part)
        case "<":
            found = _ANGLED.fullmatch(part)
        case "[":
            found = _SQUARE.fullmatch(part)
        case _:
            found = _NAME_OF_GROUP.match(part)
            return found[1] if found else "id"
    return found[1] if found else None


def _without_anchors(pattern: str) -> str:
    """A regular expression without its anchors: only slashes and literals."""
    pattern = pattern.removesuffix("$").removesuffix("\\Z").removesuffix("/?")
    return re.sub(r"(?:^|(?<=/))\^", "", pattern).replace("\\/", "/").replace("\\.", ".").replace("\\-", "-")
