"""OTLP grows: a field that appears in it must be decided on, and not be overlooked."""

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as F
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from receiver.decode import otlp

PUBLISHED: dict[str, Descriptor] = {
    "Request": ExportTraceServiceRequest.DESCRIPTOR,
    "ResourceSpans": ResourceSpans.DESCRIPTOR,
    "ScopeSpans": ScopeSpans.DESCRIPTOR,
    "Resource": Resource.DESCRIPTOR,
    "Span": Span.DESCRIPTOR,
    "KeyValue": KeyValue.DESCRIPTOR,
    "AnyValue": AnyValue.DESCRIPTOR,
    "ArrayValue": ArrayValue.DESCRIPTOR,
    "KeyValueList": KeyValueList.DESCRIPTOR,
}
NOT_READ = {
    "ResourceSpans": {"schema_url"},
    "ScopeSpans": {"scope", "schema_url"},
    "Resource": {"dropped_attributes_count", "entity_refs"},
    "Span": {
        "flags",  # the sampled flag: what reached us counts
        "dropped_attributes_count",
        "dropped_events_count",
        "dropped_links_count",
        "status",
    },
    "KeyValue": {"key_strindex"},  # profiles only
    "AnyValue": {"string_value_strindex"},  # profiles only
}
# Ours may be plainer where the bytes on the wire are the same.
SAME_WIRE = {
    F.TYPE_STRING: {F.TYPE_BYTES},
    F.TYPE_MESSAGE: {F.TYPE_MESSAGE, F.TYPE_BYTES},
    F.TYPE_ENUM: {F.TYPE_INT32},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_field_is_read_or_listed_as_not_read(name: str) -> None:
    """A new release of OTLP that adds a field fails this build, so that a person decides what it means to us."""
    assert {field.name for field in PUBLISHED[name].fields} == set(otlp.SCHEMA[name]) | NOT_READ.get(name, set())


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_read_has_the_same_wire_form(name: str) -> None:
    """A wrong number or wire type would read senders' bytes as something else, silently."""
    ours = otlp.MESSAGES[name].DESCRIPTOR.fields_by_name
    for field in PUBLISHED[name].fields:
        if field.name in ours:
            mine = ours[field.name]
            assert mine.number == field.number
            assert mine.type in SAME_WIRE.get(field.type, {field.type}), field.name
            if (name, field.name) != ("ResourceSpans", "resource"):  # joined by hand
                assert mine.is_repeated == field.is_repeated
