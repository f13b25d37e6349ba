"""`receiver explain`: says what the receiver would do, by doing it, and shows nobody's id."""

import base64
import json
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from receiver.decode.spans import MalformedRequest, TooManySpans
from receiver.translate.engines.explain import Explanation, explain_file
from shared.identity import Hasher
from support.encoding import ID, LOGIN, PLAIN, SERVER, request_bytes, resource_bytes, rules, span_bytes

LOGIN_SPAN = {
    **LOGIN,
    "user.id": "alice@example.com",
    "session.id": "alice@example.com",
    "metadata.note": "ask bob@example.org",
    "metadata.owner": "alice@example.com",
    "metadata.api_key": "k",
    "metadata.link": "https://a.example/?q=1",
    "metadata.long": "x" * 2000,
    "alice@example.com": 1,
    "other": 2,
}
EXPLAINED = {
    "outcome": "event",
    "reason": None,
    "table": "user_activity",
    "columns": {
        "id": ID,
        "timestamp": "2026-11-23T18:53:20.123456+00:00",
        "deployment_type": "self-hosted",
        "service_name": "shop",
        "service_version": None,
        "trace_id": "0af76519-16cd-43dd-8448-eb211c80319c",
        "weight": 1.0,
        "user_id": "ff8d9819fc0e12bf",
        "organization_id": None,
        "event_type": "login",
        "session_id": "ff8d9819fc0e12bf",
        "event_metadata": {
            "note": "[redacted]",
            "owner": "ff8d9819fc0e12bf",
            "link": "https://a.example/",
            "long": "x" * 1024,
            "service.name": "shop",
            "_truncated": ["event_metadata.link", "event_metadata.long"],
        },
    },
    "sources": {
        "table": "span event.category",
        "timestamp": "start_time_unix_nano",
        "deployment_type": "setting DEPLOYMENT_TYPE",
        "service_name": "resource service.name",
        "user_id": "span user.id",
        "event_type": "span event.type",
        "session_id": "span session.id",
        "event_metadata.note": "span metadata.note",
        "event_metadata.owner": "span metadata.owner",
        "event_metadata.link": "span metadata.link",
        "event_metadata.long": "span metadata.long",
        "event_metadata.service.name": "resource service.name",
    },
    "dropped": [
        {"name": "[redacted]", "rule": "not_allowed"},
        {"name": "other", "rule": "not_allowed"},
        {"name": "metadata.api_key", "rule": "secret_key"},
        {"name": "host.name", "rule": "not_allowed"},
    ],
    "redacted": [
        {"name": "session_id", "rule": "own_id"},
        {"name": "event_metadata.note", "rule": "email"},
        {"name": "event_metadata.owner", "rule": "own_id"},
    ],
    "cut": [{"name": "event_metadata.link", "rule": "query"}, {"name": "event_metadata.long", "rule": "length"}],
}
RESOURCE = resource_bytes({"service.name": "shop", "host.name": "box"})


def otlp_json(body: bytes) -> dict[str, Any]:
    """As OTLP writes it: protobuf's JSON, but for the ids, which are in hex."""
    document: dict[str, Any] = json_format.MessageToDict(ExportTraceServiceRequest.FromString(body))
    for group in document["resourceSpans"]:
        for scope in group["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId"):
                    span[name] = base64.b64decode(span[name]).hex()
    return document


def test_an_event_is_explained_in_full() -> None:
    """Where each column came from, and by which rule something is missing."""
    (found,) = explain_file(request_bytes((RESOURCE, [span_bytes(LOGIN_SPAN)])), PLAIN)
    assert found.as_json() == EXPLAINED
    json.dumps(found.as_json(), allow_nan=False)


def test_json_and_binary_are_explained_alike() -> None:
    """A Collector's file exporter writes one request a line; a debugger shows one document."""
    body = request_bytes((RESOURCE, [span_bytes(LOGIN_SPAN), span_bytes({"a": 1})]))
    binary = explain_file(body, PLAIN)
    document = otlp_json(body)
    assert explain_file(json.dumps(document, indent=2).encode(), PLAIN) == binary
    assert explain_file(f"{json.dumps(document)}\n{json.dumps(document)}\n".encode(), PLAIN) == [*binary, *binary]


def test_ignored_and_rejected_spans_have_their_reason() -> None:
    """The command's exit code depends on them, and so does the reader."""
    spans = [span_bytes({"a": 1}), span_bytes({"event.category": "user_activity"}), b"\xff feature.name"]
    outcomes = [(one.outcome, one.reason) for one in explain_file(request_bytes((b"", spans)), PLAIN)]
    assert outcomes == [
        ("ignored", "not_product_event"),
        ("rejected", "missing_user_id"),
        ("rejected", "malformed_span"),
    ]


def test_an_id_that_is_no_hex_is_the_spans_trouble() -> None:
    """A file with one bad id is still worth explaining."""
    document = otlp_json(request_bytes((b"", [span_bytes(LOGIN), span_bytes(LOGIN)])))
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"] = "zz"
    first, second = explain_file(json.dumps(document).encode(), PLAIN)
    assert (first.reason, second.outcome) == ("invalid_trace_id", "event")


def test_the_settings_decide() -> None:
    """What is explained is this deployment's answer."""
    by = rules(hashed=Hasher("hash", b"k" * 32), metadata_attributes=(), deployment_type="cloud")
    (found,) = explain_file(request_bytes((RESOURCE, [span_bytes(LOGIN)])), by)
    assert found.columns["user_id"] != "73475cb40a568e8d"
    assert found.columns["deployment_type"] == "cloud"
    assert found.dropped == [{"name": "host.name", "rule": "not_allowed"}]  # service.name is a column


def test_where_an_endpoint_comes_from_is_told() -> None:
    """The question that is asked most: why this route."""
    attributes = {"http.method": "GET", "http.target": "/a/17", "http.url": "http://h/b"}
    (found,) = explain_file(request_bytes((b"", [span_bytes(attributes, kind=SERVER)])), PLAIN)
    assert found.sources["endpoint"] == "span http.target"
    assert found.sources["duration_ms"] == "end_time_unix_nano - start_time_unix_nano"
    assert found.sources["table"] == "span http.method"
    assert found.dropped == [{"name": "http.url", "rule": "not_allowed"}]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"{",
        b"{}]",
        b'{"resourceSpans": 7}',
        b'{"a":1} x',
        b"[" * 5,
        b"{" + b'"a":{' * 3000,
        b'{"a":"\xff"}',
        b'{"resourceSpans":[{"resource":{"attributes":[{"key":"\\ud800"}]}}]}',
    ],
)
def test_what_is_no_request_is_refused(content: bytes) -> None:
    """One line for the user, instead of a traceback with the file in it."""
    with pytest.raises(MalformedRequest) as refused:
        explain_file(content, PLAIN)
    assert refused.value.__suppress_context__


def test_the_limit_of_spans_holds() -> None:
    """As for a request."""
    with pytest.raises(TooManySpans):
        explain_file(request_bytes((b"", [span_bytes()] * 3)), PLAIN, spans_max=2)


def test_an_empty_file_is_an_empty_request() -> None:
    """It is one, on the wire."""
    assert explain_file(b"", PLAIN) == []
    assert explain_file(b"{}", PLAIN) == []
    assert Explanation("ignored").as_json().keys() == EXPLAINED.keys()
