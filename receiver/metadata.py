"""attributes -> event_metadata: allowed keys only, without secrets, within bounds. Pure."""

import math
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import translate as glob_pattern
from re import compile as compiled
from typing import Any, NamedTuple

import orjson

from receiver.attributes import AttributeMap, Notes, decoded, kind_of, without_nul
from receiver.memo import remembered
from receiver.otlp import AnyValue, KeyValue, ValueKind
from receiver.privacy import Key, clean, read_key

Json = str | int | float | bool | list["Json"] | dict[str, "Json"] | None

KEYS_MAX = 64
ELEMENTS_MAX = 64
TEXT_CHARS_MAX = 1024
DEPTH_MAX = 4
JSON_BYTES_MAX = 64 * 1024
CUTS_MAX = 64
CUT = "[cut]"
# A byte on the wire becomes at most 6 of JSON (a control character); `[redacted]` for a short secret, `null`
# and quotes are below that. Attributes shorter than this cannot reach JSON_BYTES_MAX.
SAFE_WIRE_BYTES = JSON_BYTES_MAX // 8

_PREFIX = b"metadata."


class Named(NamedTuple):
    """An allowed key: its name in event_metadata, and whether the sender marked it as metadata."""

    key: Key
    is_marked: bool


AllowList = Callable[[bytes], Named | None]


def allow_list(patterns: Sequence[str]) -> AllowList:
    """Which attribute keys `patterns` allow; `*` in a pattern stands for any characters, dots too."""
    allowed = compiled("|".join(glob_pattern(pattern) for pattern in patterns) or "(?!)")

    @remembered(entries=8192, length_max=128)
    def named(raw: bytes) -> Named | None:
        if not allowed.match(decoded(raw)):
            return None
        is_marked = raw.startswith(_PREFIX)
        name = raw.removeprefix(_PREFIX)
        if not name or name.startswith(b"_"):  # nothing to call it; the product's own
            return None
        return Named(read_key(name), is_marked)

    return named


class Candidate(NamedTuple):
    """An allowed attribute, before anyone looked into its value."""

    raw_key: bytes
    named: Named
    kind: ValueKind
    value: AnyValue


def candidates(attributes: AttributeMap, allowed: AllowList, notes: Notes | None = None) -> list[Candidate]:
    found = []
    for raw_key, value in attributes.items():
        named = allowed(raw_key)
        if named is None:
            if notes is not None:
                notes.dropped(raw_key, "not_allowed")
        elif kind := kind_of(value):
            found.append(Candidate(raw_key, named, kind, value))
    return found


def event_metadata(
    of_span: list[Candidate],
    of_resource: list[Candidate],
    *,
    own_ids: Mapping[str, str],
    notes: Notes,
    is_small: bool,
) -> dict[str, Any]:
    """The map to store, with what was cut, columns included, named in `_truncated`.

    `own_ids` holds the span's raw user and organization id with their hashes. `is_small` says that the
    attributes have at most SAFE_WIRE_BYTES, so that the map need not be measured.
    """
    walk = _Walk(own_ids, notes)
    metadata: dict[str, Json] = {}
    json_bytes = 2  # {}
    chosen = _without_collisions(of_span, of_resource, notes)
    is_full = False
    for candidate in chosen:
        key = candidate.named.key
        if _is_dropped(key, candidate.kind):
            notes.dropped(candidate.raw_key, "secret_key")
            continue
        name = own_ids.get(key.shown, key.shown)
        place = f"event_metadata.{name}"
        if is_full or len(metadata) >= KEYS_MAX:
            notes.cut(place, "size" if is_full else "keys")
            continue
        if key.is_cut:
            notes.cut(place, "key_length")
        if key.rule:
            notes.redacted(place, key.rule)
        walk.place = place
        value = walk.value(candidate.kind, candidate.value, key, depth=1)
        if not is_small:
            json_bytes += len(orjson.dumps({name: value})) - 1  # a comma for the two braces
            if json_bytes > JSON_BYTES_MAX:
                is_full = True
                notes.cut(place, "size")
                continue
        metadata[name] = value
        notes.source(place, decoded(candidate.raw_key))
    if notes.cuts:
        metadata["_truncated"] = list[Json](sorted(notes.cuts)[:CUTS_MAX])
    return metadata


