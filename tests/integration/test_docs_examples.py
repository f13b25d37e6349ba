"""The examples of docs/send-your-spans.md do what the page says, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

from shared.identity import hash_id
from support.pages import README, SENDING, block
from support.stack import Stack, eventually

ROOT = Path(__file__).resolve().parents[2]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    settled = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        command, cwd=ROOT, env={**settled, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


async def test_the_python_of_the_page_makes_a_row_in_each_table(stack: Stack) -> None:
    """It is what a newcomer pastes first."""
    receiver = stack.receiver()
    stack.consumer()
    endpoint = f"http://127.0.0.1:{receiver.port_of('HTTP_PORT')}"
    done = run([sys.executable, "-c", block("python", "BatchSpanProcessor")], OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr

    async def are_there() -> bool:
        return await stack.row_count() == 3

    await eventually(are_there, 20, "three rows")
    [login] = (await stack.rows("user_activity")).values()
    [export] = (await stack.rows("feature_usage")).values()
    [request] = (await stack.rows("endpoint_usage")).values()
    assert {row["user_id"] for row in (login, export, request)} == {hash_id("user-42")}
    assert (login["event_type"], login["session_id"], login["deployment_type"]) == ("login", "s-1", "cloud")
    assert (export["feature_name"], export["action"]) == ("export", "created")
    assert '"plan": "pro"' in str(export["event_metadata"])
    assert (request["method"], request["endpoint"], request["status_code"]) == ("GET", "/orders/{order}", 200)


async def test_the_curl_of_the_readme_and_of_the_page_make_a_row(stack: Stack) -> None:
    """Word for word: a line that is missing there is where a newcomer stops."""
    receiver = stack.receiver()
    stack.consumer()
    endpoint = f"http://127.0.0.1:{receiver.port_of('HTTP_PORT')}"
    for page in (README, SENDING):
        curl = block("sh", "curl -sS", page).replace("http://localhost:4318", endpoint)
        done = run(["sh", "-c", curl])
        assert (done.returncode, done.stdout) == (0, "{}"), done.stderr

    async def are_there() -> bool:
        features = (await stack.rows("feature_usage")).values()
        return [(row["feature_name"], row["user_id"]) for row in features] == [("export", hash_id("user-42"))]

    await eventually(are_there, 20, "one row, as README and page send one id")


def test_explain_prints_what_the_page_shows() -> None:
    """Whoever compares must not find a difference that is ours."""
    [command] = re.findall(r"^python -m (receiver explain \S+)$", SENDING, re.MULTILINE)
    done = run([sys.executable, "-m", *command.split()])
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == block("", "span 1: event")
