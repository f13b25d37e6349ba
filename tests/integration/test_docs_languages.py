"""The programs of docs/send-your-spans.md in other languages, with nothing but the endpoint set, up to their rows.

Long: they fetch what the page says from npm, Maven Central and the Go module proxy. A toolchain that is not on this
machine fails its test, in the job of the workflow that has them all.
"""

import asyncio
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from jgo.maven import MavenContext

from deploy.local.server import free_port
from shared.identity import hash_id
from support.pages import SENDING, block
from support.receiver import until
from support.stack import Stack, eventually

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

JAVA_AGENT = "io.opentelemetry.javaagent:opentelemetry-javaagent:2.33.1"
JAVA_API = [f"io.opentelemetry:opentelemetry-{part}:1.49.0" for part in ("api", "context")]
HARMLESS = ("Sharing is only supported", "MetadataLookupWarning", "--trace-warnings", "INFO")


def node(folder: Path) -> None:
    (folder / "shop.js").write_text(block("javascript", "createServer"))
    (folder / "package.json").write_text("{}")


def java(folder: Path) -> None:
    (folder / "Shop.java").write_text(block("java", "class Shop"))
    shutil.copy(jar(folder, JAVA_AGENT), folder / "opentelemetry-javaagent.jar")


def jar(folder: Path, coordinates: str) -> Path:
    context = MavenContext(repo_cache=folder / "repository", timeout=60)
    return Path(context.create_dependency(coordinates).artifact.resolve())


def go(folder: Path) -> None:
    (folder / "main.go").write_text(block("go", "package main"))


@dataclass(frozen=True)
class Language:
    """`lay` puts the page's program into a folder. `said` is in the page's commands; the last of them starts it."""

    name: str
    lay: Callable[[Path], None]
    said: str
    query: str
    row: tuple[object, ...]


REQUEST = "SELECT method, endpoint, user_id FROM endpoint_usage"
LANGUAGES = [
    Language("node", node, "npm install", REQUEST, ("GET", "/orders", hash_id("user-42"))),
    Language("java", java, "-javaagent", REQUEST, ("GET", "/orders", None)),
    Language("go", go, "go run", "SELECT feature_name, user_id FROM feature_usage", ("export", hash_id("user-42"))),
]


