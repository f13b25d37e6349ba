"""The page of a running `make run`, photographed by the machine's chromium: docs/images, and every page elsewhere.

python -m deploy.local.pictures http://127.0.0.1:8090          # the pictures of the docs
python -m deploy.local.pictures http://127.0.0.1:8090 FOLDER   # every page, light and dark, 1280 and 360 wide
"""

import asyncio
import sys
from pathlib import Path
from urllib.parse import urlencode

from deploy.local.browser import BrowserError, Tab, browser_tab
from viewer.catalogue import PAGES

IMAGES = Path(__file__).resolve().parents[2] / "docs/images"
FUNNEL = urlencode(
    [
        ("funnel", step)
        for step in (
            "user_activity:login",
            "feature_usage:product_search/searched",
            "feature_usage:cart/added",
            "endpoint_usage:POST /api/checkout",
            "feature_usage:checkout/completed",
        )
    ]
)
SHOWN = {  # the pictures of the docs: address, width, dark
    "page-overview": ("", 1280, False),
    "page-funnel": (f"funnel?days=7&within=1d&{FUNNEL}", 1280, False),
    "page-retention": ("retention?days=30", 1280, True),
    "page-narrow": ("endpoints", 360, False),
}


async def photograph(tab: Tab, address: str, path: Path, *, width: int, is_dark: bool) -> None:
    await tab.look(width=width, is_dark=is_dark)
    await tab.open(address)
    picture = await tab.picture()
    await asyncio.to_thread(path.write_bytes, picture)
    print(f"{path}: {len(picture) // 1024} KiB")


async def main() -> None:
    """Exit code 1 when there is no chromium or no page."""
    root, *folder = sys.argv[1:]
    wanted = SHOWN
    if folder:
        wanted = {
            f"{page}-{width}-{'dark' if is_dark else 'light'}": (
                f"funnel?{FUNNEL}" if page == "funnel" else "" if page == "overview" else page,
                width,
                is_dark,
            )
            for page in PAGES
            for width in (1280, 360)
            for is_dark in (False, True)
        }
    target = Path(folder[0]) if folder else IMAGES
    target.mkdir(parents=True, exist_ok=True)
    async with browser_tab() as tab:
        for name, (address, width, is_dark) in wanted.items():
            await photograph(tab, f"{root}/{address}", target / f"{name}.png", width=width, is_dark=is_dark)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except BrowserError as error:
        sys.exit(f"error: {error}")
