"""Real requests, mutated: every span has a fate, every translation the same one, and neighbours stay as they are."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import receiver.translate.engines.reading
from receiver.decode.spans import MalformedRequest, TooManySpans, read_request
from receiver.translate.engines.engine import Engine, Reference
from receiver.translate.engines.explain import explain_file
from receiver.translate.engines.reference import read_resource, translate
from receiver.translate.outcome import IGNORE_REASONS, REJECT_REASONS, Ignored, Outcome, Rejected
from receiver.translate.rules import Rules
from shared.identity import Hasher
from shared.wire import decode, encode
from support.encoding import LOGIN, PLAIN, SPAN_ID, request_bytes, rules, span_bytes, traces_of
from support.engines import answers_by, engines
from support.golden import FOLDER, SENDERS, sent_by
from support.mutation import Mutator, spans_of
from support.otlp import event_id

SEEDS = [path.read_bytes() for path in sorted(FOLDER.glob("*.bin"))] + [sent_by(sender) for sender in SENDERS]
REAL_SPANS = [pair for body in SEEDS for pair in spans_of(body)]
# Spans a case are few, so that a limit is met by some.
SMALL = rules(span_bytes_max=600, span_attributes_max=12)
RULES = [
    PLAIN,
    PLAIN,
    SMALL,
    rules(hashed=Hasher("prehashed"), infer_events=False, metadata_attributes=("*.version", "metadata.*")),
]
SPANS_MAX = 50

# What becomes of a request, span by span: a record's value, or a reason. A request that is refused has one fate.
Fate = bytes | str
Translation = Callable[[bytes, Rules], list[Any]]


def reference(body: bytes, by: Rules) -> list[Fate]:
    """Span by span, which the others are held against."""
    try:
        groups = read_request(body, spans_max=SPANS_MAX)
    except (MalformedRequest, TooManySpans) as refusal:
        return [type(refusal).__name__]
    traces = traces_of(groups, by)
    return [
        fate_of(translate(span, read_resource(group.resource, by), by, traces=traces))
        for group in groups
        for span in group.spans
    ]


def served(engine: Engine, body: bytes) -> tuple[list[bytes], Counter[str]]:
    """Records in order, and reasons, as the service has them."""
    try:
        answers = answers_by(engine, body)
    except (MalformedRequest, TooManySpans) as refusal:
        return [], Counter([type(refusal).__name__])
    return [value for _, value in answers.records], answers.ignored + answers.rejected


def explained(body: bytes, by: Rules) -> list[Any]:
    """As `explain` tells it; values as JSON."""
    try:
        told = explain_file(body, by, spans_max=SPANS_MAX)
    except (MalformedRequest, TooManySpans) as refusal:
        return [type(refusal).__name__]
    return [one.reason or value_of(one.table, one.columns) for one in told]


def agree(body: bytes, by: Rules, *, is_explained: bool) -> None:
    """Every way from bytes to fates leads to the same ones. Another one goes in here."""
    expected = reference(body, by)
    values = [fate for fate in expected if isinstance(fate, bytes)]
    reasons = Counter(fate for fate in expected if isinstance(fate, str))
    for engine in engines(by, SPANS_MAX):
        assert served(engine, body) == (values, reasons), engine.name
    if is_explained:
        assert explained(body, by) == [json.loads(fate) if isinstance(fate, bytes) else fate for fate in expected]


def fate_of(outcome: Outcome) -> Fate:
    """Checked on the way: of a closed set, and a record that the consumer reads back as it was."""
    match outcome:
        case Ignored(reason):
            assert reason in IGNORE_REASONS
            return reason
        case Rejected(reason, fault):
            assert reason in REJECT_REASONS
            assert not fault or IS_BROKEN, fault
            return reason
        case event:
            record = encode(event)
            assert decode(record.value) == event
            assert b"\\u0000" not in record.value
            return record.value


def value_of(table: str | None, columns: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in columns.items() if value is not None}
    timestamp, id_ = datetime.fromisoformat(rest.pop("timestamp")), rest.pop("id")
    since = timestamp - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    timestamp_us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return {"schema_version": 2, "table": table, "id": id_, "timestamp_us": timestamp_us, **rest}


IS_BROKEN: set[str] = set()  # names the fault that a test has put in
GOOD_TRACE = bytes(range(16))  # a trace of its own: ids on other spans of a trace count
GOOD = span_bytes({**LOGIN, "metadata.note": "neighbour"}, trace_id=GOOD_TRACE)
GOOD_VALUE = {
    "schema_version": 2,
    "table": "user_activity",
    "id": str(event_id(GOOD_TRACE, SPAN_ID)),
    "timestamp_us": 1_795_460_000_123_456,
    "deployment_type": "self-hosted",
    "trace_id": "00010203-0405-0607-0809-0a0b0c0d0e0f",
    "weight": 1.0,
    "user_id": "73475cb40a568e8d",
    "event_type": "login",
    "event_metadata": {"note": "neighbour"},
}


@dataclass
class Found:
    """What a run came upon."""

    cases: int = 0
    spans: int = 0
    fates: Counter[str] = field(default_factory=Counter)

    def add(self, fates: list[Fate]) -> None:
        self.spans += len(fates)
        self.fates.update("event" if isinstance(fate, bytes) else fate for fate in fates)


def cases(seed: int, cpu_s: float) -> Iterator[tuple[int, random.Random]]:
    """Numbered cases, each with a random source of its own, until so much CPU time is used."""
    ends_at = time.process_time() + cpu_s
    number = 0
    while number % 64 or time.process_time() < ends_at:
        yield number, random.Random(f"{seed}/{number}")
        number += 1


def run(seed: int, cpu_s: float) -> Found:
    found = Found()
    for number, random_ in cases(seed, cpu_s):
        body = b""
        by = random_.choice(RULES)
        try:
            if number % 4:
                body, fates = spans_case(random_, by)
            else:
                body, fates = request_case(random_, by)
            agree(body, by, is_explained=number % 10 == 1)
        except Exception as error:
            raise AssertionError(f"case {number} of seed {seed}, rules {RULES.index(by)}: {body.hex()}") from error
        found.cases += 1
        found.add(fates)
    return found


def spans_case(random_: random.Random, by: Rules) -> tuple[bytes, list[Fate]]:
    """Spoilt spans, and perhaps a spoilt resource, between two good spans of a resource of their own."""
    mutator = Mutator(random_)
    resource, _ = random_.choice(REAL_SPANS)
    if random_.random() < 1 / 6:
        resource = mutator.resource(resource)
    spoilt = [mutator.span(random_.choice(REAL_SPANS)[1]) for _ in range(random_.randint(1, 3))]
    body = request_bytes((b"", [GOOD]), (resource, spoilt), (b"", [GOOD]))
    first, *fates, last = reference(body, by)
    assert json.loads(first) == json.loads(last) == GOOD_VALUE
    assert len(fates) == len(spoilt)
    if by is PLAIN:
        for raw in spoilt:  # alone, for both: ids on its neighbours count otherwise
            alone = fate_of(translate(raw, read_resource(resource, PLAIN), PLAIN))
            assert fate_as_published(raw, resource) in (None, alone)
    return body, fates


def request_case(random_: random.Random, by: Rules) -> tuple[bytes, list[Fate]]:
    """A request spoilt in any place: refused as a whole, or read span by span."""
    body = Mutator(random_).request(random_.choice(SEEDS))
    return body, reference(body, by)


def fate_as_published(raw: bytes, resource: bytes) -> Fate | None:
    """The fate of what the published protobuf class makes of the same bytes, where it reads them at all."""
    try:
        again = Span.FromString(raw).SerializeToString()
    except DecodeError:
        return None
    return fate_of(translate(again, read_resource(resource, PLAIN), PLAIN))


REACHED_BY_FAULT = {"internal"}
NOT_OF_A_SPAN = {"telemetry_disabled"}  # a setting: tests/integration/test_receiver_replies.py


def check(found: Found) -> None:
    fates = found.fates
    assert fates["event"] > found.spans / 5, fates
    reasons = {*REJECT_REASONS, *IGNORE_REASONS} - REACHED_BY_FAULT - NOT_OF_A_SPAN
    assert reasons | {"event", "MalformedRequest"} <= set(fates), reasons - set(fates)


def test_whatever_is_wrong_with_a_request_every_span_has_one_fate() -> None:
    """Anybody who has a key may send anything, and most of what is sent in error is nearly right."""
    check(run(seed=1, cpu_s=15))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_minutes_of_wrong_requests() -> None:
    """The same for ten minutes of CPU time, and other requests each time."""
    seed = random.SystemRandom().randrange(2**32)
    found = run(seed, cpu_s=600)
    print(f"seed {seed}: {found}")  # noqa: T201  the figure for the note
    check(found)


def test_a_failure_of_ours_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that no bytes can reach."""
    body = next(one for pair in REAL_SPANS if isinstance(reference(one := only(*pair), PLAIN)[0], bytes))

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    IS_BROKEN.add("event_metadata")
    try:
        monkeypatch.setattr(receiver.translate.engines.reading, "event_metadata", broken)
        assert reference(body, PLAIN) == explained(body, PLAIN) == ["internal"]
        assert served(Reference(rules(), spans_max=SPANS_MAX), body) == ([], Counter(["internal"]))
    finally:
        IS_BROKEN.clear()


def only(resource: bytes, span: bytes) -> bytes:
    return request_bytes((resource, [span]))
