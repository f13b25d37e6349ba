"""Real requests -> requests gone wrong, field by field and byte by byte. Plain random: a case takes microseconds."""

import random
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from receiver.translate import mapping
from shared.events import TABLES
from support.encoding import Encoded, Text, field, key_value, varint

# Field number -> the shape of the message that it holds; other fields are leaves.
_VALUE: dict[int, Any] = {}
_KEY_VALUE: Mapping[int, Any] = {2: _VALUE}
_VALUE.update({5: {1: _VALUE}, 6: {1: _KEY_VALUE}})
RESOURCE: Mapping[int, Any] = {1: _KEY_VALUE}
SPAN: Mapping[int, Any] = {9: _KEY_VALUE, 11: {3: _KEY_VALUE}, 13: {4: _KEY_VALUE}, 15: {}}
SCOPE_SPANS: Mapping[int, Any] = {1: {}, 2: SPAN}
REQUEST: Mapping[int, Any] = {1: {1: RESOURCE, 2: SCOPE_SPANS}}

VARINT, FIXED64, LENGTH, GROUP_START, GROUP_END, FIXED32 = range(6)


class Field(NamedTuple):
    """One field on the wire. `payload` is without its length."""

    number: int
    wire_type: int
    payload: bytes

    def encoded(self) -> bytes:
        size = varint(len(self.payload)) if self.wire_type == LENGTH else b""
        return varint(self.number << 3 | self.wire_type) + size + self.payload


def read(raw: bytes) -> list[Field]:
    """The fields of a well-formed message without groups."""
    found, position = [], 0
    while position < len(raw):
        tag, position = _read_varint(raw, position)
        match tag & 7:
            case 0:
                end = _read_varint(raw, position)[1]
            case 2:
                size, position = _read_varint(raw, position)
                end = position + size
            case wire_type:
                end = position + {FIXED64: 8, FIXED32: 4}[wire_type]
        found.append(Field(tag >> 3, tag & 7, raw[position:end]))
        position = end
    return found


def _encoded(fields: list[Field]) -> bytes:
    return b"".join(each.encoded() for each in fields)


