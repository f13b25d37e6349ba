"""The first start, before there are any topics: what a newcomer reads on the screen."""

import json
from pathlib import Path

import pytest

from deploy.local.kafka import KafkaBroker
from support.stack import Stack, eventually


@pytest.mark.parametrize("first", ["receiver", "consumer"])
async def test_a_first_start_logs_no_error(stack: Stack, tmp_path: Path, first: str) -> None:
    """ERROR wants a person, and nothing is wrong with a cluster that is empty yet."""
    with KafkaBroker(tmp_path / "new") as kafka:
        stack.kafka = kafka
        await check(stack, first)


async def check(stack: Stack, first: str) -> None:
    made = [stack.receiver, stack.consumer]
    processes = [start(is_awaited=False) for start in (made if first == "receiver" else reversed(made))]

    async def are_connected() -> bool:
        lines = [line for process in processes for line in logged(process.log)]
        return {"broker_connected", "positions_loaded"} <= {line["event"] for line in lines}

    await eventually(are_connected, 60, "both connected")
    lines = [line for process in processes for line in logged(process.log)]
    assert [line for line in lines if line["level"] == "error"] == []


def logged(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
