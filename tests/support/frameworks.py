"""What real frameworks sent, recorded by tests/golden/frameworks/record.py, and the rows it must become, by hand."""

import hashlib
from typing import Any

from support.golden import FOLDER

ANNA = hashlib.sha256(b"anna-4711").hexdigest()[:16]
CALL = {"operation": "chat", "provider": "openai", "model": "gpt-4o-2024-08-06", "user_id": ANNA}
TOKENS = {"input_tokens": 12, "output_tokens": 34}


def requests(found: str, missing: str, failing: str = "/boom", *, stranger: bool = False) -> list[dict[str, Any]]:
    """An ordinary request, a 404 and a 500. `stranger`: on a 404 the framework asks nobody for a user."""
    rows = [("GET", found, 200, ANNA), ("GET", missing, 404, None if stranger else ANNA), ("GET", failing, 500, ANNA)]
    return [dict(zip(("method", "endpoint", "status_code", "user_id"), row, strict=True)) for row in rows]


ROWS: dict[str, list[dict[str, Any]]] = {
    "fastapi": requests("/users/{user_id}", "/missing/{id}", stranger=True),
    "fastapi-old": requests("/users/{user_id}", "/missing/{id}", stranger=True),
    "flask": requests("/users/{user_id}", "/missing/{id}"),
    "django": requests("/users/{pk}", "{unmatched}"),
    "express": requests("/users/{id}", "/missing/{id}"),
    "koa": requests("/users/{id}", "/missing/{id}"),
    "fastify": requests("/users/{id}", "/missing/{id}"),
    "servemux": requests("/users/{id}", "/missing/{id}", stranger=True),
    "gin": requests("/users/{id}", "/missing/{id}", stranger=True),
    "spring": requests("/users/{id}", "/**"),
    "spring-old": requests("/users/{id}", "/**"),
    "spring-security": requests("/users/{id}", "/**"),
    "openai": [CALL | TOKENS],
    "openinference": [CALL | TOKENS],
}


def sent_by(framework: str) -> bytes:
    """The request, or requests one behind the other, which are one."""
    return (FOLDER / f"{framework}.bin").read_bytes()


def table_of(framework: str) -> str:
    return "model_usage" if "operation" in ROWS[framework][0] else "endpoint_usage"
