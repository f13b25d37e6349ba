"""What the Python applications share: a tracer provider that exports to record.py, and the three requests."""

import contextlib
import urllib.error
import urllib.request

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider(resource=Resource.create(), shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))


def ask(port: int, *paths: str) -> None:
    """An ordinary request, one that matches nothing, and one that fails."""
    for path in paths or ("/users/17", "/missing/17", "/boom"):
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).read()
