"""What repeats the short way: that it is there, that it decides, that it is never wrong, and that it forgets."""

import random
import shutil
import struct
from itertools import chain, permutations
from pathlib import Path
from typing import Any

import pytest

from receiver.decode.spans import ResourceSpans
from receiver.translate import speedups
from receiver.translate.cut import Spans
from receiver.translate.fast_path import PlainResource
from receiver.translate.outcome import Ignored
from receiver.translate.pieces import Piece, Place
from receiver.translate.records import Records
from receiver.translate.reference import read_resource, translate
from receiver.translate.rules import Rules
from shared.wire import Record
from support.encoding import CLIENT, LOGIN, PLAIN, SERVER, as_served, field, key_value, rules, span_bytes
from support.repeated import FEATURE, HTTP, RESOURCE, STRANGE, damaged

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: there are no speedups here")


class Ways:
    """Spans of one resource by the long way, and by speedups once they were told."""

    def __init__(self, resource: bytes = RESOURCE, by: Rules = PLAIN) -> None:
        self.resource, self.by = resource, by
        self.records = Records(by)
        self.fast = self.records._fast
        plain = self.fast.resource(resource)
        assert plain is not None
        self.plain: PlainResource = plain

    def served(self, *raws: bytes) -> list[Any]:
        return [*chain.from_iterable(self.records.of(ResourceSpans(self.resource, list(raws))))]

    def tell(self, *raws: bytes) -> None:
        for _ in range(4):
            self.served(*raws)

    def decided(self, *raws: bytes) -> list[Record | Ignored | None]:
        assert self.fast.speedups
        made, _ = self.fast.speedups.records_of(Spans.of(raws), self.plain.number)
        return made

    def expected(self, raw: bytes) -> Any:
        return as_served(translate(raw, read_resource(self.resource, self.by), self.by))


