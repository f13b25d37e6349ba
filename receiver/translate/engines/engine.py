"""request bytes -> records, by the native engine if it was built, else by the reference. Does no I/O.

Both engines give the same records, byte for byte. The native engine translates plain spans, and leaves each other span
to the reference.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Protocol
from uuid import UUID

import orjson

from receiver.decode.spans import ResourceSpans, TooManySpans, fields_max, read_request, written_plainly
from receiver.translate import mapping
from receiver.translate.attributes import Notes
from receiver.translate.cardinality import Guard, is_pattern
from receiver.translate.engines.native import mapping_spec, role_of
from receiver.translate.engines.reference import Resource, read_resource, translate
from receiver.translate.engines.traces import TracesOnDemand
from receiver.translate.identity import Traces
from receiver.translate.outcome import NOT_PRODUCT_EVENT, Ignored, Outcome, Rejected
from receiver.translate.rules import Rules
from shared import wire
from shared.engine import EngineName, EngineSetting, native_library
from shared.events import BaseEvent
from shared.wire import BATCH_BYTES_MAX, HEADERS, RECORD_BYTES_MAX, Record

ZSTD_LEVEL = 1  # a third less CPU than level 3 for records of about the same size: docs/performance.md


# Bounds of one step of the reference: three events, a millisecond or two; a single large span may take longer.
_BYTES_A_STEP = 8 * 1024
_EVENT_BYTES = 2048  # added to each event's size, for the cost that does not depend on the size
_IGNORED_BYTES = 64
_RECORD_OVERHEAD_BYTES = 256  # Python's own, around key and value
_TABLE_NAMES = [table.name for table in mapping.TABLES]


class Builder(Protocol):
    """A batch of records for one partition, as aiokafka's `send_batch` takes it."""

    def record_count(self) -> int: ...
    def size(self) -> int: ...


class Translation(Protocol):
    """One request while it is translated. `add` is the only method that hands records to a batch."""

    spans: int
    ignored: Counter[str]  # by reason
    rejected: Counter[str]  # by reason
    faults: Counter[str]  # failures of ours, by type and place
    declined: Counter[str]  # spans that the native engine left to the reference, by reason
    replaced: int  # endpoints that got `{other}`

    @property
    def held_bytes(self) -> int:
        """Memory beside the request's body, in bytes."""

    def step(self, seconds: float) -> bool:
        """Translate for about `seconds`; return whether every span is done."""

    def published(self) -> Counter[str]:
        """Records by table."""

    def partitioned(self, partitions: int) -> list[tuple[int, int]]:
        """(partition, records for it), for those that have any."""

    def add(self, builder: Builder, partition: int, start: int, now_ms: int) -> int:
        """Add the partition's records to a batch, beginning with number `start`; return how many fitted."""


class Engine(Protocol):
    name: EngineName

    @property
    def remembered_bytes(self) -> int:
        """Memory that is kept between requests: keys, resources and counted endpoints."""

    def open(self, body: bytes) -> Translation:
        """Split a request into spans.

        Raises:
            MalformedRequest: the bytes are no ExportTraceServiceRequest.
            TooManySpans: more spans, or fields around them, than a request may hold.
        """

    def builder(self, producer: Any) -> Builder:
        """An empty batch."""


def new_engine(rules: Rules, *, setting: EngineSetting, spans_max: int) -> Engine:
    """The native engine, unless it was not built or `setting` is `python`; then the reference.

    Raises:
        WrongSetting: `setting` is `native`, and the engine was not built.
    """
    library = native_library(setting)
    if library is None:
        return Reference(rules, spans_max=spans_max)
    spec = mapping_spec(rules, spans_max=spans_max, fields_max=fields_max(spans_max))
    return Native(library, library.Engine(spec, role_of(rules)), Reference(rules, spans_max=spans_max))