def _read_varint(raw: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = raw[position]
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, position


def spans_of(body: bytes) -> list[tuple[bytes, bytes]]:
    """(resource, span) of each span."""
    found = []
    for group in read(body):
        fields = read(group.payload)
        resource = b"".join(each.payload for each in fields if each.number == 1)
        scopes = [read(each.payload) for each in fields if each.number == 2]
        found += [(resource, each.payload) for scope in scopes for each in scope if each.number == 2]
    return found


# Every attribute that the mapping names, and some that metadata may hold.
KEYS = [
    *(key.decode() for key in mapping.attributes()),
    "metadata.a",
    "metadata.b.version",
    "metadata._c",
    "metadata.token",
    "metadata.token_count",
    "metadata.service.name",
    "other",
]
_KEYS = [key.encode() for key in KEYS]
_TEXTS = [
    *TABLES,
    "other",
    "LLM",
    "_OTHER",
    "GetUser",
    "GET",
    "get",
    "/a/17",
    "/health",
    "https://h.example/a?b=c",
    "*",
    "42",
    "200",
    "1e3",
    "42abc73475cb40a568e8d",
    "73475cb40a568e8d",
    "bob@example.org",
    "10.0.0.1",
    "::1",
    "4111111111111111",
    "sk-abcdefghijklmnopqr",
    "https://u:p@h/x",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0In0.abc",
    "/a;b/%41%2f{x}:y<z>/claude-3-5-sonnet-20241022",
]
_ECHOES = [
    "health",
    "login",
    "export",
    "orders",
    "projects",
    "google",
    "pro",
    "shop",
    "backend",
    "5f0c2f3e-9c9f",
    "s-9",
]
_ODD_TEXTS = [b"", b" ", b"\t\n", b"\0", b"a\0b", b"\xff", b"caf\xc3", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80" * 70]
_INTS = [0, 1, -1, 42, 200, 999, 1000, 2**31, 2**63 - 1, -(2**63)]
_FLOATS = [0.0, -0.0, 1.5, 1e300, -1.0, float("nan"), float("inf"), float("-inf"), 5e-324]
_TIMES = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 1_795_460_000_123_456_789]


class Mutator:
    """Draws from one random source, so a case is repeated from its seed."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_

    def span(self, raw: bytes) -> bytes:
        """Wrong in one to four places; one in six only by what it says, and one in eight by its bytes."""
        for _ in range(self._random.choice((1, 1, 1, 2, 4))):
            raw = self._step(raw, SPAN)
        return raw

    def resource(self, raw: bytes) -> bytes:
        return self._step(raw, RESOURCE)

    def request(self, raw: bytes) -> bytes:
        """The envelope, too, may be wrong."""
        return self._step(raw, REQUEST)

    def _step(self, raw: bytes, shape: Mapping[int, Any]) -> bytes:
        if self._random.random() < 1 / 8:
            return self.by_byte(raw)
        try:
            return self._by_field(raw, shape)
        except (IndexError, KeyError):  # an earlier step has spoilt it
            return self.by_byte(raw)

    def by_byte(self, raw: bytes) -> bytes:
        found = bytearray(raw)
        at = self._random.randrange(len(raw) + 1)
        match self._random.randrange(6):
            case 0:
                found[at : at + 1] = self._random.randbytes(1)
            case 1:
                del found[at : at + 1]
            case 2:
                found[at:at] = self._random.randbytes(self._random.randint(1, 4))
            case 3:
                del found[at:]
            case 4 if at < len(raw):
                found[at] ^= 1 << self._random.randrange(8)
            case _:
                found += found[at:]
        return bytes(found)

    def _by_field(self, raw: bytes, shape: Mapping[int, Any]) -> bytes:
        fields = read(raw)
        if not fields:
            return raw + self._junk()
        at = self._random.randrange(len(fields))
        chosen = fields[at]
        inner = shape.get(chosen.number) if chosen.wire_type == LENGTH else None
        harm = self._random.random()
        if inner and harm < 0.5:
            fields[at] = chosen._replace(payload=self._by_field(chosen.payload, inner))
        elif (shape is SPAN or shape is RESOURCE) and harm < 0.75:
            number = 9 if shape is SPAN else 1
            attribute = Field(number, LENGTH, self._attribute())
            if chosen.number == number and self._random.random() < 0.5:
                fields[at] = attribute
            else:
                fields.insert(self._random.randrange(len(fields) + 1), attribute)
        else:
            return self._spoilt(fields, at)
        return _encoded(fields)

    def _spoilt(self, fields: list[Field], at: int) -> bytes:
        chosen = fields[at]
        match self._random.randrange(8):
            case 0:
                del fields[at]
            case 1:
                fields.insert(self._random.randrange(len(fields) + 1), chosen)
            case 2:
                self._random.shuffle(fields)
            case 3:
                fields[at] = chosen._replace(payload=self._leaf(chosen))
            case 4:
                fields[at] = chosen._replace(wire_type=self._random.randrange(8))
            case 5:
                fields[at] = chosen._replace(number=self._random.choice((0, 1, 2, 9, 16, 2047, 2**29 - 1)))
            case 6:
                lie = varint(chosen.number << 3 | LENGTH) + varint(self._random.choice((0, 1, 127, 2**31, 2**63)))
                return _encoded(fields[:at]) + lie + _encoded(fields[at:])
            case _:
                return _encoded(fields) + self._junk()
        return _encoded(fields)

    def _leaf(self, of: Field) -> bytes:
        match of.wire_type:
            case 0:
                return varint(self._random.choice(_INTS))
            case 1:
                return struct.pack("<Q", self._random.choice(_TIMES))
            case _:
                texts = [bytes(len(of.payload)), of.payload[:-1], of.payload + b"\0", *_ODD_TEXTS, *_KEYS]
                return self._random.choice(texts)

    def _junk(self) -> bytes:
        """Unknown fields of each wire type, groups that end and that do not, and bytes at random."""
        group = varint(20 << 3 | GROUP_START)
        return self._random.choice(
            (
                field(500, b"x" * 20),
                varint(500 << 3) + varint(2**64 - 1),
                varint(501 << 3 | FIXED32) + b"abcd",
                varint(502 << 3 | FIXED64) + b"abcdefgh",
                group + field(9, b"not a key value") + varint(20 << 3 | GROUP_END),
                group * 3,
                group * 120 + varint(20 << 3 | GROUP_END) * 120,
                varint(20 << 3 | GROUP_END),
                b"\x4a\x80\x80\x00",  # an empty attribute, with a length of three bytes
                b"\xff" * 11,
                self._random.randbytes(self._random.randint(1, 12)),
            )
        )

    def _attribute(self) -> bytes:
        if self._random.random() < 1 / 8:  # an id that the span says elsewhere too
            return key_value(self._random.choice(("user.id", "tenant.id")), self._random.choice(_ECHOES))
        return key_value(self._random.choice(_KEYS), self._value(0))

    def _value(self, depth: int) -> Any:
        match self._random.randrange(12 if depth < 6 else 9):
            case 0 | 1 | 2 | 3:
                return self._random.choice(_TEXTS)
            case 4:
                return Text(self._random.choice(_ODD_TEXTS))
            case 5:
                return self._random.choice((True, False, None))
            case 6:
                return self._random.choice(_INTS)
            case 7:
                return self._random.choice(_FLOATS)
            case 8:
                return self._random.randbytes(self._random.randrange(20))
            case 9:
                return [self._value(depth + 1) for _ in range(self._random.choice((0, 1, 3, 70)))]
            case 10:
                return {
                    self._random.choice(KEYS): self._value(depth + 1) for _ in range(self._random.choice((0, 1, 3)))
                }
            case _:
                nested = b"\x18\x01"
                for _ in range(self._random.choice((3, 5, 40, 120))):
                    nested = field(5, field(1, nested))
                return Encoded(nested)
