"""OTLP in a file -> what each span would become, and why. Pure: the reference's translation, with all notes kept."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypedDict

from receiver.decode import json_request
from receiver.decode.spans import MalformedRequest, ResourceSpans, read_request
from receiver.translate.attributes import Notes, Origin
from receiver.translate.engines.reference import Resource, read_resource, translate
from receiver.translate.identity import Traces
from receiver.translate.keys import read_key
from receiver.translate.mapping import METADATA_PREFIX
from receiver.translate.metadata import candidates
from receiver.translate.outcome import Ignored, Outcome, Rejected
from receiver.translate.rules import Rules
from shared.events import BaseEvent

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Note(TypedDict):
    name: str
    rule: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of one span. It holds hashes, never raw ids, and no value that was dropped or redacted."""

    outcome: Literal["event", "ignored", "rejected"]
    reason: str | None = None
    table: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    dropped: list[Note] = field(default_factory=list)
    redacted: list[Note] = field(default_factory=list)
    cut: list[Note] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def explain_file(content: bytes, rules: Rules, *, spans_max: int = 100_000) -> list[Explanation]:
    """Every span of the requests in a file, in order.

    The file holds OTLP JSON when its first byte is `{` (one request, or several one after the other), and
    else one binary ExportTraceServiceRequest.

    Raises:
        MalformedRequest: it holds neither.
        TooManySpans: more than `spans_max` spans in one request.
    """
    bodies = _bodies_of_json(content) if content[:1] == b"{" else [content]
    return [told for body in bodies for told in _explain_request(read_request(body, spans_max=spans_max), rules)]


def _explain_request(groups: list[ResourceSpans], rules: Rules) -> Iterator[Explanation]:
    traces = Traces(rules)
    for _ in traces.read(groups):
        pass
    for group in groups:
        resource = read_resource(group.resource, rules)
        for span in group.spans:
            yield _explain(span, resource, traces, rules)


def _bodies_of_json(content: bytes) -> list[bytes]:
    try:
        return [_body_of(document) for document in _documents(content.decode())]
    except (ValueError, RecursionError):
        raise MalformedRequest("not OTLP JSON") from None  # the error would repeat the file


def _documents(text: str) -> list[Any]:
    decoder = json.JSONDecoder()
    documents, rest = [], text.strip()
    position = 0
    while position < len(rest):
        document, end = decoder.raw_decode(rest, position)
        documents.append(document)
        position = end + len(rest[end:]) - len(rest[end:].lstrip())
    return documents


def _body_of(document: Any) -> bytes:
    steps = json_request.written(document)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return bytes(end.value)


class _Recorder(Notes):
    """Keeps every note once, in the order of the first time."""

    __slots__ = ("cut_by", "dropped_by", "redacted_by", "sources")

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, tuple[str, bytes]] = {}
        self.dropped_by: dict[tuple[bytes, str], None] = {}
        self.redacted_by: dict[tuple[str, str], None] = {}
        self.cut_by: dict[tuple[str, str], None] = {}

    def source(self, column: str, origin: str, key: bytes = b"") -> None:
        self.sources[column] = origin, key

    def kept(self, name: str, origin: Origin, key: bytes) -> None:
        self.sources[f"event_metadata.{name}"] = origin, key

    def dropped(self, key: bytes, rule: str) -> None:
        self.dropped_by[key, rule] = None

    def redacted(self, place: str, rule: str) -> None:
        self.redacted_by[place, rule] = None

    def cut(self, place: str, rule: str) -> None:
        super().cut(place, rule)
        self.cut_by[place, rule] = None

    def shown(self, key: bytes) -> str:
        bare = key.removeprefix(METADATA_PREFIX)
        name = read_key(bare).shown
        return METADATA_PREFIX.decode() * (bare != key) + (self.own_ids.hash_of(name) or name)


def _explain(span: bytes, resource: Resource, traces: Traces, rules: Rules) -> Explanation:
    recorder = _Recorder()
    outcome = translate(span, resource, rules, traces=traces, notes=recorder)
    if not isinstance(outcome, Ignored | Rejected):
        candidates(
            resource.attributes, "resource", rules.allowed, recorder
        )  # once more: what is dropped of it was not noted
    used = {key for _, key in recorder.sources.values()}
    notes = {
        "sources": {
            place: f"{origin} {recorder.shown(key)}".rstrip() for place, (origin, key) in recorder.sources.items()
        },
        "dropped": [
            Note(name=recorder.shown(key), rule=rule)
            for key, rule in recorder.dropped_by
            if not (rule == "not_allowed" and key in used)  # it went into a column
        ],
        "redacted": [Note(name=place, rule=rule) for place, rule in recorder.redacted_by],
        "cut": [Note(name=place, rule=rule) for place, rule in recorder.cut_by],
    }
    return _explained(outcome, notes)


def _explained(outcome: Outcome, notes: dict[str, Any]) -> Explanation:
    match outcome:
        case Ignored(reason):
            return Explanation("ignored", reason=reason, **notes)
        case Rejected(reason):
            return Explanation("rejected", reason=reason, **notes)
        case event:
            return Explanation("event", table=event.table, columns=_columns(event), **notes)


def _columns(event: BaseEvent) -> dict[str, Any]:
    """As the row will have them: `timestamp` in UTC, what is missing null."""
    columns = event.model_dump(mode="json", exclude={"schema_version", "table", "timestamp_us"})
    timestamp = _EPOCH + timedelta(microseconds=event.timestamp_us)
    return {"id": columns.pop("id"), "timestamp": timestamp.isoformat(timespec="microseconds"), **columns}
