"""one span's attributes -> the columns of its event: the mapping table in code. Pure."""

import re
from collections.abc import Callable
from math import isfinite
from typing import Any

from receiver.decode import otlp
from receiver.translate.attributes import Attributes, BadId, Found, Keys, decoded, raw_id_of, text_of, without_nul
from receiver.translate.endpoint import FORMS, endpoint_of
from receiver.translate.metadata import Candidate, candidates, event_metadata
from receiver.translate.outcome import EXCLUDED_ENDPOINT, NOT_PRODUCT_EVENT, Ignored, RejectReason, Unfit
from receiver.translate.privacy import REDACTED, Cleaned, clean
from receiver.translate.rules import CATEGORY, FEATURE_NAME, METHOD_KEYS, Rules
from shared.events import (
    EVENT_MODELS,
    TABLES,
    TIMESTAMP_US_MAX,
    EndpointUsage,
    FeatureUsage,
    ProductEvent,
    Table,
    UserActivity,
    event_id,
    text_limits,
)

USER_KEYS: Keys = (b"user.id", b"enduser.id", b"user.hash")
ORGANIZATION_KEYS: Keys = (b"organization.id", b"tenant.id")
EVENT_TYPE_KEYS: Keys = (b"event.type", b"event.name")
SESSION_KEYS: Keys = (b"session.id",)
STATUS_KEYS: Keys = (b"http.response.status_code", b"http.status_code")
DURATION_KEYS: Keys = (b"duration_ms",)
ACTION_KEYS: Keys = (b"feature.action",)
DEPLOYMENT_KEYS: Keys = (b"deployment.type",)

_TABLES: dict[str | None, Table] = {table: table for table in TABLES}
_UNKNOWN_CATEGORY = Ignored("unknown_category")

_CHARS_MAX = {column: chars for model in EVENT_MODELS for column, chars in text_limits(model).items()}
_OWN_ID_CHARS_MIN = 4  # a shorter id is part of too many texts that mean something else
_STATUS_MAX = 999
_NS_PER_MS = 1_000_000
_NS_PER_US = 1_000

_HTTP_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS = re.compile(r"0*[0-9]{1,3}", re.ASCII)
_NUMERIC = re.compile(r"[+-]?(?:[0-9]{1,64}(?:\.[0-9]{0,64})?|\.[0-9]{1,64})(?:[eE][+-]?[0-9]{1,4})?")


