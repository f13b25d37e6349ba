"""A headless chromium of the machine, by its debugging protocol: pages, pictures, and all that a page asks and says.

Used by deploy/local/pictures.py and by the tests of the page; the product needs no browser.
"""

import asyncio
import base64
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS = 40.0
LOAD_SECONDS = 40.0
MESSAGE_BYTES_MAX = 64 * 1024 * 1024  # a picture
HEIGHT_MAX = 4_000


class BrowserError(Exception):
    """Chromium is not there, did not start or did not answer."""


def program() -> str:
    """Raises BrowserError when this machine has no chromium."""
    for name in PROGRAMS:
        if path := shutil.which(name):
            return path
    raise BrowserError("chromium was not found. On Debian: apt-get install chromium")


class Tab:
    """One page of the browser. `asked` and `complaints` fill as it loads."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.asked: list[str] = []  # addresses of requests
        self.complaints: list[str] = []  # errors of scripts, of the console, and of the content security policy
        self._socket = socket
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self._number = 0
        self._reading = asyncio.create_task(self._read())

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._number += 1
        answer = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        return await asyncio.wait_for(answer, LOAD_SECONDS)

    async def open(self, address: str) -> Self:
        """Load a page to its end, and let its scripts run."""
        self._loaded.clear()
        found = await self.send("Page.navigate", url=address)
        if text := found.get("errorText"):
            raise BrowserError(f"{address}: {text}")
        await asyncio.wait_for(self._loaded.wait(), LOAD_SECONDS)
        return self

    async def wait_for_load(self) -> None:
        """Of a page that a key or a click leads to; to be called after `expect_load`."""
        await asyncio.wait_for(self._loaded.wait(), LOAD_SECONDS)

    def expect_load(self) -> None:
        self._loaded.clear()

    async def value(self, expression: str) -> Any:
        """Of an expression in the page's own world; a promise is awaited."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{expression}: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    async def press(self, key: str, code: int, text: str = "") -> None:
        """One key, down and up, as a keyboard sends it."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    async def look(self, *, width: int, is_dark: bool = False) -> None:
        """Size and colour scheme, for the pages that are opened next."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        await self.send("Emulation.setEmulatedMedia", features=scheme)

    async def picture(self) -> bytes:
        """The whole page as PNG."""
        size = await self.value("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], HEIGHT_MAX), "scale": 1}
        found = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(found["data"])

    async def close(self) -> None:
        await self._socket.close()
        await self._reading

    async def _read(self) -> None:
        async for message in self._socket:
            told = message.json()
            parameters = told.get("params", {})
            match told.get("method"):
                case "Page.loadEventFired":
                    self._loaded.set()
                case "Network.requestWillBeSent":
                    self.asked.append(parameters["request"]["url"])
                case "Runtime.exceptionThrown":
                    self.complaints.append(str(parameters["exceptionDetails"]))
                case "Log.entryAdded" if parameters["entry"]["level"] in {"error", "warning"}:
                    self.complaints.append(str(parameters["entry"]))
                case "Runtime.consoleAPICalled" if parameters["type"] in {"error", "warning", "assert"}:
                    self.complaints.append(str(parameters["args"]))
                case None:
                    answer = self._waiting.pop(told["id"])
                    if "error" in told:
                        answer.set_exception(BrowserError(str(told["error"])))
                    elif not answer.done():
                        answer.set_result(told["result"])


@asynccontextmanager
async def browser_tab() -> AsyncIterator[Tab]:
    """A tab of a browser of its own, which ends with the block. Raises BrowserError."""
    with tempfile.TemporaryDirectory(prefix="telemetry-browser-", ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            program(),
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--no-proxy-server"),
            *("--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(folder) / "DevToolsActivePort")
            async with aiohttp.ClientSession(trust_env=False) as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    [address] = [page["webSocketDebuggerUrl"] for page in await answer.json() if page["type"] == "page"]
                socket = await session.ws_connect(address, max_msg_size=MESSAGE_BYTES_MAX)
                tab = Tab(socket)
                for domain in ("Page", "Network", "Runtime", "Log"):
                    await tab.send(f"{domain}.enable")
                yield tab
                await tab.close()
        finally:
            process.kill()
            await process.wait()


async def _port(file: Path) -> int:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_SECONDS
    while loop.time() < deadline:
        if lines := await asyncio.to_thread(_lines, file):
            return int(lines[0])
        await asyncio.sleep(0.05)
    raise BrowserError(f"chromium did not start within {START_SECONDS:.0f} s")


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