class Reference:
    """The engine in Python. It is complete, and defines the result for every span."""

    name: EngineName = "python"

    def __init__(self, rules: Rules, *, spans_max: int) -> None:
        self.rules = rules
        self.guard = Guard(rules.endpoints_per_service)
        self.spans_max = spans_max

    @property
    def remembered_bytes(self) -> int:
        return self.rules.allowed.remembered_bytes + self.guard.held_bytes

    def open(self, body: bytes) -> Translation:
        return ByReference(read_request(body, spans_max=self.spans_max), self.rules, self.guard)

    def builder(self, producer: Any) -> Builder:
        builder: Builder = producer.create_batch()
        return builder


class _Fates:
    """Counts of a request's spans: ignored, rejected, published, declined."""

    def __init__(self) -> None:
        self.ignored: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.declined: Counter[str] = Counter()
        self.replaced = 0

    def record_of(self, outcome: Outcome) -> Record | None:
        """The record of an event; or None, after counting why the span has no record."""
        match outcome:
            case Ignored(reason):
                self.ignored[reason] += 1
            case Rejected(reason, fault):
                self.rejected[reason] += 1
                if fault:  # a bug of ours costs this span and none of its neighbours
                    self.faults[fault] += 1
            case event:
                record = wire.encode(event)
                if len(record.value) <= RECORD_BYTES_MAX:
                    return record
                self.rejected["span_too_large"] += 1  # no batch can hold it
        return None


class ByReference(_Fates):
    """A request, translated by the reference."""

    def __init__(self, groups: Sequence[ResourceSpans], rules: Rules, guard: Guard) -> None:
        super().__init__()
        self._guard = guard
        self.spans = sum(len(group.spans) for group in groups)
        self._traces = Traces(rules)
        self._record_bytes = 0
        self._records: list[Record] = []
        self._by_partition: dict[int, list[Record]] = {}
        self._work = self._steps(groups, rules)

    @property
    def held_bytes(self) -> int:
        return self._record_bytes + self._traces.held_bytes

    def step(self, seconds: float) -> bool:
        ends_at = time.monotonic() + seconds
        return all(time.monotonic() < ends_at for _ in self._work)

    def _steps(self, groups: Sequence[ResourceSpans], rules: Rules) -> Iterator[None]:
        """Translate a few spans in each step, or one large span."""
        yield from self._traces.read(groups)
        for group in groups:
            resource = read_resource(group.resource, rules)
            unseen_bytes = 0
            for raw in group.spans:
                notes = Notes()
                outcome = translate(raw, resource, rules, traces=self._traces, notes=notes)
                if notes.is_raw_path and self._guard.is_on and isinstance(outcome, BaseEvent):
                    outcome = self._bounded(outcome)
                record = self.record_of(outcome)
                if record is not None:
                    self._records.append(record)
                    self._record_bytes += len(record.value) + _RECORD_OVERHEAD_BYTES
                unseen_bytes += _IGNORED_BYTES if outcome is NOT_PRODUCT_EVENT else _EVENT_BYTES + len(raw)
                if unseen_bytes > _BYTES_A_STEP:
                    unseen_bytes = 0
                    yield

    def _bounded(self, event: BaseEvent) -> BaseEvent:
        """The event with its endpoints as the guard stores them."""
        for name, owner in mapping.COUNTED.items():
            path = getattr(event, name, None)
            if path is not None:
                stored = self._guard.stored(getattr(event, owner) or "", path)
                self.replaced += stored != path
                event = event if stored == path else event.model_copy(update={name: stored})
        return event

    def published(self) -> Counter[str]:
        return Counter(record.table for record in self._records)

    def partitioned(self, partitions: int) -> list[tuple[int, int]]:
        self._by_partition = {}
        for record in self._records:
            self._by_partition.setdefault(record.partition(partitions), []).append(record)
        return [(partition, len(records)) for partition, records in self._by_partition.items()]

    def add(self, builder: Any, partition: int, start: int, now_ms: int) -> int:
        added = 0
        for record in self._by_partition[partition][start:]:
            headers = HEADERS[record.table]
            if builder.append(timestamp=now_ms, key=record.key, value=record.value, headers=headers) is None:
                break
            added += 1
        return added


