"""attributes -> event_metadata: allowed keys only, without secrets, within bounds. Pure."""

import math
from base64 import b64encode
from collections.abc import Iterator, Sequence
from fnmatch import translate as glob_pattern
from functools import lru_cache
from re import compile as compiled
from typing import Any, NamedTuple

import orjson

from receiver.decode.otlp import AnyValue, KeyValue, ValueKind
from receiver.translate.attributes import AttributeMap, Notes, Origin, decoded, kind_of, without_nul
from receiver.translate.keys import Key, read_key
from receiver.translate.mapping import METADATA_PREFIX
from receiver.translate.redaction.normal import may_change
from receiver.translate.redaction.privacy import JUDGED_CHARS_MAX, REDACTED, Cleaned, clean, has_card

Json = str | int | float | bool | list["Json"] | dict[str, "Json"] | None

KEYS_MAX = 64
ELEMENTS_MAX = 64
TEXT_CHARS_MAX = 1024
DEPTH_MAX = 4
JSON_BYTES_MAX = 64 * 1024
CUTS_MAX = 64
# The work on one span, counted in judged characters, takes at most about 50 ms. After half of it only the first part of
# a text is judged, which covers the 1,024 characters that are stored; after all of it no more values are kept.
_WORK_MAX = 512 * 1024
_HEAD_CHARS = 2 * TEXT_CHARS_MAX
_TEXT_WORK = 32  # beside its characters
_NORMAL_FORM_WORK = 8  # a character of a text with escapes costs eight times as much
_KEY_WORK = 128
# A long key is searched to its end for the letters of secret words: 4 MiB of them take 100 ms. So the long keys of
# one span, or of one resource, are read up to this in all, at most about 40 ms; those beyond are dropped unread.
_LONG_KEY_BYTES = 128
KEYS_REMEMBERED = 4096  # keys repeat with every span; values are never remembered
_LONG_KEYS_BYTES_MAX = 128 * 1024
_REMEMBERED_KEY_BYTES = 1024  # the longest, as Python holds it
CUT = "[cut]"


class Named(NamedTuple):
    """An allowed key: its name in event_metadata, and whether the sender marked it as metadata."""

    key: Key
    is_marked: bool


class AllowList:
    """Which attribute keys `patterns` allow; `*` in a pattern stands for any characters, dots too."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._allowed = compiled("|".join(glob_pattern(pattern) for pattern in patterns) or "(?!)")
        self._known = lru_cache(KEYS_REMEMBERED)(self._named)

    def __call__(self, raw: bytes) -> Named | None:
        """The key's name in event_metadata; None when it is not allowed."""
        return (self._known if len(raw) <= _LONG_KEY_BYTES else self._named)(raw)

    @property
    def remembered_bytes(self) -> int:
        return self._known.cache_info().currsize * _REMEMBERED_KEY_BYTES

    def _named(self, raw: bytes) -> Named | None:
        if not self._allowed.match(decoded(raw)):
            return None
        is_marked = raw.startswith(METADATA_PREFIX)
        name = raw.removeprefix(METADATA_PREFIX)
        if not name or name.startswith(b"_"):  # no name, or a name that is reserved for the product
            return None
        return Named(read_key(name), is_marked)


class Candidate(NamedTuple):
    """An allowed attribute whose value is not judged yet."""

    origin: Origin
    raw_key: bytes
    named: Named
    kind: ValueKind
    value: AnyValue


def candidates(attributes: AttributeMap, origin: Origin, allowed: AllowList, notes: Notes) -> list[Candidate]:
    """The allowed attributes, in order; without those whose long keys would take too long to judge."""
    found = []
    room = _LONG_KEYS_BYTES_MAX
    for raw_key, value in attributes.items():
        if len(raw_key) > _LONG_KEY_BYTES:
            room -= len(raw_key)
            if room < 0:
                notes.dropped(raw_key, "key_too_long")
                continue
        named = allowed(raw_key)
        if named is None:
            notes.dropped(raw_key, "not_allowed")
        elif kind := kind_of(value):
            found.append(Candidate(origin, raw_key, named, kind, value))
    return found


