"""What speedups.c does, for Python; where there was no C compiler at installing, there is none of it.

It cuts a request into spans, and makes the records of spans that consist of what was seen before: it repeats what the
short way has found out, what an attribute became and what follows from a span's shape. So it has no rules of its own.
What it cannot do it leaves to those who do it without. Bounded in memory.
"""

import ctypes
import re
import secrets
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from struct import Struct, pack
from typing import Any, Literal, NamedTuple, cast
from weakref import finalize

from receiver.translate.cut import PLACE, Spans
from receiver.translate.outcome import EXCLUDED_ENDPOINT, NOT_PRODUCT_EVENT, Ignored
from receiver.translate.pieces import Piece
from shared.events import TABLES, Table
from shared.wire import Record

SOURCE, LIBRARY = (Path(__file__).with_name(name) for name in ("speedups.c", "_speedups.so"))

# How many are remembered: powers of two, from 8 on. 40 MiB if all are as long as they may be.
_PIECES = 65_536
_KEYS = 4_096
_PATHS = 8_192
_PLANS = 2_048
_RAW_BYTES_MAX = 256  # of an attribute
_BYTES_MAX = 512  # of it and of what it became
_OUT_BYTES = 256 * 1024  # for the records of one call; what does not fit is left undecided
_ID_CHARS = 36

# A span takes two numbers, and three more if it has a group of its own; but more than 28 bytes, for its ids.
_NUMBERS_A_SPAN = 5
_BODY_BYTES_A_NUMBER = 8
_NUMBERS_SPARE = 16

# As speedups.c has them.
_NUMBER_BYTES, _GROUP = 4, Struct("=III")
_ANSWER, _PIECE, _PLAN, _PART = Struct("=QiIII"), Struct("=QiIIII"), Struct("=iiIIIII"), Struct("=iII")
_NUMBERS = {NOT_PRODUCT_EVENT: -5, EXCLUDED_ENDPOINT: -6}
_IGNORED = {number: ignored for ignored, number in _NUMBERS.items()}
_WANTS: dict[int, Literal["pieces", "texts", "plan"]] = {-2: "pieces", -3: "texts", -4: "plan"}

_NUMBERS_OF_PATH = re.compile(rb"/[0-9]++(?=/|\Z)")


class Want(NamedTuple):
    """What would decide on a span: pieces of attributes, or only their texts; or the plan of its shape."""

    what: Literal["pieces", "texts", "plan"]
    attributes: list[int]


Part = int | str | bytes  # the text of an attribute, by its position; or what stands there in each record


class Plan(NamedTuple):
    """What follows from a shape that gives records."""

    table: str
    is_timed: bool
    endpoint: int | None  # the attribute by which a span may be excluded
    prefix: str
    columns: Sequence[Part]
    metadata: Sequence[Part]
    suffix: str
    owners: Sequence[Part]
    words: Sequence[bytes]  # of the resource, which no owner's id may be


class Speedups:
    """For one thread."""

    def __init__(self, *, span_bytes_max: int, marks: Sequence[bytes]) -> None:
        """Longer spans are left undecided; `marks` are keys, each of 2 to 32 bytes."""
        self._memory = _library.speedups_new(span_bytes_max, _PIECES, _KEYS, _PATHS, _PLANS, secrets.randbits(64))
        if not self._memory:
            raise MemoryError
        finalize(self, _library.speedups_free, self._memory)
        self._out = ctypes.create_string_buffer(_OUT_BYTES)
        sizes = (ctypes.c_size_t * len(marks))(*map(len, marks))
        if not _library.speedups_know_marks(self._memory, b"".join(marks), sizes, len(marks)):
            raise ValueError(marks)

    def marked(self, spans: Spans) -> Spans:
        """Those in which a mark stands, anywhere."""
        marked = ctypes.create_string_buffer(len(spans.places))
        count = _library.speedups_marked(self._memory, spans.body, spans.places, len(spans), marked)
        return Spans(spans.body, ctypes.string_at(marked, count * PLACE.size))

    def records_of(self, spans: Spans, resource: int) -> tuple[list[Record | Ignored | None], dict[int, Want]]:
        """What becomes of spans, where that is decided; and what would decide others, by position."""
        answers = ctypes.create_string_buffer(_ANSWER.size * len(spans))
        taken = _library.speedups_records(
            self._memory, resource, spans.body, spans.places, len(spans), self._out, _OUT_BYTES, answers
        )
        out = ctypes.string_at(self._out, taken)
        made: list[Record | Ignored | None] = []
        wants = {}
        for wanted, verdict, id_at, at, size in _ANSWER.iter_unpack(answers):
            if verdict >= 0:
                made.append(Record(TABLES[verdict], out[id_at : id_at + _ID_CHARS], out[at : at + size]))
                continue
            if verdict in _WANTS:
                wants[len(made)] = Want(_WANTS[verdict], _positions(wanted))
            made.append(_IGNORED.get(verdict))
        return made, wants

    def know(self, raw: bytes, piece: Piece) -> None:
        """Remember an attribute."""
        self._know(_library.speedups_know, raw, piece)

    def know_key(self, key: bytes, piece: Piece) -> None:
        """Remember what scalars of this key become that are not known themselves: they are not read, or not yet."""
        self._know(_library.speedups_know_key, key, piece)

    def know_path(self, raw: bytes, piece: Piece) -> None:
        """Remember a scalar whose value is a path, and all that differ from it in nothing but numbers of segments."""
        key, value = raw[1 : 2 + raw[1]], raw[2 + raw[1] + 4 :]
        self._know(_library.speedups_know_path, key + _NUMBERS_OF_PATH.sub(b"/0", value), piece)

    def know_ignored(self, resource: int, places: Sequence[int], ignored: Ignored) -> None:
        """Remember that nothing comes of attributes with these places in this order."""
        self._know_shape(resource, places, _PLAN.pack(_NUMBERS[ignored], -1, 0, 0, 0, 0, 0))

    def know_plan(self, resource: int, places: Sequence[int], plan: Plan) -> None:
        """Remember what comes of them."""
        self._know_shape(resource, places, _packed_plan(plan))

    def _know(self, remember: Callable[..., None], raw: bytes, piece: Piece) -> None:
        text = b"" if piece.text is None else piece.text.encode()
        packed = _PIECE.pack(
            piece.place.number,
            -1 if piece.text is None else len(text),
            len(piece.own_id),
            piece.own_times,
            piece.is_excluded,
            piece.place.column == "endpoint",
        )
        packed += text + piece.own_id
        if len(raw) <= _RAW_BYTES_MAX and len(raw) + len(packed) <= _BYTES_MAX:
            remember(self._memory, raw, len(raw), packed, len(packed))

    def _know_shape(self, resource: int, places: Sequence[int], packed: bytes) -> None:
        shape = pack(f"={1 + len(places)}Q", resource, *places)
        _library.speedups_know_shape(self._memory, shape, len(shape), packed, len(packed))


