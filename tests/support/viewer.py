"""A running page, and a browser's view of it without a browser."""

import base64
import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType

from deploy.local.stack import ModuleServer

PAGES = (
    "",
    "people",
    "retention",
    "funnel",
    "endpoints",
    "features",
    "organizations",
    "releases",
    "models",
    "complete",
)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str


class Viewer(ModuleServer):
    """`python -m viewer` on a port of its own."""

    start_seconds = 40

    def __init__(self, folder: Path, url: str, **settings: str) -> None:
        environment = {"VIEWER_DATABASE_URL": url, "VIEWER_HOST": "127.0.0.1", **settings}
        super().__init__("viewer", folder, environment, ports={"VIEWER_PORT": None})

    @property
    def port(self) -> int:
        return self.port_of("VIEWER_PORT")

    def get(
        self,
        path: str,
        *,
        password: str | None = None,
        method: str = "GET",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = dict(headers)
        if password is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()
        try:
            connection.request(method, path, headers=headers)
            reply = connection.getresponse()
            return Answer(reply.status, dict(reply.getheaders()), reply.read().decode())
        finally:
            connection.close()

    def metric(self, name: str, *, password: str | None = None) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics", password=password).text, re.MULTILINE)
        return float(found[1]) if found else 0.0


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def every(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]
