"""A service without templates, from its spans to its rows and to doctor's words."""

import time

import grpc
import pytest

from shared.engine import is_native_built
from support.command import answered, command
from support.encoding import SERVER, request_bytes, resource_bytes, span_bytes
from support.receiver import EXPORT
from support.stack import Stack


@pytest.mark.parametrize(
    "engine", ["native", pytest.param("python", marks=pytest.mark.long)] if is_native_built() else ["python"]
)
async def test_the_bound_is_in_the_rows_and_doctor_names_the_service(stack: Stack, engine: str) -> None:
    """The team whose service it is can mend it, once somebody tells them."""
    receiver = stack.receiver(ENGINE=engine, ENDPOINTS_PER_SERVICE="10")
    consumer = stack.consumer()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{receiver.port_of('PORT')}") as channel:
        for start in (0, 20):
            await channel.unary_unary(EXPORT)(visits(start, 20), timeout=10)
    await stack.settled(80)
    found = await stack.fetch("SELECT service_name, endpoint, count(*) FROM endpoint_usage GROUP BY 1, 2")
    by_service: dict[str, dict[str, int]] = {service: {} for service in ("slugs", "routes")}
    for row in found:
        by_service[row["service_name"]][row["endpoint"]] = row["count"]
    assert by_service["routes"] == {"/people/{name}": 40}
    assert by_service["slugs"]["/people/{other}"] == 30
    assert len(by_service["slugs"]) == 11
    before = await stack.rows("endpoint_usage")
    assert (await command(stack, "rewind", "--to-start", "--yes"))[0] == 0
    await stack.settled(80)
    assert await stack.rows("endpoint_usage") == before
    assert consumer.is_running
    [told] = [each for each in (await answered(stack, "doctor"))["findings"] if each["check"] == "endpoints"]
    assert "slugs (as /people/{other})" in told["detail"]
    assert "routes" not in told["detail"]
    assert "http.route" in told["remedy"]


def visits(start: int, count: int) -> bytes:
    """Of twice so many people, once as paths and once with a template."""

    def spans(key: str, path: str, first: int) -> list[bytes]:
        return [
            span_bytes(
                {"http.request.method": "GET", key: path.format(number)},
                kind=SERVER,
                span_id=(first + number).to_bytes(8, "big"),
                start_ns=time.time_ns() - 1_000_000_000,
                end_ns=time.time_ns(),
            )
            for number in range(start, start + count)
        ]

    return request_bytes(
        (resource_bytes({"service.name": "slugs"}), spans("url.path", "/people/p{:x}y", 1)),
        (resource_bytes({"service.name": "routes"}), spans("http.route", "/people/{{name}}", 1001)),
    )
