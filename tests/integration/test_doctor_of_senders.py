"""Doctor reads a real receiver's metrics and says what its senders do wrong, and how to mend it."""

import ast
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import receiver.metrics
from consumer.operations.doctor import senders
from deploy.local.kafka import KafkaBroker
from deploy.local.server import free_port
from receiver.translate import mapping
from receiver.translate.outcome import IGNORE_REASONS, REJECT_REASONS
from support.command import answered
from support.http import exchange
from support.otlp import features, request, span
from support.receiver import Receiver, export, until
from support.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
OF_SENDERS = {"senders", "senders_refused", "senders_put_off", "senders_left", "spans_rejected", "spans_ignored"}
OF_SENDERS |= {"receiver_metrics", "senders_wrong_door"}


async def findings(stack: Stack, *arguments: str, **settings: str) -> list[dict[str, Any]]:
    """What doctor says of senders."""
    answer = await answered(stack, "doctor", *arguments, **settings)
    assert answer["ok"] is True, "a sender's mistake is a warning: nothing here is broken"
    return [finding for finding in answer["findings"] if finding["check"] in OF_SENDERS]


@pytest.fixture
async def sent_to(stack: Stack, tmp_path: Path) -> AsyncIterator[Receiver]:
    await stack.create_topic()
    await asyncio.to_thread(stack.consumer)
    receiver = Receiver(
        stack.kafka.bootstrap_servers,
        tmp_path,
        API_KEYS="right-key-1",
        KAFKA_TOPIC=stack.topic,
        KAFKA_SUPPRESSIONS_TOPIC=stack.suppressions_topic,
    ).start()
    await receiver.ready()
    yield receiver
    receiver.kill()


async def test_doctor_says_what_is_wrong_with_each_kind_of_sender(stack: Stack, sent_to: Receiver) -> None:
    """The team that sends has no access here; whoever runs doctor must be able to tell them what to change."""
    url = f"http://127.0.0.1:{sent_to.metrics_port}/metrics"
    [silent] = await findings(stack, "--receiver-metrics", url)
    assert silent["check"] == "senders"
    assert "no request has come" in silent["detail"]
    key = [("x-api-key", "right-key-1")]
    plain = span(bytes([1]) * 16, bytes([1]) * 8, {"db.system": "postgresql"})
    async with sent_to.channel() as channel:
        assert (await export(channel, request([]), metadata=key)).code == "OK"
        [empty] = await findings(stack, "--receiver-metrics", url)
        assert "without a span" in empty["detail"]
        assert (await export(channel, request([plain] * 5), metadata=key)).code == "OK"
        [ignored] = await findings(stack, "--receiver-metrics", url)
        assert (ignored["check"], ignored["severity"]) == ("spans_ignored", "warning")
        assert "5 of 5 as not_product_event" in ignored["detail"]
        assert "receiver explain" in ignored["remedy"]
        anonymous = span(bytes([2]) * 16, bytes([2]) * 8, {"event.category": "user_activity", "event.type": "login"})
        answer = await export(channel, request([anonymous, *features(9)]), metadata=key)
        assert (answer.code, answer.rejected) == ("OK", 1)
        assert (await export(channel, request(features(1)))).code == "UNAUTHENTICATED"
        assert (await export(channel, b"\xff", metadata=key)).code == "INVALID_ARGUMENT"
    by_detail = {finding["detail"]: finding for finding in await findings(stack, "--receiver-metrics", url)}
    assert by_detail.keys() == {
        "1 of 5 requests were answered UNAUTHENTICATED",
        "1 of 5 requests were answered INVALID_ARGUMENT",
        "1 of 10 events were rejected: missing_user_id",
    }
    assert "API_KEYS" in by_detail["1 of 5 requests were answered UNAUTHENTICATED"]["remedy"]
    assert "user_id" in by_detail["1 of 10 events were rejected: missing_user_id"]["remedy"]
    await exchange(sent_to.port, b"POST /v1/traces HTTP/1.1\r\n\r\n")
    [door] = [
        each for each in await findings(stack, "--receiver-metrics", url) if each["check"] == "senders_wrong_door"
    ]
    assert door["detail"] == "1 connections used another protocol than gRPC on PORT"
    assert "HTTP_PORT" in door["remedy"]


async def test_doctor_of_good_senders_says_nothing_of_them_and_finds_this_hosts_receiver_itself(
    stack: Stack, sent_to: Receiver
) -> None:
    """A warning that is always there is not read."""
    port = str(sent_to.metrics_port)
    assert await findings(stack, RECEIVER_METRICS_PORT=port) != []
    async with sent_to.channel() as channel:
        assert (await export(channel, request(features(200)), metadata=[("x-api-key", "right-key-1")])).code == "OK"

    async def is_content() -> bool:
        return await findings(stack, RECEIVER_METRICS_PORT=port) == []

    await until(is_content, 20, "nothing to say")


async def test_a_receiver_that_runs_elsewhere_is_no_finding_unless_it_was_named(
    stack: Stack, kafka: KafkaBroker
) -> None:
    """Consumer and receiver are mostly on two machines."""
    await stack.create_topic()
    stranger = await asyncio.to_thread(stack.consumer)
    nobody = str(free_port())
    assert await findings(stack, RECEIVER_METRICS_PORT=nobody) == []
    assert await findings(stack, RECEIVER_METRICS_PORT="0") == []
    for url in (f"http://127.0.0.1:{nobody}/metrics", "no url"):
        [finding] = await findings(stack, "--receiver-metrics", url)
        assert (finding["check"], finding["severity"]) == ("receiver_metrics", "warning")
    url = f"http://127.0.0.1:{stranger.port_of('CONSUMER_METRICS_PORT')}/metrics"
    assert [finding["check"] for finding in await findings(stack, "--receiver-metrics", url)] == ["receiver_metrics"]


def test_doctor_knows_every_reason_and_asks_for_metrics_that_exist() -> None:
    """It may not import the receiver, so a renamed reason or metric would be found by nobody."""
    assert {*senders.REJECTED, *mapping.REJECT_REASONS} == set(REJECT_REASONS)
    for reason in mapping.REJECT_REASONS:
        assert reason.partition("_")[2] in senders.remedy_of(reason)
    assert senders.IGNORED.keys() == set(IGNORE_REASONS)
    assert senders.DROPPED.keys() <= set(receiver.metrics.CODES)
    texts = {
        node.value
        for node in ast.walk(ast.parse((ROOT / "consumer/operations/doctor/senders.py").read_text()))
        if is_text(node)
    }
    served = {f"{metric._name}_total" for metric in vars(receiver.metrics).values() if hasattr(metric, "_name")}
    named = {text for text in texts if text.startswith("receiver_")}
    assert len(named) == 7
    assert named <= served


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