class Native:
    """The engine in Rust for plain spans, and the reference for the others."""

    name: EngineName = "native"

    def __init__(self, library: ModuleType, engine: Any, reference: Reference) -> None:
        self.engine = engine
        self.rules = reference.rules
        self._library = library
        self._reference = reference
        self.guard = reference.guard

    @property
    def remembered_bytes(self) -> int:
        native_bytes: int = self.engine.remembered_bytes
        return native_bytes + self._reference.remembered_bytes

    def open(self, body: bytes) -> Translation:
        try:
            return ByNative(self, self.engine.open(body))
        except self._library.TooMany:
            raise TooManySpans(f"more than {self._reference.spans_max} spans") from None
        except self._library.Odd:  # malformed, or only encoded in an unusual way: protobuf decides
            plain = written_plainly(read_request(body, spans_max=self._reference.spans_max))
            return ByNative(self, self.engine.open(plain))

    def builder(self, producer: Any) -> Builder:  # noqa: ARG002  the reference's builder is the producer's
        builder: Builder = self._library.Batch(BATCH_BYTES_MAX, ZSTD_LEVEL)
        return builder


class ByNative(_Fates):
    """A request, translated by the native engine, span by span left to the reference."""

    def __init__(self, native: Native, request: Any) -> None:
        super().__init__()
        self.spans: int = request.spans
        self._native = native
        self._request = request
        self._leftovers: deque[tuple[int, bytes, bytes]] = deque()
        self._traces = TracesOnDemand(request, native.rules)
        self._resource: tuple[bytes, Resource] | None = None
        self._is_read = False
        self._is_bounded = not native.guard.is_on

    @property
    def held_bytes(self) -> int:
        held: int = self._request.held_bytes
        return held + self._traces.held_bytes

    def step(self, seconds: float) -> bool:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            if self._leftovers:
                self._translate_one(*self._leftovers.popleft())
            elif self._is_read:
                self._is_bounded = self._is_bounded or self._native.engine.bound(self._request, self._stored)
                if self._is_bounded:
                    self.replaced = self._request.replaced
                    return True
            else:
                self._is_read = self._native.engine.step(self._request, max(0.0, ends_at - time.monotonic()))
                self._leftovers.extend(self._request.leftovers())
                if self._is_read:
                    _, ignored, declined = self._request.counts()
                    if ignored or declined:  # rarely: and an update costs as much as a span
                        self.ignored.update(ignored)
                        self.declined.update(declined)
        return self._is_read and not self._leftovers and self._is_bounded

    def _stored(self, owner: bytes, path: bytes) -> tuple[bytes | None, bool, bool]:
        """Answer the native engine: the path to store instead (None: the path itself), whether older answers are void,
        and whether this answer is a pattern. Paths are JSON strings.
        """
        guard = self._native.guard
        sent, narrowings = orjson.loads(path), guard.narrowings
        stored = guard.stored(orjson.loads(owner) if owner else "", sent)
        other = None if stored == sent else orjson.dumps(stored)
        return other, guard.narrowings != narrowings, is_pattern(sent, stored)

    def _translate_one(self, place: int, raw_resource: bytes, span: bytes) -> None:
        rules = self._native.rules
        if self._resource is None or self._resource[0] != raw_resource:
            self._resource = raw_resource, read_resource(raw_resource, rules)
        notes = Notes()
        record = self.record_of(translate(span, self._resource[1], rules, traces=self._traces, notes=notes))
        if record is not None:
            table = _TABLE_NAMES.index(record.table)
            self._request.settle(place, table, UUID(record.key.decode()).bytes, record.value, notes.is_raw_path)

    def published(self) -> Counter[str]:
        by_table, _, _ = self._request.counts()
        return Counter({table: count for table, count in zip(_TABLE_NAMES, by_table, strict=True) if count})

    def partitioned(self, partitions: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = self._request.partitioned(partitions)
        return found

    def add(self, builder: Any, partition: int, start: int, now_ms: int) -> int:
        added: int = self._native.engine.add(self._request, builder, partition, start, now_ms)
        return added