async def run(folder: Path, command: str | Sequence[str], **environment: str) -> list[str]:
    """A command in a folder; gives the lines it printed. With no variable of OpenTelemetry but those given."""
    settled = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", "-c", command] if isinstance(command, str) else command,
        cwd=folder,
        env={**settled, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
async def test_the_program_of_the_page_makes_its_row_and_logs_no_error(
    stack: Stack, tmp_path: Path, language: Language
) -> None:
    """Node was silent, Go said `malformed HTTP response`, the Java agent logged errors or did not start at all."""
    folder = tmp_path / language.name
    folder.mkdir()
    language.lay(folder)
    receiver = stack.receiver()
    stack.consumer()
    commands = [line for line in block("sh", language.said).splitlines() if not line.startswith("export ")]
    for command in commands[:-1]:
        await run(folder, command)
    endpoint = f"http://127.0.0.1:{receiver.port_of('HTTP_PORT')}"
    lines = await run(folder, commands[-1], OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert [line for line in lines if not any(harmless in line for harmless in HARMLESS)] == []

    async def is_there() -> bool:
        return language.row in [tuple(row.values()) for row in await stack.fetch(language.query)]

    await eventually(is_there, 20, "the program's row")


TWO_SERVICES = """
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.opentelemetry.api.baggage.Baggage;
import io.opentelemetry.context.Scope;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.concurrent.Executors;

public class Shop {
    public static void main(String[] arguments) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        server.setExecutor(Executors.newFixedThreadPool(2));
        URI orders = URI.create("http://127.0.0.1:" + server.getAddress().getPort() + "/orders");
        server.createContext("/front", exchange -> {
            try (Scope scope = Baggage.current().toBuilder().put("user.id", "user-42").build().makeCurrent()) {
                ask(orders);
            }
            answer(exchange);
        });
        server.createContext("/orders", Shop::answer);
        server.start();
        ask(orders.resolve("/front"));
        System.exit(0);
    }

    static void ask(URI address) throws IOException {
        try {
            HttpClient.newHttpClient().send(HttpRequest.newBuilder(address).build(), BodyHandlers.discarding());
        } catch (InterruptedException error) {
            throw new IOException(error);
        }
    }

    static void answer(HttpExchange exchange) throws IOException {
        exchange.sendResponseHeaders(204, -1);
        exchange.close();
    }
}
"""


async def test_the_java_agent_copies_the_user_from_baggage_onto_the_spans_that_begin_later(
    stack: Stack, tmp_path: Path
) -> None:
    """The page names this setting. The span that was open when the user became known does not get the id."""
    receiver = stack.receiver(IDENTITY_BY_TRACE="false")
    stack.consumer()
    (tmp_path / "Shop.java").write_text(TWO_SERVICES)
    path = ":".join([*(str(jar(tmp_path, part)) for part in JAVA_API), "."])
    await run(tmp_path, ["javac", "-cp", path, "Shop.java"])
    [setting] = re.findall(r"`(otel\.java\.\S+=user\.id)`", SENDING)
    agent = [f"-javaagent:{jar(tmp_path, JAVA_AGENT)}", f"-D{setting}"]
    endpoint = f"http://127.0.0.1:{receiver.port_of('HTTP_PORT')}"
    await run(tmp_path, ["java", *agent, "-cp", path, "Shop"], OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    await stack.settled(2)
    rows = await stack.fetch("SELECT endpoint, user_id FROM endpoint_usage ORDER BY endpoint")
    assert [tuple(row.values()) for row in rows] == [("/front", None), ("/orders", hash_id("user-42"))]


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


async def told_by_a_page(script: str, port: int, endpoint: str, profile: Path) -> str:
    """What a page at http://localhost:port found in `sent`, a promise of a response that its script makes."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    assert chromium is not None, "needs a Chromium"
    page = PAGE.replace("ENDPOINT", endpoint).replace("SCRIPT", script)
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
    command += [f"--user-data-dir={profile}", f"http://localhost:{port}/"]
    with ThreadingHTTPServer(("127.0.0.1", port), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:

            async def is_told() -> bool:
                return bool(told)

            await until(is_told, 60, "the page's own word")
        finally:
            browser.terminate()
            await asyncio.wait_for(browser.wait(), 20)
            server.shutdown()
    [said] = told
    return said


async def feature_names(stack: Stack, rows: int) -> list[str]:
    await stack.settled(rows)
    return [row["feature_name"] for row in await stack.fetch("SELECT feature_name FROM feature_usage")]


@pytest.mark.parametrize(
    ("origins", "expected"),
    [("http://localhost:{port}", "200 {}"), ("https://other.example", "TypeError: Failed to fetch")],
)
async def test_a_page_in_a_browser_sends_across_origins(
    stack: Stack, tmp_path: Path, origins: str, expected: str
) -> None:
    """The browser asks first, and lets no page send where it is not allowed to."""
    port = free_port()
    receiver = stack.receiver(HTTP_CORS_ORIGINS=origins.format(port=port))
    stack.consumer()
    endpoint = f"http://127.0.0.1:{receiver.port_of('HTTP_PORT')}"
    said = await told_by_a_page(block("javascript", "keepalive"), port, endpoint, tmp_path / "profile")
    assert said == expected
    accepted = ["export"] if expected.startswith("200") else []
    assert len(await stack.read_topic()) == len(accepted)
    assert await feature_names(stack, len(accepted)) == accepted


WEB_SDK = """
import { BatchSpanProcessor, WebTracerProvider } from "@opentelemetry/sdk-trace-web";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";

export async function send(endpoint) {
  const exporter = new OTLPTraceExporter({ url: `${endpoint}/v1/traces` });
  const provider = new WebTracerProvider({ spanProcessors: [new BatchSpanProcessor(exporter)] });
  provider.getTracer("shop").startSpan("export", { attributes: { "feature.name": "export" } }).end();
  await provider.forceFlush();
  return new Response("sent");
}
"""


async def test_the_web_sdk_sends_from_a_page(stack: Stack, tmp_path: Path) -> None:
    """The page names its exporter, whose request the browser must let through as well."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "package.json").write_text("{}")
    (folder / "page.js").write_text(WEB_SDK)
    [exporter] = re.findall(r"`(@opentelemetry/exporter-trace-otlp-http)`", SENDING)
    packages = [exporter, "@opentelemetry/sdk-trace-web", "esbuild"]
    await run(folder, ["npm", "install", "--no-audit", "--no-fund", *packages])
    await run(folder, "npx esbuild page.js --bundle --format=iife --global-name=shop --outfile=bundle.js")
    script = (folder / "bundle.js").read_text() + "const sent = shop.send(endpoint);"
    port = free_port()
    receiver = stack.receiver(HTTP_CORS_ORIGINS=f"http://localhost:{port}")
    stack.consumer()
    endpoint = f"http://127.0.0.1:{receiver.port_of('HTTP_PORT')}"
    assert await told_by_a_page(script, port, endpoint, tmp_path / "profile") == "200 sent"
    assert await feature_names(stack, 1) == ["export"]
