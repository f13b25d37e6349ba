"""Calls of language models -> model_usage, and the weight of sampled spans."""

from typing import Any

import pytest

from receiver.translate.outcome import Ignored
from receiver.translate.sampling import weight_of
from shared.identity import hash_id
from shared.wire import encode
from support.encoding import CLIENT, SERVER, outcome

GEN_AI = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.usage.input_tokens": 1234,
    "gen_ai.usage.output_tokens": "567",
    "user.id": "anna",
}
OPENINFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.provider": "anthropic",
    "llm.model_name": "claude-3-5-sonnet-20241022",
    "llm.token_count.prompt": 10,
    "llm.token_count.completion": 20,
}
OWN = ("operation", "provider", "model", "input_tokens", "output_tokens", "duration_ms", "error_type")


def own(found: Any) -> tuple[Any, ...]:
    assert found.table == "model_usage", found
    return tuple(getattr(found, name) for name in OWN)


def test_a_gen_ai_span_is_a_row() -> None:
    """OpenTelemetry's own conventions."""
    found: Any = outcome(GEN_AI, kind=CLIENT)
    assert own(found) == ("chat", "openai", "gpt-4o-2024-08-06", 1234, 567, 12.5, None)
    assert found.user_id == hash_id("anna")
    failed = {**GEN_AI, "gen_ai.response.model": "", "error.type": "timeout"}
    assert own(outcome(failed))[2:] == ("gpt-4o", 1234, 567, 12.5, "timeout")
    old = {"gen_ai.operation.name": "text_completion", "gen_ai.system": "aws.bedrock"}
    assert own(outcome(old)) == ("text_completion", "aws.bedrock", None, None, None, 12.5, None)


@pytest.mark.parametrize(("kind", "operation"), [("LLM", "chat"), ("EMBEDDING", "embeddings")])
def test_an_openinference_span_is_a_row(kind: str, operation: str) -> None:
    """LangChain, LlamaIndex and the like: one word for one thing."""
    found = own(outcome({**OPENINFERENCE, "openinference.span.kind": kind}))
    assert found == (operation, "anthropic", "claude-3-5-sonnet-20241022", 10, 20, 12.5, None)


@pytest.mark.parametrize("kind", ["CHAIN", "TOOL", "AGENT", "RETRIEVER", "llm", 7])
def test_other_steps_of_a_chain_are_not_calls_of_a_model(kind: Any) -> None:
    """Their tokens are those of the calls inside, counted twice."""
    assert outcome({**OPENINFERENCE, "openinference.span.kind": kind}) == Ignored("not_product_event")


def test_other_rules_go_first() -> None:
    """Inferred after a feature and a served request."""
    served = {**GEN_AI, "http.request.method": "POST", "http.route": "/chat"}
    assert outcome(served, kind=SERVER).table == "endpoint_usage"  # type: ignore[union-attr]
    assert outcome({**GEN_AI, "feature.name": "assistant"}).table == "feature_usage"  # type: ignore[union-attr]
    assert outcome({**GEN_AI, "event.category": "model_usage"}).table == "model_usage"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        *((0, 0), (2**63 - 1, 2**63 - 1), ("007", 7), ("9223372036854775807", 2**63 - 1)),
        *((value, None) for value in (-1, "9" * 19, "1.5", 1.5, "x", [1], True)),
    ],
)
def test_tokens_are_whole_numbers_that_the_column_holds(value: Any, tokens: int | None) -> None:
    """A bigint."""
    assert own(outcome({**GEN_AI, "gen_ai.usage.input_tokens": value}))[3] == tokens


def test_prompts_and_answers_are_never_read() -> None:
    """They hold whatever people type."""
    secret = "my diagnosis is"
    texts = {
        "gen_ai.input.messages": secret,
        "gen_ai.output.messages": [secret],
        "gen_ai.system_instructions": secret,
        "gen_ai.prompt": secret,
        "gen_ai.prompt.0.content": secret,
        "gen_ai.completion": secret,
        "llm.input_messages.0.message.content": secret,
        "llm.output_messages.0.message.content": secret,
        "input.value": secret,
        "output.value": secret,
        "llm.prompts": secret,
    }
    for call in (GEN_AI, OPENINFERENCE):
        assert secret not in encode(outcome({**call, **texts})).value.decode()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "weight"),
    [
        (b"", 1.0),
        (b"ot=th:0", 1.0),
        (b"ot=th:8", 2.0),
        (b"ot=th:c", 4.0),
        (b"ot=th:c;rv:d29d6a7215ced0", 4.0),
        (b"ot=rv:d29d6a7215ced0;th:c", 4.0),
        (b"vendor=1,ot=th:e", 8.0),
        (b"vendor=1 , ot=th:e , x=y", 8.0),
        (b"ot=th:fd70a3d70a3d71", 100.0),
        (b"ot=th:ffffffffffffff", 2.0**56),
        (b"ot=th:", 1.0),
        (b"ot=th:C", 1.0),
        (b"ot=th:xyz", 1.0),
        (b"ot=th:123456789abcdef", 1.0),  # 15 digits
        (b"ot=xth:c", 1.0),
        (b"not=th:c", 1.0),
        (b"ot=th:c0g", 1.0),
        (b"\xff\xfeot=th:c", 1.0),
        (b"x=" + b"y" * 5000 + b",ot=th:c", 1.0),
    ],
)
def test_a_sampled_span_stands_for_more(state: bytes, weight: float) -> None:
    """Sums of weights are what happened, sampled or not."""
    assert weight_of(state) == pytest.approx(weight, rel=1e-12)
    found: Any = outcome(GEN_AI, trace_state=state)
    assert found.weight == weight_of(state)
