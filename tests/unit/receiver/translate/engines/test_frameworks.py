"""Stock instrumentation of real frameworks: the right endpoint, method, status and user in every row."""

import pytest

from receiver.decode.spans import read_request
from receiver.translate.engines.reference import read_resource, translate
from receiver.translate.outcome import Ignored
from shared.wire import encode
from support.encoding import PLAIN, traces_of
from support.engines import Answers, answers_by, engines
from support.frameworks import ROWS, sent_by, table_of


@pytest.mark.parametrize("framework", ROWS)
def test_a_framework_fills_every_column(framework: str) -> None:
    """Without a line of ours in their code; a user is named the way the framework's people do it."""
    groups = read_request(sent_by(framework), spans_max=1000)
    traces = traces_of(groups, PLAIN)
    outcomes = [
        translate(span, read_resource(group.resource, PLAIN), PLAIN, traces=traces)
        for group in groups
        for span in group.spans
    ]
    events = [outcome for outcome in outcomes if not isinstance(outcome, Ignored)]
    assert {event.table for event in events} == {table_of(framework)}  # type: ignore[union-attr]
    rows = [{name: getattr(event, name) for name in ROWS[framework][0]} for event in events]
    assert sorted(rows, key=str) == sorted(ROWS[framework], key=str)
    for event in events:
        assert event.service_name == framework  # type: ignore[union-attr]
        assert event.duration_ms > 0  # type: ignore[union-attr]
        assert b"private" not in encode(event).value  # type: ignore[arg-type]
    for engine in engines(PLAIN):
        assert answers_by(engine, sent_by(framework)) == Answers.of(outcomes), engine.name
