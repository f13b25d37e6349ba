"""The page in a real headless chromium: what it asks, what it complains about, keyboard, axe (`make test-long`)."""

import asyncio
import random
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import asyncpg
import pytest

from deploy.local.browser import Tab, browser_tab
from support.analytics import BASE, Event, insert, random_events
from support.viewer import PAGES, Viewer

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

AXE = "axe-core@4.10.3"
RANGE = "from=2026-03-02&to=2026-04-15"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"
ENTER, TAB = ("Enter", 13, "\r"), ("Tab", 9)


@pytest.fixture
async def viewer(database_url: str, tmp_path: Path) -> AsyncIterator[Viewer]:
    connection = await asyncpg.connect(database_url)
    await insert(connection, random_events(random.Random(3), 3000, people=60))
    now = datetime.now(UTC) - timedelta(minutes=5)
    await insert(
        connection,
        [Event("feature_usage", f"u{n}", at, own={"feature_name": SCRIPT}) for n in range(6) for at in (BASE, now)],
    )
    await connection.close()
    page = Viewer(tmp_path / "viewer", database_url)
    await asyncio.to_thread(page.start)
    yield page
    await asyncio.to_thread(page.stop)


@pytest.fixture
async def tab(viewer: Viewer) -> AsyncIterator[Tab]:
    async with browser_tab() as opened:
        yield opened


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [1280, 360])
async def test_no_page_complains_asks_elsewhere_or_is_wider_than_the_screen(
    width: int, is_dark: bool, viewer: Viewer, tab: Tab
) -> None:
    """A violation of the policy, a broken script or a request to another host shows here and nowhere else."""
    await tab.look(width=width, is_dark=is_dark)
    for page in PAGES:
        await tab.open(f"http://127.0.0.1:{viewer.port}/{page}?{RANGE}")
        assert await tab.value("document.documentElement.scrollWidth") <= width, page
        assert await tab.value("document.querySelectorAll('.card').length") >= 1
        ground = await tab.value("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 200) == is_dark, ground
    assert tab.complaints == []
    hosts = {urlsplit(address).netloc for address in tab.asked if not address.startswith(("data:", "about:"))}
    assert hosts == {f"127.0.0.1:{viewer.port}"}


@pytest.mark.parametrize("width", [1280, 360])
async def test_the_numbers_of_an_axis_are_shown_whole(width: int, viewer: Viewer, tab: Tab) -> None:
    """On a telephone 4,000 had lost half of its first digit."""
    await tab.look(width=width)
    await tab.open(f"http://127.0.0.1:{viewer.port}/endpoints?{RANGE}")
    for longest in ("9,999", "12.5 %", "12.5 k", "12.5 M"):
        lefts = await tab.value(
            "Array.from(document.querySelectorAll('text.tick'), (tick) => {"
            f" tick.textContent = '{longest}'; return tick.getBBox().x; }})"
        )
        assert min(lefts) >= 0, longest


async def test_a_funnel_is_built_and_a_filter_chosen_by_keyboard_alone(viewer: Viewer, tab: Tab) -> None:
    """Whoever uses no mouse must get the same numbers."""
    await tab.look(width=1280)
    steps = urlencode([("funnel", "user_activity:login"), ("funnel", "feature_usage:search")])
    await tab.open(f"http://127.0.0.1:{viewer.port}/funnel?{RANGE}&{steps}")
    before = await tab.value("document.querySelectorAll('.look-funnel tbody tr').length")
    names: list[str] = []
    for _ in range(60):
        await tab.press(*TAB)
        names.append(await tab.value("document.activeElement.name || document.activeElement.textContent.trim()"))
        # Of a date, the focus is on a part of the control, which the browser marks by itself.
        assert await tab.value("document.activeElement.matches(':focus-visible, [type=date]')"), names[-3:]
        if names[-1] == "service":
            await tab.press("s", 83, "s")  # the first service with this letter
        if names.count("funnel") == 3 and names[-1] == "funnel":
            await tab.press("m", 77, "m")  # model_usage:...
        if names[-1] == "Show":
            tab.expect_load()
            await tab.press(*ENTER)
            await tab.wait_for_load()
            break
    assert {"Skip to the numbers", "Overview", "days", "service", "deployment", "within", "Show"} <= set(names)
    address = await tab.value("location.search")
    assert "service=shop" in address
    assert "model_usage" in address
    assert (before, await tab.value("document.querySelectorAll('.look-funnel tbody tr').length")) == (2, 3)
    assert tab.complaints == []


async def test_the_query_is_copied_and_hostile_text_stays_text(viewer: Viewer, tab: Tab) -> None:
    """The one script of the page does its one thing; another one would have run by now."""
    await tab.look(width=1280)
    await tab.open(f"http://127.0.0.1:{viewer.port}/features")
    assert await tab.value(f"document.body.innerText.includes({SCRIPT!r})")
    assert await tab.value("document.images.length") == 0
    origin = f"http://127.0.0.1:{viewer.port}"
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    await tab.send("Browser.grantPermissions", origin=origin, permissions=permissions)
    await tab.value("document.querySelector('details.query').open = true")
    await tab.value("document.querySelector('button.copy').click()")
    for _ in range(50):
        if (text := await tab.value("document.querySelector('button.copy').textContent")) != "Copy the query":
            break
        await asyncio.sleep(0.1)
    assert text in {"Copied", "Selected: copy it"}
    assert tab.complaints == []


async def test_axe_finds_no_serious_fault(viewer: Viewer, tab: Tab, tmp_path: Path) -> None:
    """Contrast, names of controls, structure: by the checker that others use, in light and dark."""
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(tmp_path / "npm"), AXE]
    await asyncio.to_thread(subprocess.run, install, check=True, timeout=180)
    source = await asyncio.to_thread((tmp_path / "npm/node_modules/axe-core/axe.min.js").read_text)
    await tab.send("Page.setBypassCSP", enabled=True)  # for axe alone, which is no part of the page
    for is_dark in (False, True):
        await tab.look(width=1280, is_dark=is_dark)
        for page in PAGES:
            await tab.open(f"http://127.0.0.1:{viewer.port}/{page}?{RANGE}")
            await tab.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            await tab.value(f"{source}; 1")
            faults = await tab.value(
                "axe.run().then((found) => found.violations"
                ".filter((one) => ['serious', 'critical'].includes(one.impact))"
                ".map((one) => `${one.id}: ${one.nodes[0].html} ${one.nodes[0].failureSummary}`))"
            )
            assert faults == [], page