def event_metadata(of_span: list[Candidate], of_resource: list[Candidate], *, notes: Notes) -> dict[str, Any]:
    """The map to store. Its key `_truncated` names what was truncated or left out, columns included."""
    metadata: dict[str, Json] = {}
    json_bytes = 1  # two braces, less the comma that the first key has not
    walk = _Walk(notes)
    for candidate in _without_collisions(of_span, of_resource, notes):
        key = candidate.named.key
        if _is_dropped(key, candidate.kind):
            notes.dropped(candidate.raw_key, "secret_key")
            continue
        name = notes.own_ids.hash_of(key.shown) or key.shown
        walk.name = name
        if len(metadata) >= KEYS_MAX or json_bytes > JSON_BYTES_MAX:
            walk.cut("keys" if len(metadata) >= KEYS_MAX else "size")
            continue
        walk.key(key)
        value = walk.value(candidate.kind, candidate.value, key, depth=1)
        json_bytes += len(orjson.dumps({name: value})) - 1  # a comma for the two braces
        if json_bytes > JSON_BYTES_MAX:  # it stays so: all later keys fall out as well
            walk.cut("size")
            continue
        metadata[name] = value
        notes.kept(name, candidate.origin, candidate.raw_key)
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
    """Walks through one attribute: makes JSON of it without secrets and within bounds, and notes what it did."""

    __slots__ = ("_notes", "_own_ids", "_room", "_work", "name")

    def __init__(self, notes: Notes) -> None:
        self.name = ""
        self._notes = notes
        self._own_ids = notes.own_ids
        self._room = JSON_BYTES_MAX  # without it, this attribute will fall out anyway
        self._work = _WORK_MAX

    def cut(self, rule: str) -> None:
        self._notes.cut(f"event_metadata.{self.name}", rule)

    def redacted(self, rule: str) -> None:
        self._notes.redacted(f"event_metadata.{self.name}", rule)

    def key(self, key: Key) -> None:
        if key.is_cut:
            self.cut("key_length")
        if key.rule:
            self.redacted(key.rule)

    def value(self, kind: ValueKind | None, value: AnyValue, key: Key, *, depth: int) -> Json:  # noqa: PLR0911  a type each
        self._room -= 2  # a value and its comma
        if self._room < 0 or self._work < 0:
            self.cut("size")
            return CUT
        match kind:
            case "string_value":
                return self._text(value.string_value, key)
            case "bytes_value":
                return self._bytes(value.bytes_value, key)
            case "array_value" | "kvlist_value" if depth > DEPTH_MAX:
                self.cut("depth")
                return CUT
            case "array_value":
                return self._array(value.array_value.values, key, depth)
            case "kvlist_value":
                return self._map(value.kvlist_value.values, depth)
            case "int_value":
                return self._number(value.int_value)
            case "double_value":
                return self._number(value.double_value) if math.isfinite(value.double_value) else None
            case "bool_value":
                return value.bool_value
            case _:
                return None

    def _number(self, number: float) -> Json:
        """A number to store, unless it equals an own id or is a card number: some senders send these as numbers."""
        hashed = self._own_ids.hash_of_number(number)
        if hashed is not None:
            self.redacted("own_id")
            return hashed
        if has_card(number):
            self.redacted("card_number")
            return REDACTED
        return number

    def _text(self, raw: bytes, key: Key) -> str:
        text = self._judgeable(raw)
        return self._own_hash(text) or self._bounded(self._noted(clean(text, key.addresses)))

    def _bytes(self, raw: bytes, key: Key) -> str:
        """Base64 of the bytes, unless they hold a text that may not be stored."""
        text = self._judgeable(raw)
        cleaned = clean(text, key.addresses)
        if cleaned.rule or cleaned.lost_query:
            return self._bounded(self._noted(cleaned))
        return self._own_hash(text) or self._bounded(b64encode(raw[:TEXT_CHARS_MAX]).decode())

    def _judgeable(self, raw: bytes) -> str:
        chars_max = JUDGED_CHARS_MAX if self._work > _WORK_MAX // 2 else _HEAD_CHARS
        text = decoded(raw[: 4 * chars_max])[:chars_max]
        self._work -= (_NORMAL_FORM_WORK if may_change(text) else 1) * len(text) + _TEXT_WORK
        return text

    def _own_hash(self, text: str) -> str | None:
        hashed = self._own_ids.hash_of(text)
        if hashed is not None:
            self.redacted("own_id")
        return hashed

    def _noted(self, cleaned: Cleaned) -> str:
        if cleaned.lost_query:
            self.cut("query")
        if cleaned.rule:
            self.redacted(cleaned.rule)
        return without_nul(cleaned.text)

    def _bounded(self, text: str) -> str:
        if len(text) > TEXT_CHARS_MAX:
            self.cut("length")
            text = text[:TEXT_CHARS_MAX]
        self._room -= len(text)
        return text

    def _array(self, values: Sequence[AnyValue], key: Key, depth: int) -> list[Json]:
        if len(values) > ELEMENTS_MAX:
            self.cut("elements")
        return [self.value(value.WhichOneof("value"), value, key, depth=depth + 1) for value in values[:ELEMENTS_MAX]]

    def _map(self, pairs: Sequence[KeyValue], depth: int) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for pair in pairs:
            self._work -= (_NORMAL_FORM_WORK if may_change(decoded(pair.key)) else 1) * len(pair.key) + _KEY_WORK
            if self._work < 0:
                self.cut("size")
                break
            key = read_key(pair.key)
            kind = pair.value.WhichOneof("value")
            if _is_dropped(key, kind):
                self._notes.dropped(pair.key, "secret_key")
                continue
            name = self._own_ids.hash_of(key.shown) or key.shown
            if name in found:
                self._notes.dropped(pair.key, "collision")
                continue
            if len(found) >= KEYS_MAX:
                self.cut("keys")
                break
            self.key(key)
            found[name] = self.value(kind, pair.value, key, depth=depth + 1)
        return found
