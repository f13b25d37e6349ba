"""The original backend's and frontend's requests -> the rows that they have always had."""

import json

import pytest

from receiver.decode.spans import read_request
from receiver.translate.engines.reference import read_resource, translate
from receiver.translate.outcome import Ignored, Rejected
from shared.identity import Hasher
from shared.wire import encode
from support.encoding import rules, traces_of
from support.golden import SENDERS, fates_of, sent_by


@pytest.mark.parametrize("sender", SENDERS)
def test_the_original_senders_get_the_rows_that_they_know(sender: str) -> None:
    """They send hashes, old names and new ones, and nobody is going to change them for us."""
    by = rules(hashed=Hasher("prehashed"))
    fates = []
    groups = read_request(sent_by(sender), spans_max=100)
    traces = traces_of(groups, by)
    for group in groups:
        resource = read_resource(group.resource, by)
        for span in group.spans:
            found = translate(span, resource, by, traces=traces)
            is_event = not isinstance(found, Ignored | Rejected)
            fates.append(json.loads(encode(found).value) if is_event else found.reason)
    assert fates == fates_of(sender)
