"""What others really send, kept as files, and what must come of it, written beside it by hand."""

import base64
import json
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

FOLDER = Path(__file__).parents[1] / "golden" / "requests"
SENDERS = ("backend", "frontend")  # of the original product: they hash ids themselves


def sent_by(sender: str) -> bytes:
    """The request as it goes over the wire; the file is OTLP JSON, which writes ids in hex."""
    document = json.loads((FOLDER / f"{sender}.json").read_text())
    for group in document["resourceSpans"]:
        for scope in group["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return json_format.ParseDict(document, ExportTraceServiceRequest()).SerializeToString()


def fates_of(sender: str) -> list[dict[str, Any] | str]:
    """For each span in order: its record's value under ID_HASHING=prehashed, or why it has none."""
    found: list[dict[str, Any] | str] = json.loads((FOLDER / f"{sender}.rows.json").read_text())
    return found
