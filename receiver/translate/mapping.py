"""The mapping, as data: tables, their columns, and the attributes that fill them. Pure.

The only module that names an attribute. The reference, the native engine, the deciding keys, the reject reasons,
`explain`, the README's table and the tests' generators read it. Order, limits and required columns come from the event
models in shared/events.py.
"""

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import get_args

from shared.events import BaseEvent, EndpointUsage, FeatureUsage, ModelUsage, UserActivity, text_limits

# ---- kinds of value


class Form(Enum):
    """How the text of an attribute names a path."""

    ROUTE = "route"  # a template, or a raw path in the place of one
    PATH = "path"
    TARGET = "target"  # a path with its query, or in absolute or authority form
    URL = "url"
    CALL = "call"  # a method's name, behind the service's: `/service/method`


@dataclass(frozen=True, slots=True)
class EventId:
    """From trace id and span id: `shared.events.event_id`."""


@dataclass(frozen=True, slots=True)
class TraceId:
    """The span's trace id as a UUID."""


@dataclass(frozen=True, slots=True)
class StartTime:
    """The span's start in whole microseconds since 1970."""


@dataclass(frozen=True, slots=True)
class SamplingWeight:
    """2^56 / (2^56 - threshold), with the threshold from the span's tracestate: `ot=th:<hex>`; else 1."""


@dataclass(frozen=True, slots=True)
class HashedId:
    """A string or an int64, hashed. Any other type, or invalid UTF-8, rejects the span: `invalid_<column>`."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string; int, bool and double as JSON text. In a version, a text that looks like an IP address stays."""

    is_version: bool = False


@dataclass(frozen=True, slots=True)
class SessionText:
    """A text; when it holds a secret, or is the span's own id, its hash is stored instead."""


@dataclass(frozen=True, slots=True)
class Token:
    """A text that is an HTTP token, in upper case; any other text is absent."""


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A path or route whose ids are placeholders. `is_named_by_span` puts a SERVER span's name, when it is
    `METHOD /path` and the path looks like a template, behind the ROUTE keys and before the others. `counted_by` is the
    column by whose values paths that no template gave are counted and bounded.
    """

    is_named_by_span: bool = False
    counted_by: str = ""


@dataclass(frozen=True, slots=True)
class Integer:
    """An int64 or a decimal string from `minimum` to `maximum`; any other value is absent."""

    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Duration:
    """A finite number or numeric string of 0 or more, in milliseconds; else the span's end minus its start."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """The map of allowed attributes."""


Kind = (
    EventId
    | TraceId
    | StartTime
    | SamplingWeight
    | HashedId
    | Text
    | SessionText
    | Token
    | PathTemplate
    | Integer
    | Duration
    | Metadata
)
INTRINSIC: tuple[type[Kind], ...] = (EventId, TraceId, StartTime, SamplingWeight, Metadata)  # no attribute fills them

assert set(INTRINSIC) < set(get_args(Kind))


# ---- columns and tables


@dataclass(frozen=True, slots=True)
class Key:
    """An attribute that may fill a column."""

    name: bytes
    form: Form | None = None  # of a PathTemplate's key
    behind: bytes = b""  # of a CALL: the attribute that names the service
    stands_for: tuple[str, bytes] | None = None  # (text, attribute): this text is replaced by the attribute, if present
    renames: tuple[tuple[str, str], ...] = ()  # (text, stored text); a text that is not listed is absent


@dataclass(frozen=True, slots=True)
class When:
    """A condition on a span: `any_of` present, `all_of` present, perhaps a SERVER span, perhaps only these values.

    `values` are compared with the text of the first of `any_of` that is present.
    """

    any_of: tuple[bytes, ...]
    all_of: tuple[bytes, ...] = ()
    is_server: bool = False
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of a setting, for an attribute that is absent. `name` is a field of `Rules`."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A text for an attribute that is absent, when one of the conditions holds."""

    text: str
    when: tuple[When, ...]


@dataclass(frozen=True)
class Column:
    """A column and the keys that may fill it. The first present key does; the span's attribute beats the resource's."""

    name: str
    read: Kind
    keys: tuple[Key, ...] = ()
    otherwise: Setting | Constant | None = None
    is_shared_by_trace: bool = False  # absent, it is taken from other spans of the trace

    @cached_property
    def key_names(self) -> tuple[bytes, ...]:
        return tuple(key.name for key in self.keys)

    @cached_property
    def bad(self) -> str | None:
        """The reason to reject a span whose value has a wrong type; None where such a value counts as absent."""
        return f"invalid_{self.name}" if isinstance(self.read, HashedId) else None


@dataclass(frozen=True)
class Table:
    """One kind of event. Chosen by `event.category`, or inferred where one of the conditions holds."""

    event: type[BaseEvent]
    inferred_when: tuple[When, ...] = ()
    excluded_by: str = ""  # the column whose value may exclude an inferred event: ENDPOINT_EXCLUDE

    @cached_property
    def name(self) -> str:
        name: str = self.event.model_fields["table"].default
        return name

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """In the order on the wire."""
        return tuple(BY_NAME[name] for name in self.event.model_fields if name not in ("schema_version", "table"))

    @cached_property
    def chars_max(self) -> dict[str, int]:
        """Longest text of each text column, in code points."""
        return text_limits(self.event)

    @cached_property
    def missing(self) -> dict[str, str]:
        """By required column: the reason to reject a span without a value for it."""
        fields = self.event.model_fields
        return {
            column.name: f"missing_{column.name}"
            for column in self.columns
            if fields[column.name].is_required()
            and not isinstance(column.read, INTRINSIC)
            and not isinstance(column.otherwise, Setting)
        }


