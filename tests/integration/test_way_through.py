"""From a stock OpenTelemetry SDK to rows in Postgres, through every process and server there is."""

import asyncio
import base64
import random
import statistics
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.trace import SpanKind

from support.spans import Sent, Shop, exported, exporter, hashed
from support.stack import TABLES, Stack, eventually

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


async def assert_rows(stack: Stack, expected: list[Sent], seconds: float = 20) -> None:
    """Each span is its row, and there are no other rows."""

    async def are_there() -> bool:
        return await stack.row_count() >= len(expected)

    await eventually(are_there, seconds, f"{len(expected)} rows")
    rows = {table: await stack.rows(table) for table in TABLES}
    assert [
        sent for sent in expected if not sent.matches(rows[sent.table].get(sent.id, dict(sent.columns, id=0, _=0)))
    ] == []
    assert {id_ for table in rows.values() for id_ in table} == {sent.id for sent in expected}


async def test_spans_of_a_stock_sdk_become_rows_in_all_tables(stack: Stack) -> None:
    """The product's main job, by the client that its users have."""
    receiver = stack.receiver()
    stack.consumer()
    shop = Shop(1)
    expected = [shop.any() for _ in range(300)]
    ignored = [shop.span({"db.system": "postgresql"}, SpanKind.CLIENT) for _ in range(50)]
    client = exporter(receiver.port_of("PORT"))
    assert await asyncio.to_thread(exported, client, expected)
    assert (await asyncio.to_thread(client.export, ignored)).name == "SUCCESS"
    client.shutdown()
    await assert_rows(stack, expected)
    assert {sent.table for sent in expected} == set(TABLES)


async def test_the_same_request_five_times_in_parallel_and_shuffled_is_one_row_a_span(stack: Stack) -> None:
    """Retries of Collectors overlap; analytics must not count them."""
    receiver = stack.receiver()
    stack.consumer(CONSUMER_BATCH_ROWS="300")
    shop = Shop(2)
    expected = [shop.any() for _ in range(400)]
    generator = random.Random(2)
    bodies = []
    for _ in range(5):
        shuffled = generator.sample(expected, len(expected))
        bodies += [
            encode_spans([sent.span for sent in shuffled[at : at + 80]]).SerializeToString() for at in range(0, 400, 80)
        ]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{receiver.port_of('PORT')}") as channel:
        replies = await asyncio.gather(*(channel.unary_unary(EXPORT)(body) for body in bodies))
    assert set(replies) == {b""}
    await stack.settled(2_000)
    await assert_rows(stack, expected)
    ledger = await stack.ledger()
    fates = ("stored", "duplicates", "dead_lettered", "suppressed", "expired", "skipped")
    assert all(line["next_offset"] - line["first_offset"] == sum(line[fate] for fate in fates) for line in ledger)
    assert (sum(line["stored"] for line in ledger), sum(line["duplicates"] for line in ledger)) == (400, 1_600)


async def test_a_span_is_a_row_within_about_a_second(stack: Stack) -> None:
    """Live dashboards feel live. Measured from the exporter's call; the bound is generous, as machines are noisy."""
    receiver = stack.receiver()
    stack.consumer()
    shop = Shop(3)
    client = exporter(receiver.port_of("PORT"))
    assert await asyncio.to_thread(exported, client, [shop.any()])
    took: list[float] = []
    for _ in range(30):
        sent = shop.any()
        started = time.monotonic()
        assert await asyncio.to_thread(exported, client, [sent])

        async def is_row(sent: Sent = sent) -> bool:
            return bool(await stack.fetch(f"SELECT 1 FROM {sent.table} WHERE id = $1", sent.id))

        await eventually(is_row, 10, "the row", every_s=0.01)
        took.append(time.monotonic() - started)
    client.shutdown()
    print(f"export call to row: median {statistics.median(took):.3f} s, worst {max(took):.3f} s")  # noqa: T201  shown by -s
    assert statistics.median(took) < 1
    assert max(took) < 5