class Reading:
    """One span read as an event: each column from the first of its attributes that is there."""

    __slots__ = ("_attributes", "_endpoint", "_id_fault", "_notes", "_rules", "_span", "ids", "own_ids")

    def __init__(self, span: otlp.Span, attributes: Attributes, rules: Rules) -> None:
        self._span = span
        self._attributes = attributes
        self._rules = rules
        self._notes = attributes.notes
        self._id_fault: RejectReason | None = None
        self.own_ids: dict[str, str] = {}  # raw -> hash: where else the span says them, the hash goes
        self._notes.own_ids = self.own_ids
        self.ids = {
            "user_id": self._id("user_id", USER_KEYS, fault="invalid_user_id"),
            "organization_id": self._id("organization_id", ORGANIZATION_KEYS, fault="invalid_organization_id"),
        }
        self._endpoint: str | None = None

    def category(self) -> Table | Ignored | None:
        found = self._attributes.first((CATEGORY,), "table")
        return None if found is None else _TABLES.get(text_of(found), _UNKNOWN_CATEGORY)

    def table(self) -> Table | Ignored:
        """The first rule that matches: a category, a feature's name, an HTTP request that was served."""
        category = self.category()
        if category is not None:
            return category
        if not self._rules.infer_events:
            return NOT_PRODUCT_EVENT
        if self._attributes.first((FEATURE_NAME,), "table") is not None:
            return "feature_usage"
        if self._span.kind != otlp.SPAN_KIND_SERVER or self._attributes.first(METHOD_KEYS, "table") is None:
            return NOT_PRODUCT_EVENT
        self._endpoint = self.read_endpoint()
        if self._endpoint is not None and self._rules.is_excluded(self._endpoint):
            return EXCLUDED_ENDPOINT
        return "endpoint_usage"

    def event(self, table: Table, *, resource_metadata: list[Candidate], is_small: bool) -> ProductEvent:
        """The event, once `table` has said which.

        Raises:
            Unfit: something that the event needs is missing, or of no use.
        """
        model, own_columns = _EVENTS[table]
        columns = self._common_columns(table) | own_columns(self)
        columns["timestamp_us"] = self._timestamp_us()
        columns["event_metadata"] = event_metadata(
            candidates(self._attributes.span, "span", self._rules.allowed, self._notes),
            resource_metadata,
            notes=self._notes,
            is_small=is_small,
        )
        return model(**columns)

    # ---- columns that every table has

    def _common_columns(self, table: Table) -> dict[str, Any]:
        trace_id, span_id = self._span.trace_id, self._span.span_id
        if len(trace_id) != 16 or not any(trace_id):
            raise Unfit("invalid_trace_id")
        if len(span_id) != 8 or not any(span_id):
            raise Unfit("invalid_span_id")
        if self._id_fault == "invalid_user_id":
            raise Unfit(self._id_fault)
        if table == "user_activity" and self.ids["user_id"] is None:
            raise Unfit("missing_user_id")
        if self._id_fault:
            raise Unfit(self._id_fault)
        deployment_type = self.text("deployment_type", DEPLOYMENT_KEYS)
        if deployment_type is None:
            deployment_type = self._rules.deployment_type
            self._notes.source("deployment_type", "setting DEPLOYMENT_TYPE")
        return {"id": event_id(trace_id, span_id), "deployment_type": deployment_type, **self.ids}

    def _id(self, column: str, keys: Keys, *, fault: RejectReason) -> str | None:
        """The hash. A fault is kept for later: this may yet turn out to be no event."""
        found = self._attributes.first(keys, column)
        if found is None:
            return None
        try:
            raw = raw_id_of(found)
        except BadId:
            self._id_fault = self._id_fault or fault
            return None
        hashed = self._rules.hashed(raw)
        if len(raw) >= _OWN_ID_CHARS_MIN:
            self.own_ids[raw] = hashed
        return hashed

    def _timestamp_us(self) -> int:
        start_us = self._span.start_time_unix_nano // _NS_PER_US
        if start_us > TIMESTAMP_US_MAX:  # no 64 bits of nanoseconds reach as far, today
            raise Unfit("invalid_timestamp")
        self._notes.source("timestamp", "start_time_unix_nano")
        return start_us

    # ---- columns of one table

    def user_activity_columns(self) -> dict[str, Any]:
        event_type = self.text("event_type", EVENT_TYPE_KEYS)
        if event_type is None:
            raise Unfit("missing_event_type")
        return {"event_type": event_type, "session_id": self.session_id()}

    def session_id(self) -> str | None:
        """A session that is named by a secret, or by the person, is known by the hash of that."""
        raw = text_of(self._attributes.first(SESSION_KEYS, "session_id"))
        if raw is None:
            return None
        cleaned = clean(raw)
        rule = "own_id" if raw in self.own_ids else cleaned.rule
        if rule is None:
            return self._noted("session_id", cleaned)
        self._notes.redacted("session_id", rule)
        return self._rules.hashed(raw)

    def endpoint_usage_columns(self) -> dict[str, Any]:
        endpoint = self._endpoint or self.read_endpoint()
        if endpoint is None:
            raise Unfit("missing_endpoint")
        return {
            "endpoint": endpoint,
            "method": self.method(),
            "status_code": self.status_code(),
            "duration_ms": self.duration_ms(),
        }

    def read_endpoint(self) -> str | None:
        found = self._attributes.first(tuple(FORMS), "endpoint")
        text = text_of(found)
        if found is None or text is None:
            return None
        return self._cut("endpoint", without_nul(endpoint_of(text, FORMS[found.key], own_ids=self.own_ids)))

    def method(self) -> str | None:
        text = text_of(self._attributes.first(METHOD_KEYS, "method"))
        if text is None or not _HTTP_TOKEN.fullmatch(text):
            return None
        method = self._storable("method", text)
        return method if method == REDACTED else method.upper()

    def status_code(self) -> int | None:
        return _status_code(self._attributes.first(STATUS_KEYS, "status_code"))

    def duration_ms(self) -> float | None:
        duration_ms = _duration_ms(self._attributes.first(DURATION_KEYS, "duration_ms"))
        if duration_ms is not None:
            return duration_ms
        start_ns, end_ns = self._span.start_time_unix_nano, self._span.end_time_unix_nano
        if end_ns == 0 or end_ns < start_ns:  # 0: the sender did not say
            return None
        self._notes.source("duration_ms", "end_time_unix_nano - start_time_unix_nano")
        return (end_ns - start_ns) / _NS_PER_MS

    def feature_usage_columns(self) -> dict[str, Any]:
        feature_name = self.text("feature_name", (FEATURE_NAME,))
        if feature_name is None:
            raise Unfit("missing_feature_name")
        return {"feature_name": feature_name, "action": self.text("action", ACTION_KEYS)}

    # ---- texts

    def text(self, column: str, keys: Keys) -> str | None:
        text = text_of(self._attributes.first(keys, column))
        return None if text is None else self._storable(column, text)

    def _storable(self, column: str, text: str) -> str:
        return self._noted(column, clean(text))

    def _noted(self, column: str, cleaned: Cleaned) -> str:
        if cleaned.rule:
            self._notes.redacted(column, cleaned.rule)
        if cleaned.lost_query:
            self._notes.cut(column, "query")
        return self._cut(column, without_nul(cleaned.text))

    def _cut(self, column: str, text: str) -> str:
        chars_max = _CHARS_MAX[column]
        if len(text) <= chars_max:
            return text
        self._notes.cut(column, "length")
        return text[:chars_max]


_EVENTS: dict[Table, tuple[type[ProductEvent], Callable[[Reading], dict[str, Any]]]] = {
    "user_activity": (UserActivity, Reading.user_activity_columns),
    "endpoint_usage": (EndpointUsage, Reading.endpoint_usage_columns),
    "feature_usage": (FeatureUsage, Reading.feature_usage_columns),
}


def _status_code(found: Found | None) -> int | None:
    """An int or a decimal string from 0 to 999; else None."""
    if found is None:
        return None
    if found.kind == "int_value":
        status = found.value.int_value
    elif found.kind == "string_value" and _STATUS.fullmatch(text := decoded(found.value.string_value)):
        status = int(text[-3:])
    else:
        return None
    return status if 0 <= status <= _STATUS_MAX else None


def _duration_ms(found: Found | None) -> float | None:
    """A finite number or a numeric string of 0 or more; else None."""
    if found is None:
        return None
    match found.kind:
        case "int_value":
            number = float(found.value.int_value)
        case "double_value":
            number = found.value.double_value
        case "string_value" if _NUMERIC.fullmatch(text := decoded(found.value.string_value)):
            number = float(text)
        case _:
            return None
    return number + 0.0 if isfinite(number) and number >= 0 else None  # + 0.0: -0.0 is 0.0
