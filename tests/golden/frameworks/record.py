"""Record what real frameworks send: one OTLP request a framework, as tests/golden/requests/<name>.bin.

Each application serves an ordinary request, one that matches no route and one that fails, and names a user the way its
documentation has people do. It exports over OTLP/HTTP to this script, which writes the bodies down as they come.

    python -m venv v && v/bin/pip install fastapi uvicorn flask django openai opentelemetry-sdk \
        opentelemetry-exporter-otlp-proto-http opentelemetry-instrumentation-{fastapi,flask,django,openai-v2} \
        openinference-instrumentation-openai
    npm install                                   # for express, koa, fastify
    go mod init record && go mod tidy             # for servemux, gin
    mvn --file spring package                     # for spring, spring-old
    mvn --file spring --activate-profiles security package    # for spring-security
    v/bin/python record.py fastapi fastapi-old flask django openai openinference express koa fastify servemux gin \
        spring spring-old spring-security
"""

import argparse
import gzip
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

HERE = Path(__file__).parent
REQUESTS = HERE.parent / "requests"
COMMANDS = {
    "fastapi": [sys.executable, "fastapi_app.py"],
    "fastapi-old": [sys.executable, "fastapi_app.py"],
    "flask": [sys.executable, "flask_app.py"],
    "django": [sys.executable, "django_app.py"],
    "openai": [sys.executable, "openai_app.py", "openai-v2"],
    "openinference": [sys.executable, "openai_app.py", "openinference"],
    "express": ["node", "node_app.js", "express"],
    "koa": ["node", "node_app.js", "koa"],
    "fastify": ["node", "node_app.js", "fastify"],
    "servemux": ["go", "run", ".", "servemux"],
    "gin": ["go", "run", ".", "gin"],
    "spring": ["java", "-javaagent:spring/target/agent.jar", "-jar", "spring/target/shop.jar"],
    "spring-old": ["java", "-javaagent:spring/target/agent-old.jar", "-jar", "spring/target/shop.jar"],
    "spring-security": [
        "java",
        "-javaagent:spring/target/agent.jar",
        "-Dotel.instrumentation.common.enduser.id.enabled=true",
        "-jar",
        "spring/target/shop-security.jar",
        "--spring.security.user.name=anna-4711",
        "--spring.security.user.password=password",
    ],
}
OLD_NAMES = {"fastapi-old", "spring-old"}  # with the attribute names of before 2024


class Sink(BaseHTTPRequestHandler):
    bodies: list[bytes]

    def do_POST(self) -> None:
        length = self.headers["content-length"]
        body = self._chunks() if length is None else self.rfile.read(int(length))
        self.bodies.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size + 2)[:size]
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        pass


def record(name: str) -> bytes:
    """The application's requests as one: messages behind one another are one message, merged."""
    bodies: list[bytes] = []
    sink = HTTPServer(("127.0.0.1", 0), type("OneSink", (Sink,), {"bodies": bodies}))
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    environment = {  # the resource is OTEL_SERVICE_NAME alone: others would name this machine
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.server_port}",
        "OTEL_SERVICE_NAME": name,
        "OTEL_SEMCONV_STABILITY_OPT_IN": "" if name in OLD_NAMES else "http",
        "OTEL_NODE_RESOURCE_DETECTORS": "env",
        "OTEL_INSTRUMENTATION_JAVA_HTTP_CLIENT_ENABLED": "false",  # asks; only the server is recorded
        "OTEL_JAVA_ENABLED_RESOURCE_PROVIDERS": ",".join(
            f"io.opentelemetry.sdk.autoconfigure.{package}EnvironmentResourceProvider" for package in ("", "internal.")
        ),
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",  # an old Java agent exports over gRPC by default
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    subprocess.run(COMMANDS[name], cwd=HERE, env=environment, check=True, timeout=300)
    sink.shutdown()
    return without_events(b"".join(bodies))


def without_events(body: bytes) -> bytes:
    """Stack traces name files of this machine, and nothing reads them."""
    request = ExportTraceServiceRequest.FromString(body)
    for group in request.resource_spans:
        for scope in group.scope_spans:
            for span in scope.spans:
                del span.events[:]
                span.status.message = ""
    return request.SerializeToString()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=COMMANDS)
    for name in parser.parse_args().names:
        body = record(name)
        (REQUESTS / f"{name}.bin").write_bytes(body)
        sys.stdout.write(f"{name}: {len(body)} bytes\n")


if __name__ == "__main__":
    main()