@pytest.mark.parametrize("library", [b"", b"no library", None])
def test_without_a_library_that_fits_there_are_none(
    library: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a pull without an install, say: its memory would be read by other rules."""
    if library is None:
        source = tmp_path / "speedups.c"
        source.write_bytes(speedups.SOURCE.read_bytes() + b"\n")
        monkeypatch.setattr(speedups, "SOURCE", source)
    else:
        (tmp_path / "library.so").write_bytes(library)
        monkeypatch.setattr(speedups, "LIBRARY", tmp_path / "library.so")
    assert speedups._loaded() is None
    monkeypatch.setattr(speedups, "_library", None)
    raw, ways = span_bytes(LOGIN), Ways()
    assert ways.fast.speedups is None
    assert ways.served(raw, raw) == [ways.expected(raw)] * 2


def test_where_there_is_a_compiler_there_are_speedups() -> None:
    """Else all that follows would be about nothing, and the receiver slow."""
    assert speedups.are_there()


@pytest.mark.parametrize("by", [PLAIN, rules(infer_events=False)])
def test_a_deciding_key_is_found_wherever_it_stands(by: Rules) -> None:
    """A span without one is passed over; with one that was not found, an event would be lost."""
    ways, generator = Ways(by=by), random.Random(6)
    keys = [b"event.category", b"feature.name", b"http.request.method", b"http.method", b"rpc.method"]
    near = [key[:-1] + b"x" for key in keys] + [key[1:] for key in keys] + [b"http.request.metho", b".", b"d", b""]
    raws = [
        generator.randbytes(generator.randrange(40)) + generator.choice(keys + near) + generator.choice(near + keys)
        for _ in range(3_000)
    ]
    raws += [b"." * before + key + b"e" * after for key in keys for before in range(30) for after in range(3)]
    raws += [half for key in keys for half in (key[:5], key[5:])]  # beside each other in the body
    marked = ways.fast.marked(Spans.of(raws))
    assert [*marked] == [raw for raw in raws if by.is_marked(raw)]
    assert 100 < len(marked) < len(raws) - 100
    for marks in permutations(by.deciding_keys):
        assert [*speedups.Speedups(span_bytes_max=1_000, marks=marks).marked(Spans.of(raws))] == [*marked]


def test_marks_that_it_cannot_search_for_are_refused() -> None:
    """Taken in part, spans that hold the others would be lost."""
    for marks in ([], [b"a.key"] * 5, [b"x"], [b"x" * 33]):
        with pytest.raises(ValueError, match=r"^\["):
            speedups.new(span_bytes_max=1_000, marks=marks)


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [(LOGIN, CLIENT), (HTTP, SERVER), (FEATURE, CLIENT), (HTTP, CLIENT), ({**HTTP, "url.path": "/healthz"}, SERVER)],
)
def test_what_was_told_is_repeated(attributes: dict[str, Any], kind: int) -> None:
    """With other ids and times, which are all that no two spans share."""
    ways, generator = Ways(), random.Random(1)
    ways.tell(span_bytes(attributes, kind=kind))
    for _ in range(200):
        start_ns = generator.randrange(2**64)
        raw = span_bytes(
            attributes,
            kind=kind,
            trace_id=generator.randbytes(16),
            span_id=generator.randbytes(8),
            start_ns=start_ns,
            end_ns=min(2**64 - 1, start_ns + round(10 ** generator.uniform(2, 14))),
        )
        assert ways.decided(raw) == [ways.expected(raw)]


@pytest.mark.parametrize("duration_ns", [-(10**18), -1, 0, 100, 999, 1_000_000, 1_500_000, 10**9, 10**15 - 1])
def test_a_duration_reads_as_it_does_elsewhere(duration_ns: int) -> None:
    ways, start_ns = Ways(), 10**18
    ways.tell(span_bytes(HTTP, kind=SERVER))
    raw = span_bytes(HTTP, kind=SERVER, start_ns=start_ns, end_ns=start_ns + duration_ns)
    assert ways.decided(raw) == [ways.expected(raw)]


@pytest.mark.parametrize(
    "raw",
    [
        span_bytes(HTTP, kind=SERVER, start_ns=10**18, end_ns=10**18 + 99),  # in other digits
        span_bytes(HTTP, kind=SERVER, start_ns=10**18, end_ns=10**18 + 10**15),
        span_bytes(HTTP, kind=SERVER, trace_id=bytes(16)),
        span_bytes(HTTP, kind=SERVER, span_id=b"short"),
        span_bytes({**HTTP, "url.path": "/user-17"}, kind=SERVER),  # the owner's id
        span_bytes({**HTTP, "metadata.note": "user-17"}, kind=SERVER),
        span_bytes({**HTTP, "user.id": "shop"}, kind=SERVER),  # the resource says it
        span_bytes([*HTTP.items(), *((f"k{number}", 1) for number in range(60))], kind=SERVER),
        span_bytes({**HTTP, "metadata.note": "x" * 260}, kind=SERVER),  # too long to be remembered
        span_bytes({**HTTP, "metadata.note": "x" * 235}, kind=SERVER),  # together with what it becomes
        span_bytes(HTTP, kind=SERVER, more=b"\x0b\x0c"),  # a group
        span_bytes(HTTP, kind=SERVER, more=b"\x08\x01"),  # a trace id that is a number
        span_bytes(HTTP, kind=SERVER, more=b"\x00"),
        span_bytes(HTTP, kind=SERVER, more=b"\xe0\xde\xfc\xe6\x33\x01"),  # a tag of more than 32 bits
        span_bytes(HTTP, kind=SERVER)[:-1],
    ],
)
def test_what_is_in_doubt_is_left_to_others(raw: bytes) -> None:
    """They may find that it is nothing special, or that it is somebody's secret."""
    ways = Ways()
    ways.tell(span_bytes(HTTP, kind=SERVER), raw)
    assert ways.decided(raw) == [None]


def test_a_span_of_known_parts_may_be_too_large_all_the_same() -> None:
    """The limit is one of the whole."""
    short, long = "x" * 10, "y" * 90
    raws = [span_bytes({**LOGIN, "metadata.a": a, "metadata.b": b}) for a in (short, long) for b in (short, long)]
    ways = Ways(by=rules(span_bytes_max=len(raws[3]) - 1))
    ways.tell(*raws)
    assert ways.decided(*raws) == [*map(ways.expected, raws[:3]), None]


@pytest.mark.parametrize("attribute", STRANGE)
def test_what_is_not_read_has_to_be_well_formed_all_the_same(attribute: bytes) -> None:
    """With a route the path is not needed, and known by its key alone; and a malformed span is rejected."""
    ways, routed = Ways(), {"http.route": "/a", "http.request.method": "GET"}

    def with_path(attribute: bytes) -> bytes:
        return span_bytes(routed, kind=SERVER, more=field(9, attribute))

    for value in ("/a", 5, 0.5):
        ways.tell(with_path(key_value("url.path", value)))
        [made] = ways.decided(with_path(key_value("url.path", value)))
        assert isinstance(made, Record)
    raw = with_path(attribute)
    assert ways.decided(raw) == [None]
    for _ in range(4):
        assert ways.served(raw) == [ways.expected(raw)]


def test_paths_that_differ_in_numbers_are_one() -> None:
    """Of senders without routes each path is new."""
    ways = Ways()
    for path in ("/a/1/b/23", "/a/0x/b/8"):
        ways.tell(span_bytes({**HTTP, "url.path": path}, kind=SERVER))

    def decided(path: str) -> Record | Ignored | None:
        raw = span_bytes({**HTTP, "url.path": path}, kind=SERVER)
        [made] = ways.decided(raw)
        assert made in (None, ways.expected(raw))
        return made

    assert isinstance(decided("/a/4567/b/8"), Record)
    for other in ("/a/b/b/8", "/a/4/b/8/", "/a/4/c/8", "/a/4x/b/8", "/a//b/8", "a/4/b/8", "/a/4/b", "/a/4/b/8?c"):
        assert decided(other) is None


def test_a_path_out_of_order_stands_for_no_other() -> None:
    """Value before key: read as if it were the other way around, it would be the path of somebody else."""
    ways = Ways()
    key, value = field(1, b"url.path"), field(2, field(1, b"/secret/1"))
    others = [("http.request.method", "GET"), ("user.id", "user-17")]
    strange = span_bytes(others, kind=SERVER, more=field(9, value + key))
    ways.tell(span_bytes([*others, ("url.path", "/orders/1")], kind=SERVER), strange)
    for path in ("/orders/2", "/secret/2"):
        raw = span_bytes([*others, ("url.path", path)], kind=SERVER)
        assert ways.decided(raw)[0] in (None, ways.expected(raw))


def test_a_number_is_no_path() -> None:
    """Its bytes may say one."""
    ways = Ways()
    ways.tell(span_bytes({**HTTP, "url.path": "/a/1/bc"}, kind=SERVER))
    [number] = struct.unpack("<d", b"?/a/2/bc")
    raw = span_bytes({**HTTP, "url.path": number}, kind=SERVER)
    assert ways.decided(raw) == [None]
    assert ways.served(raw) == [ways.expected(raw)]


def test_what_does_not_fit_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of one call have so much room."""
    monkeypatch.setattr(speedups, "_OUT_BYTES", 700)
    ways, raw = Ways(), span_bytes(LOGIN)
    ways.tell(raw)
    record = ways.expected(raw)
    made = ways.decided(*[raw] * 5)
    fit = 700 // len(record.value)
    assert made == [record] * fit + [None] * (5 - fit)
    assert ways.fast.records_of([raw] * 5, ways.plain) == [record] * 5


def test_numbers_do_not_run_out() -> None:
    """Each key that nobody has sent before takes one; a hostile sender can think of a billion within a day."""
    ways, raw = Ways(), span_bytes({**LOGIN, "metadata.late": "x"})
    ways.fast.pieces._places[b"metadata.late"] = Place("event_metadata", name="late", number=2**40)
    ways.tell(raw)
    assert ways.decided(raw) == [ways.expected(raw)]


def test_it_forgets_what_is_not_asked_for_and_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders with a new value in each span: a few places are shared by a thousand."""
    for name in ("_PIECES", "_KEYS", "_PATHS", "_PLANS"):
        monkeypatch.setattr(speedups, name, 64)
    ways, generator = Ways(), random.Random(2)
    for number in range(1_000):
        raws = [
            span_bytes({**LOGIN, "user.id": f"user-{generator.randrange(300)}", "metadata.n": number % 50}),
            span_bytes({**HTTP, f"k{generator.randrange(30)}": "x", "url.path": f"/a{number % 30}/5"}, kind=SERVER),
            span_bytes(LOGIN),
        ]
        assert ways.served(*raws) == [ways.expected(raw) for raw in raws]


def test_what_is_asked_for_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a stream of new values would wash out the few that every span has."""
    monkeypatch.setattr(speedups, "_PIECES", 64)
    monkeypatch.setattr("secrets.randbits", lambda _: 1)  # the same places in each run
    ways, raw = Ways(), span_bytes(LOGIN)
    ways.tell(raw)
    expected = [ways.expected(raw)]
    assert ways.fast.speedups
    for number in range(2_000):
        ways.fast.speedups.know(key_value("k", f"{number}"), Piece(Place("event_metadata"), "x"))
        assert ways.decided(raw) == expected


@pytest.mark.parametrize("by", [PLAIN, rules(infer_events=False), rules(span_bytes_max=150, span_attributes_max=8)])
def test_damaged_spans_are_as_by_the_long_way(by: Rules) -> None:
    """Each is told, and asked for again."""
    ways = Ways(by=by)
    for raw in damaged(3, 500):
        for _ in range(4):
            assert ways.served(raw) == [ways.expected(raw)]