def _without_collisions(of_span: list[Candidate], of_resource: list[Candidate], notes: Notes) -> Iterator[Candidate]:
    """One candidate a name: `metadata.x` beats x, then the span beats its resource. The first keeps its place."""
    chosen: dict[str, Candidate] = {}
    for candidate in (*of_span, *of_resource):
        name = candidate.named.key.shown
        rival = chosen.setdefault(name, candidate)
        if rival is not candidate:
            loser = candidate
            if candidate.named.is_marked and not rival.named.is_marked:
                chosen[name], loser = candidate, rival
            notes.dropped(loser.raw_key, "collision")
    return iter(chosen.values())


def _is_dropped(key: Key, kind: ValueKind | None) -> bool:
    if not key.is_secret or kind == "bool_value":
        return False
    return not (key.is_measure and kind in ("int_value", "double_value"))


class _Walk:
    """Down one value: typed JSON of it, secrets out, bounds kept, what was cut noted under `place`."""

    __slots__ = ("notes", "own_ids", "place")

    def __init__(self, own_ids: Mapping[str, str], notes: Notes) -> None:
        self.own_ids = own_ids
        self.notes = notes
        self.place = ""

    def value(self, kind: ValueKind | None, value: AnyValue, key: Key, *, depth: int) -> Json:  # noqa: PLR0911
        match kind:
            case "string_value":
                return self._text(decoded(value.string_value), key)
            case "int_value":
                return value.int_value
            case "bool_value":
                return value.bool_value
            case "double_value":
                return value.double_value if math.isfinite(value.double_value) else None
            case "bytes_value":
                return self._bytes(value.bytes_value, key)
            case "array_value" | "kvlist_value" if depth > DEPTH_MAX:
                self.notes.cut(self.place, "depth")
                return CUT
            case "array_value":
                return self._array(value.array_value.values, key, depth)
            case "kvlist_value":
                return self._map(value.kvlist_value.values, depth)
            case None:
                return None

    def _text(self, text: str, key: Key) -> str:
        if self.own_ids and text in self.own_ids:
            self.notes.redacted(self.place, "own_id")
            return self.own_ids[text]
        cleaned = clean(text, key.addresses)
        if cleaned.lost_query:
            self.notes.cut(self.place, "query")
        if cleaned.rule:
            self.notes.redacted(self.place, cleaned.rule)
        return self._bounded(without_nul(cleaned.text))

    def _bytes(self, raw: bytes, key: Key) -> str:
        """Base64, unless the bytes say something that a text may not say."""
        text = decoded(raw)
        cleaned = clean(text, key.addresses)
        if text in self.own_ids or cleaned.rule or cleaned.lost_query:
            return self._text(text, key)
        return self._bounded(b64encode(raw).decode())

    def _bounded(self, text: str) -> str:
        if len(text) <= TEXT_CHARS_MAX:
            return text
        self.notes.cut(self.place, "length")
        return text[:TEXT_CHARS_MAX]

    def _array(self, values: Sequence[AnyValue], key: Key, depth: int) -> list[Json]:
        if len(values) > ELEMENTS_MAX:
            self.notes.cut(self.place, "elements")
        return [self.value(value.WhichOneof("value"), value, key, depth=depth + 1) for value in values[:ELEMENTS_MAX]]

    def _map(self, pairs: Sequence[KeyValue], depth: int) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for pair in pairs:
            key = read_key(pair.key)
            kind = pair.value.WhichOneof("value")
            if _is_dropped(key, kind):
                self.notes.dropped(pair.key, "secret_key")
                continue
            name = self.own_ids.get(key.shown, key.shown)
            if name in found:
                self.notes.dropped(pair.key, "collision")
                continue
            if len(found) >= KEYS_MAX:
                self.notes.cut(self.place, "keys")
                break
            if key.is_cut:
                self.notes.cut(self.place, "key_length")
            if key.rule:
                self.notes.redacted(self.place, key.rule)
            found[name] = self.value(kind, pair.value, key, depth=depth + 1)
        return found
