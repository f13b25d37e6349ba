"""Spans of a few makes, as senders repeat them, and some that are nearly such."""

import random
from collections.abc import Iterator

from support.encoding import CLIENT, LOGIN, SERVER, field, resource_bytes, span_bytes
from support.mutation import Mutator

RESOURCE = resource_bytes({"service.name": "shop", "host.name": "a", "deployment.type": "cloud"})
HTTP = {
    "http.request.method": "GET",
    "url.path": "/orders/17",
    "http.response.status_code": 200,
    "user_agent.original": "curl",
    "server.port": 8080,
    "load": 0.5,
    "user.id": "user-17",
    "organization.id": "acme",
}
FEATURE = {"feature.name": "export", "feature.action": "created", "metadata.plan": "pro", "metadata.rows": 17}

# Attributes of "url.path" whose values are malformed, or of no kind that is passed over unread.
STRANGE = [
    b"\x12" + (field(1, b"url.path") + field(2, field(1, b"/a")))[1:],
    *(
        field(1, b"url.path") + value
        for value in (
            b"",
            b"\x12",
            b"\x12\x00",
            b"\x12\x01",
            b"\x12\x01\x0a",
            field(2, b"\x0a"),
            field(2, b"\x0a\x05/a"),
            field(2, b"\x0a\x01/a"),
            field(2, b"\x0a\x02/a\x80"),
            field(2, b"\x18"),
            field(2, b"\x18\x80"),
            field(2, b"\x18\x01\x80"),
            field(2, b"\x18\x01\x01"),
            field(2, b"\x18" + b"\xff" * 9 + b"\x01"),
            field(2, b"\x18" + b"\xff" * 10 + b"\x01"),
            field(2, b"\x21" + bytes(7)),
            field(2, b"\x21" + bytes(9)),
            b"\x12\x05" + field(1, b"/a"),
            b"\x12\x03" + field(1, b"/a"),
            b"\x22" + field(2, field(1, b"/a"))[1:],
            field(2, b"\x10\x80"),
            field(2, b"\x32\x01\x0a"),
        )
    ),
]


def damaged(seed: int, spans: int) -> Iterator[bytes]:
    generator = random.Random(seed)
    seeds = [span_bytes(LOGIN), span_bytes(HTTP, kind=SERVER), span_bytes(FEATURE), span_bytes(HTTP, kind=CLIENT)]
    for _ in range(spans):
        raw = generator.choice(seeds)
        yield Mutator(generator).span(raw) if generator.random() < 0.5 else raw[: generator.randrange(len(raw) + 1)]