def cut(body: bytes, *, spans_max: int, pieces_max: int) -> list[tuple[bytes, Spans]] | None:
    """The resources of an ExportTraceServiceRequest and their spans, without groups that have none.

    None where that is left to others: for bytes that are malformed, odd, or hold more spans or fields than so.
    """
    if _library is None:
        return None
    room = min(len(body) // _BODY_BYTES_A_NUMBER + _NUMBERS_SPARE, _NUMBERS_A_SPAN * spans_max)
    into = ctypes.create_string_buffer(_NUMBER_BYTES * room)
    taken = _library.speedups_cut(body, len(body), spans_max, pieces_max, into, room)
    if taken > room:
        return None
    numbers = ctypes.string_at(into, _NUMBER_BYTES * taken)
    found, at = [], 0
    while at < len(numbers):
        start, size, spans = _GROUP.unpack_from(numbers, at)
        at += _GROUP.size
        end = at + spans * PLACE.size
        found.append((body[start : start + size], Spans(body, numbers[at:end])))
        at = end
    return found


def _positions(bits: int) -> list[int]:
    """Of the ones, from the lowest."""
    found = []
    while bits:
        found.append((bits & -bits).bit_length() - 1)
        bits &= bits - 1
    return found


def _packed_plan(plan: Plan) -> bytes:
    packed, own = [], b""
    for part in (plan.prefix, *plan.columns, *plan.metadata, plan.suffix, *plan.owners, *plan.words):
        if isinstance(part, int):
            packed.append(_PART.pack(part, 0, 0))
        else:
            text = part.encode() if isinstance(part, str) else part
            packed.append(_PART.pack(-1, len(own), len(text)))
            own += text
    counts = [len(each) for each in (plan.columns, plan.metadata, plan.owners, plan.words)]
    endpoint = -1 if plan.endpoint is None else plan.endpoint
    head = _PLAN.pack(TABLES.index(cast("Table", plan.table)), endpoint, plan.is_timed, *counts)
    return b"".join((head, *packed, own))


def _loaded() -> Any:
    """None where it was not compiled, or from another source than stands beside this file."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.speedups_source.restype = ctypes.c_char_p
        if library.speedups_source() != sha256(SOURCE.read_bytes()).hexdigest().encode():
            return None
    except (OSError, AttributeError):
        return None
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64
    known = (pointer, pointer, size, pointer, size)
    for name, result, arguments in (
        ("new", pointer, (size, *(number,) * 5)),
        ("free", None, (pointer,)),
        ("know_marks", ctypes.c_bool, (pointer, pointer, pointer, size)),
        ("know", None, known),
        ("know_key", None, known),
        ("know_path", None, known),
        ("know_shape", None, known),
        ("cut", size, (pointer, size, size, size, pointer, size)),
        ("marked", size, (pointer, pointer, pointer, size, pointer)),
        ("records", size, (pointer, number, pointer, pointer, size, pointer, size, pointer)),
    ):
        function = getattr(library, f"speedups_{name}")  # the same object each time
        function.restype, function.argtypes = result, arguments
    return library


_library = _loaded()


def are_there() -> bool:
    return _library is not None


def new(*, span_bytes_max: int, marks: Sequence[bytes]) -> Speedups | None:
    return Speedups(span_bytes_max=span_bytes_max, marks=marks) if are_there() else None