# ---- the mapping

CATEGORY = b"event.category"  # its value names the table, before any condition is tried

METADATA_PREFIX = b"metadata."
METADATA_ATTRIBUTES = (  # the default of the setting; `*` stands for any characters
    "metadata.*",
    "service.name",
    "service.version",
    "service.namespace",
    "error.type",
    "telemetry.sdk.language",
)
VERSION_KEY = "service.version"  # a value that looks like an IP address stays in it


def _keys(*names: str) -> tuple[Key, ...]:
    return tuple(Key(name.encode()) for name in names)


HTTP_SERVER = When(any_of=(b"http.request.method", b"http.method"), is_server=True)
RPC_SERVER = When(any_of=(b"rpc.system", b"rpc.system.name"), all_of=(b"rpc.method",), is_server=True)
GEN_AI_CALL = When(any_of=(b"gen_ai.operation.name",))
OPENINFERENCE_CALL = When(any_of=(b"openinference.span.kind",), values=("LLM", "EMBEDDING"))

COLUMNS = (
    Column("id", EventId()),
    Column("timestamp_us", StartTime()),
    Column("deployment_type", Text(), _keys("deployment.type"), otherwise=Setting("deployment_type")),
    Column("user_id", HashedId(), _keys("user.id", "enduser.id", "user.hash"), is_shared_by_trace=True),
    Column("organization_id", HashedId(), _keys("organization.id", "tenant.id"), is_shared_by_trace=True),
    Column("service_name", Text(), _keys("service.name")),
    Column("service_version", Text(is_version=True), _keys("service.version")),
    Column("trace_id", TraceId()),
    Column("weight", SamplingWeight()),
    Column("event_metadata", Metadata()),
    # user_activity
    Column("event_type", Text(), _keys("event.type", "event.name")),
    Column("session_id", SessionText(), _keys("session.id"), is_shared_by_trace=True),
    # endpoint_usage
    Column(
        "endpoint",
        PathTemplate(is_named_by_span=True, counted_by="service_name"),
        (
            Key(b"http.route", Form.ROUTE),
            Key(b"url.path", Form.PATH),
            Key(b"http.target", Form.TARGET),
            Key(b"url.full", Form.URL),
            Key(b"http.url", Form.URL),
            Key(b"rpc.method", Form.CALL, behind=b"rpc.service"),
        ),
        otherwise=Constant("{unmatched}", when=(HTTP_SERVER,)),
    ),
    Column(
        "method",
        Token(),
        (
            Key(b"http.request.method", stands_for=("_OTHER", b"http.request.method_original")),
            *_keys("http.method", "rpc.system", "rpc.system.name"),
        ),
    ),
    Column("status_code", Integer(0, 999), _keys("http.response.status_code", "http.status_code")),
    Column("duration_ms", Duration(), _keys("duration_ms")),  # model_usage too
    # feature_usage
    Column("feature_name", Text(), _keys("feature.name")),
    Column("action", Text(), _keys("feature.action")),
    # model_usage
    Column(
        "operation",
        Text(),
        (
            *_keys("gen_ai.operation.name"),
            Key(b"openinference.span.kind", renames=(("LLM", "chat"), ("EMBEDDING", "embeddings"))),
        ),
    ),
    Column("provider", Text(), _keys("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")),
    Column("model", Text(), _keys("gen_ai.response.model", "gen_ai.request.model", "llm.model_name")),
    Column("input_tokens", Integer(0, 2**63 - 1), _keys("gen_ai.usage.input_tokens", "llm.token_count.prompt")),
    Column("output_tokens", Integer(0, 2**63 - 1), _keys("gen_ai.usage.output_tokens", "llm.token_count.completion")),
    Column("error_type", Text(), _keys("error.type")),
)
BY_NAME = {column.name: column for column in COLUMNS}

TABLES = (  # in the order in which their conditions are tried
    Table(UserActivity),
    Table(FeatureUsage, inferred_when=(When(any_of=(b"feature.name",)),)),
    Table(EndpointUsage, inferred_when=(HTTP_SERVER, RPC_SERVER), excluded_by="endpoint"),
    Table(ModelUsage, inferred_when=(GEN_AI_CALL, OPENINFERENCE_CALL)),
)


# ---- what follows from it

COUNTED = {column.name: column.read.counted_by for column in COLUMNS if isinstance(column.read, PathTemplate)}
ID_COLUMNS = tuple(column for column in COLUMNS if isinstance(column.read, HashedId))
ID_KEYS = tuple(key for column in ID_COLUMNS for key in column.key_names)
SHARED_COLUMNS = tuple(column for column in COLUMNS if column.is_shared_by_trace)
SHARED_KEYS = tuple(key for column in SHARED_COLUMNS for key in column.key_names)
REJECT_REASONS = tuple(
    dict.fromkeys(
        [
            *(column.bad for column in COLUMNS if column.bad),
            *(reason for table in TABLES for reason in table.missing.values()),
        ]
    )
)


def attributes() -> tuple[bytes, ...]:
    """Every attribute that the mapping reads, but for metadata."""
    keys = [key for column in COLUMNS for key in column.keys]
    more = [name for key in keys for name in (key.behind, key.stands_for[1] if key.stands_for else b"") if name]
    return tuple(dict.fromkeys([*deciding_keys(infer_events=True), *(key.name for key in keys), *more]))


def deciding_keys(*, infer_events: bool) -> tuple[bytes, ...]:
    """A span whose bytes and resource hold none of these attributes is no event."""
    conditions = [when for table in TABLES for when in table.inferred_when] if infer_events else []
    return tuple(dict.fromkeys([CATEGORY, *(key for when in conditions for key in when.any_of)]))
