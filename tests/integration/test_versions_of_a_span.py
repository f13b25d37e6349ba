"""A span that is sent again in other company: its trace names somebody in one request, and nobody in the other."""

import itertools

import orjson

from receiver.translate.engines.engine import Reference
from shared.identity import hash_id
from support.command import command
from support.encoding import PLAIN, SERVER, request_bytes, resource_bytes, span_bytes
from support.engines import answers_by
from support.stack import Stack

PARTITIONS = 4
SPAN, MIDDLEWARE = (1).to_bytes(8, "big"), (2).to_bytes(8, "big")
NAMED = {"user.id": "anna-4711", "organization.id": "acme", "session.id": "s-1"}


def version(trace_id: bytes, *, is_named: bool) -> tuple[bytes, bytes]:
    """Key and value of the record of a served request, sent with the span that names its user or without it."""
    served = {"http.request.method": "GET", "http.route": "/orders/{id}"}
    spans = [span_bytes(served, kind=SERVER, trace_id=trace_id, span_id=SPAN)]
    if is_named:
        spans.append(span_bytes(NAMED, trace_id=trace_id, span_id=MIDDLEWARE, parent=SPAN))
    body = request_bytes((resource_bytes({"service.name": "shop"}), spans))
    [(key, value)] = answers_by(Reference(PLAIN, spans_max=10), body).records
    assert ("user_id" in orjson.loads(value)) is is_named
    return key, value


async def test_both_versions_in_any_order_give_the_same_row(stack: Stack) -> None:
    """A retry is cut as the sender's queue has it. Who did it must not depend on which version came last."""
    await stack.create_topic(PARTITIONS)
    orders = [order for length in (2, 3) for order in itertools.product((True, False), repeat=length) if any(order)]
    count = 0
    for number, order in enumerate(orders, 1):
        for is_named in order:
            key, value = version(number.to_bytes(16, "big"), is_named=is_named)
            await stack.send([(int(key[-8:], 16) % PARTITIONS, value)], key=key)
            count += 1
    consumer = stack.consumer()
    await stack.settled(count)
    before = await stack.rows("endpoint_usage")
    assert len(before) == len(orders)
    for row in before.values():
        found = {name: row[name] for name in ("user_id", "organization_id", "service_name", "endpoint", "method")}
        assert found == {
            "user_id": hash_id("anna-4711"),
            "organization_id": hash_id("acme"),
            "service_name": "shop",
            "endpoint": "/orders/{id}",
            "method": "GET",
        }
    assert (await command(stack, "rewind", "--to-start", "--yes"))[0] == 0
    await stack.settled(count)
    assert await stack.rows("endpoint_usage") == before
    assert consumer.is_running
    assert (await command(stack, "audit"))[0] == 0
