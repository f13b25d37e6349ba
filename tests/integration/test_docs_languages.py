"""The programs of docs/send-your-spans.md in other languages, with nothing but the endpoint set.

Long: they fetch what the page says from npm, Maven Central and the Go module proxy. A toolchain that is not on this
machine fails its test, in the job of the workflow that has them all.
"""

import asyncio
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from jgo.maven import MavenContext

from deploy.local.kafka import KafkaBroker
from deploy.local.server import free_port
from support.pages import block
from support.receiver import Receiver, records_of, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

JAVA_AGENT = "io.opentelemetry.javaagent:opentelemetry-javaagent:2.20.1"
HARMLESS = ("Sharing is only supported", "MetadataLookupWarning", "--trace-warnings", "INFO")


@dataclass(frozen=True)
class Language:
    name: str
    prepare: Callable[[Path], None]
    command: Callable[[Path], list[str]]
    table: str
    row: dict[str, str]


def shell(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, timeout=600, capture_output=True)


def node(folder: Path) -> None:
    (folder / "shop.js").write_text(block("javascript", "createServer"))
    (folder / "package.json").write_text("{}")
    packages = ("@opentelemetry/api", "@opentelemetry/auto-instrumentations-node")
    shell(folder, "npm", "install", "--no-audit", "--no-fund", *packages)


def java(folder: Path) -> None:
    (folder / "Shop.java").write_text(block("java", "class Shop"))
    jar = MavenContext(repo_cache=folder / "repository", timeout=60).create_dependency(JAVA_AGENT).artifact.resolve()
    shutil.copy(jar, folder / "opentelemetry-javaagent.jar")


def go(folder: Path) -> None:
    (folder / "main.go").write_text(block("go", "package main"))
    shell(folder, "go", "mod", "init", "example.com/shop")
    shell(folder, "go", "mod", "tidy")
    shell(folder, "go", "build", "-o", "shop", ".")


LANGUAGES = [
    Language(
        "node",
        node,
        lambda _: ["node", "--require", "@opentelemetry/auto-instrumentations-node/register", "shop.js"],
        "endpoint_usage",
        {"method": "GET", "endpoint": "/orders"},
    ),
    Language(
        "java",
        java,
        lambda _: ["java", "-javaagent:opentelemetry-javaagent.jar", "Shop.java"],
        "endpoint_usage",
        {"method": "GET", "endpoint": "/orders"},
    ),
    Language("go", go, lambda folder: [str(folder / "shop")], "feature_usage", {"feature_name": "export"}),
]


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
async def test_the_program_of_the_page_makes_its_row_and_logs_no_error(
    kafka: KafkaBroker, tmp_path: Path, language: Language
) -> None:
    """Node was silent, Go said `malformed HTTP response`, the Java agent logged errors."""
    folder = tmp_path / language.name
    folder.mkdir()
    language.prepare(folder)
    receiver = Receiver(kafka.bootstrap_servers, tmp_path).start()
    try:
        await receiver.ready()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{receiver.http_port}"
        done = await asyncio.to_thread(
            subprocess.run,
            language.command(folder),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        assert [line for line in said if not any(harmless in line for harmless in HARMLESS)] == []
        values = [json.loads(record.value) for record in await records_of(kafka, receiver.topic)]
        rows = [value for value in values if value["table"] == language.table]
        assert any(language.row.items() <= row.items() for row in rows), values
    finally:
        receiver.kill()


PAGE = """<!doctype html><title>shop</title><script type="module">
const endpoint = "ENDPOINT";
let told;
try {
SCRIPT
  const answer = await sent;
  told = `${answer.status} ${await answer.text()}`;
} catch (error) {
  told = `${error}`;
}
await fetch(`/told?${encodeURIComponent(told)}`);
</script>"""


@pytest.mark.parametrize(
    ("origins", "expected"),
    [("http://localhost:{port}", "200 {}"), ("https://other.example", "TypeError: Failed to fetch")],
)
async def test_a_page_in_a_browser_sends_across_origins(
    kafka: KafkaBroker, tmp_path: Path, origins: str, expected: str
) -> None:
    """The browser asks first, and lets no page send where it is not allowed to."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    assert chromium is not None, "needs a Chromium"
    port = free_port()
    receiver = Receiver(kafka.bootstrap_servers, tmp_path, HTTP_CORS_ORIGINS=origins.format(port=port)).start()
    script = block("javascript", "keepalive")
    page = PAGE.replace("ENDPOINT", f"http://127.0.0.1:{receiver.http_port}").replace("SCRIPT", script)
    told: list[str] = []

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == "/told":
                told.append(unquote(query))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"http://localhost:{port}/"]
    try:
        await receiver.ready()
        with ThreadingHTTPServer(("127.0.0.1", port), Site) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            browser = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:

                async def is_told() -> bool:
                    return bool(told)

                await until(is_told, 60, "the page's own word")
            finally:
                browser.terminate()
                await asyncio.wait_for(browser.wait(), 20)
                server.shutdown()
        assert told == [expected]
        values = [json.loads(record.value) for record in await records_of(kafka, receiver.topic)]
        taken = [("feature_usage", "export")] if expected.startswith("200") else []
        assert [(value["table"], value["feature_name"]) for value in values] == taken
    finally:
        receiver.kill()
