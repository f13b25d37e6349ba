"""docs/contributing.md, followed to the letter on a copy: each patch is applied, and what it adds is seen at work."""

import asyncio
import json
import re
import sys
import urllib.request
from pathlib import Path

from opentelemetry.sdk.trace.export import SpanExportResult

from deploy.local.server import free_port
from support.project import Copy, sections
from support.spans import Shop, exporter
from support.stack import Stack, eventually

PAGE = sections("contributing.md", levels=3)

BY_BOTH = """
import json
from receiver.settings import ReceiverSettings
from receiver.__main__ import rules_of
from receiver.translate.engines.engine import new_engine
from shared.engine import is_native_built
from support.otlp import request, span

login = {"event.category": "user_activity", "event.type": "login", "user.id": "u-1"}
body = request([span(bytes(range(1, 17)), bytes(range(1, 9)), login)])
said = []
for name in ["python", *(["native"] if is_native_built() else [])]:
    translation = new_engine(rules_of(ReceiverSettings()), setting=name, spans_max=10).open(body)
    while not translation.step(1.0):
        pass
    said.append(dict(translation.rejected))
print(json.dumps(said))
"""


async def test_a_reject_reason_a_metric_and_a_command_are_where_the_page_says(stack: Stack, tmp_path: Path) -> None:
    """Whoever changes the code for the first time begins there."""
    copy = Copy(tmp_path / "project", stack.environment())
    for title, patches in (("A metric", 1), ("A command", 1)):
        await copy.follow(PAGE[title], patches=patches)
    counts = json.loads(await copy.python("consumer", "tables", "--json"))
    assert counts == {"user_activity": 0, "endpoint_usage": 0, "feature_usage": 0, "model_usage": 0}
    assert "How many rows has each table?" in await copy.python("consumer", "tables", "--help")
    assert "receiver_request_spans_sum 3.0" in await metrics_after_three_spans(copy)

    await copy.follow(PAGE["A reject reason"], patches=1)
    copy.environment["PYTHONPATH"] += f":{copy.folder / 'tests'}"
    said = json.loads(await copy.run(sys.executable, "-c", BY_BOTH))
    assert said
    assert all(rejected == {"missing_session_id": 1} for rejected in said), said


async def metrics_after_three_spans(copy: Copy) -> str:
    """From a receiver of the copy."""
    port, metrics_port = free_port(), free_port()
    ports = {"PORT": str(port), "HTTP_PORT": "0", "RECEIVER_METRICS_PORT": str(metrics_port)}
    with (copy.folder / "receiver.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "receiver"), cwd=copy.folder, env={**copy.environment, **ports}, stderr=log
        )
    try:
        client, shop = exporter(port, timeout_s=20), Shop(1)
        sent = await asyncio.to_thread(client.export, [shop.span({"feature.name": "export"}) for _ in range(3)])
        assert sent is SpanExportResult.SUCCESS
        client.shutdown()

        async def served() -> str:
            text = await asyncio.to_thread(page, f"http://127.0.0.1:{metrics_port}/metrics")
            return text if re.search(r"^receiver_spans_received_total 3", text, re.MULTILINE) else ""

        return str(await eventually(served, 60, "three spans counted"))
    finally:
        process.terminate()
        await process.wait()


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
    return text
