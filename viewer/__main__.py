"""settings -> the page's server. Constructed here; ends within seconds of SIGTERM."""

import asyncio
import os
import sys

import structlog
import typer
from aiohttp import web

from shared import lifecycle, logs
from shared.errors import WrongSetting
from shared.output import Version, lay_out_help
from shared.settings import described, load
from viewer.access import Access
from viewer.cards import Asker
from viewer.database import Database
from viewer.server import application
from viewer.settings import ViewerSettings

WRONG = 2
STOP_TIMEOUT_S = 3.0

log = structlog.get_logger("viewer")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def run(*, version: Version = False) -> None:  # noqa: ARG001  its callback answers
    """Serve the page: who is active, what is used, what is slow, and how complete those numbers are.

    Settings come from the environment: see docs/settings.md.

    Example: VIEWER_DATABASE_URL=postgresql://analytics_reader:...@host/analytics python -m viewer
    """
    settings = load(ViewerSettings)
    logs.configure(settings.log_level, process="viewer", log_format=settings.log_format)
    log.info("settings_loaded", **described(settings))
    asyncio.run(serve(settings))


async def serve(settings: ViewerSettings) -> None:
    """Answer until SIGTERM.

    Raises:
        WrongSetting: the port cannot be used.
    """
    stop = lifecycle.stop_event()
    database = Database(settings.page_database_url)
    access = Access(settings.password, settings.viewer_host, proxy_header=settings.viewer_proxy_header)
    pages = application(Asker(database, settings.viewer_smallest_group), access)
    # With the handler a query ends: Postgres works for nobody who has left.
    runner = web.AppRunner(pages, handler_cancellation=True, access_log=None, shutdown_timeout=STOP_TIMEOUT_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.viewer_host, settings.viewer_port).start()
    except OSError as error:
        await runner.cleanup()
        reason = os.strerror(error.errno) if error.errno else "no such address"
        raise WrongSetting(
            f"VIEWER_PORT {settings.viewer_port} on VIEWER_HOST {settings.viewer_host} cannot be used: {reason}"
        ) from error
    log.info("viewer_started", host=settings.viewer_host, port=settings.viewer_port)
    await stop.wait()
    await runner.cleanup()
    await database.close()
    log.info("viewer_stopped")


def main() -> None:
    """The console script."""
    try:
        app()
    except WrongSetting as error:
        typer.echo(f"viewer: {error}", err=True)
        sys.exit(WRONG)


lay_out_help(app)

if __name__ == "__main__":
    main()