EMAIL = "ada.lovelace@canary-mail.example"
SESSION = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnktand0In0.c2lnbmF0dXJlLWNhbmFyeQ"
TOKEN = "canary-opaque-value-7391"
API_KEY = "sk-canary00112233445566778899aabbccdd"
ORGANIZATION = "canary organization"


async def test_a_canary_identity_is_found_nowhere(stack: Stack, tmp_path: Path) -> None:
    """The promise to the privacy officer: no raw id, e-mail, token or key, in any place where bytes come to rest."""
    receiver = stack.receiver(LOG_LEVEL="DEBUG", API_KEYS="canary-api-key-of-the-caller")
    consumer = stack.consumer(LOG_LEVEL="DEBUG")
    shop = Shop(4)
    url = f"https://ada:{TOKEN}@shop.example/reset/{API_KEY}?token={TOKEN}&mail={EMAIL}"
    common = {"user.id": EMAIL, "organization.id": ORGANIZATION, "session.id": SESSION, "metadata.token": TOKEN}
    common |= {
        "metadata.note": f"mail {EMAIL}",
        "metadata.link": url,
        "metadata.owner": ORGANIZATION,
        "metadata.k": API_KEY,
    }
    spans = [
        shop.span({**common, "event.category": "user_activity", "event.type": "login"}),
        shop.span({**common, "feature.name": f"invite {EMAIL}", "feature.action": SESSION}),
        shop.span({**common, "http.request.method": "GET", "url.full": url}, SpanKind.SERVER),
        shop.span({**common, "http.method": "GET", "http.target": f"/users/{EMAIL}/k/{API_KEY}"}, SpanKind.SERVER),
        shop.span(
            {**common, "event.category": "user_activity", "event.type": "x", "user.id": b"\xff" + EMAIL.encode()}
        ),
        shop.span({**common, "event.category": EMAIL}),
    ]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{receiver.port_of('PORT')}") as channel:
        reply = await channel.unary_unary(EXPORT)(
            encode_spans(spans).SerializeToString(), metadata=[("x-api-key", "canary-api-key-of-the-caller")]
        )
    await stack.send(
        [(0, b'{"schema_version":1,"table":"feature_usage","oops":1}')]
    )  # a dead letter of somebody else's
    await stack.settled(5)
    assert await stack.row_count() == 4
    assert {row["user_id"] for row in (await stack.rows("feature_usage")).values()} == {hashed(EMAIL)}
    places = {"reply": reply}
    for record in await stack.read_topic():
        places[f"record {record.partition}:{record.offset}"] = b"".join(
            [record.key or b"", record.value or b"", *(value for _, value in record.headers)]
        )
    for process in (receiver, consumer):
        places[f"log of {process.name}"] = process.log.read_bytes()
        port = next(port for name, port in process.ports.items() if name.endswith("METRICS_PORT"))
        places[f"metrics of {process.name}"] = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/metrics")
    backup = tmp_path / "backup"
    backing_up = [
        stack.postgres.bin_dir / "pg_basebackup",
        "-D",
        backup,
        "-d",
        stack.postgres.url("postgres"),
        "-c",
        "fast",
    ]
    await asyncio.to_thread(subprocess.run, backing_up, check=True)
    for path in backup.rglob("*"):
        if path.is_file():
            places[f"backup {path.relative_to(backup)}"] = path.read_bytes()
    assert any(hashed(EMAIL).encode() in content for place, content in places.items() if place.startswith("backup"))
    found = [
        (place, form)
        for place, content in places.items()
        for canary in (EMAIL, SESSION, TOKEN, API_KEY, ORGANIZATION, "canary-api-key-of-the-caller")
        for form in forms(canary)
        if form in content
    ]
    assert found == []


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        content: bytes = answer.read()
    return content


def forms(text: str) -> Iterator[bytes]:
    """As sent, URL-encoded, and in base64 at each of the three alignments."""
    raw = text.encode()
    yield raw
    yield urllib.parse.quote(text, safe="").encode()
    yield urllib.parse.quote_plus(text).encode()
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw)
        yield encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4]
