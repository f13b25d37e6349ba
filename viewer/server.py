"""Requests -> pages: routes, headers, who may see them."""

import asyncio
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import prometheus_client
import structlog
from aiohttp import web

from shared.logs import error_facts
from viewer import charts, metrics
from viewer.access import Access
from viewer.address import DAYS, FUNNEL_STEPS_MAX, STEPS, WITHIN, View, WrongAddress, view_of, zone_of
from viewer.cards import Asker
from viewer.catalogue import PAGES, QUESTIONS
from viewer.cells import csv_of, shown, visible
from viewer.database import NoAnswer, WrongQuestion

log = structlog.get_logger("viewer")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FOLDER = Path(str(files("viewer")))
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATIC = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Pages:
    """Renders what an asker finds."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(
            shown=shown, bar=charts.bar, visible=visible, pages=PAGES, ranges=DAYS, step_choices=STEPS,
            within_choices=tuple(WITHIN), steps_max=FUNNEL_STEPS_MAX, smallest_group=asker.smallest_group,
        )  # fmt: skip

    async def page(self, request: web.Request) -> web.Response:
        name = request.match_info.get("page", "overview")
        if name not in PAGES:
            return self.told(404, "There is no such page.")
        view = await self._view(request)
        title, keys = PAGES[name]
        known: list[str] = []
        if name == "funnel":
            view, known = await self._asker.with_steps(view)
            keys = keys if view.steps else ()
        async with asyncio.TaskGroup() as group:
            cards = group.create_task(self._asker.cards(keys, view))
            choices = group.create_task(self._asker.choices(view))
            completeness = group.create_task(self._asker.completeness())
        return self._rendered(
            "page.html",
            name=name,
            title=title,
            view=view,
            cards=cards.result(),
            choices=choices.result(),
            completeness=completeness.result(),
            known_steps=known,
        )

    async def csv(self, request: web.Request) -> web.Response:
        question = QUESTIONS.get(request.match_info["question"])
        if question is None:
            return self.told(404, "There is no such table.")
        view = await self._view(request)
        if question.look == "funnel":
            view, _ = await self._asker.with_steps(view)
        rows = await self._asker.rows(question.key, view)
        return web.Response(
            text=csv_of(rows, question.columns),
            content_type="text/csv",
            charset="utf-8",
            headers={"Content-Disposition": f'attachment; filename="{question.key}.csv"'},
        )

    async def healthz(self, _: web.Request) -> web.Response:
        is_reachable = await self._asker.database.is_reachable()
        return web.Response(status=200 if is_reachable else 503, text="ok\n" if is_reachable else "no database\n")

    def told(self, status: int, text: str) -> web.Response:
        """A page that says one thing."""
        return self._rendered("told.html", status=status, text=text, title=str(status))

    async def _view(self, request: web.Request) -> View:
        zone = zone_of(request.query)
        try:
            today = await self._asker.today(zone)
        except WrongQuestion:
            raise WrongAddress("zone: a name such as Europe/Berlin is needed") from None
        return view_of(request.query, today=today)

    def _rendered(self, template: str, *, status: int = 200, **values: Any) -> web.Response:
        text = self._templates.get_template(template).render(status=status, **values)
        return web.Response(status=status, text=text, content_type="text/html", charset="utf-8")


def _middleware(pages: Pages, access: Access) -> Any:
    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await _answered(request, handler)
        response.headers.update(HEADERS)
        metrics.requests.labels(str(response.status)).inc()
        return response

    async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
        if refusal := await access.refusal(request):
            response = pages.told(refusal.status, refusal.text)
            if refusal.status == 401:
                response.headers["WWW-Authenticate"] = 'Basic realm="telemetry", charset="UTF-8"'
            return response
        try:
            return await handler(request)
        except* web.HTTPException as group:
            [error] = group.exceptions[:1]
            assert isinstance(error, web.HTTPException)
            answer = pages.told(error.status, error.reason)
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
        except* WrongAddress as group:
            answer = pages.told(400, str(group.exceptions[0]))
        except* NoAnswer as group:
            failure = next(error for error in _leaves(group) if isinstance(error, NoAnswer))
            answer = pages.told(400 if isinstance(failure, WrongQuestion) else 503, failure.text)
        except* Exception as group:  # noqa: BLE001  the last one: a browser gets a page, the log the place
            log.error("page_failed", **error_facts(next(_leaves(group))))  # noqa: TRY400  no text of an exception
            answer = pages.told(500, "This is a fault of the page. The log says where.")
        return answer

    return guarded


def _leaves(group: BaseExceptionGroup[BaseException]) -> Any:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(
        body=prometheus_client.generate_latest(), headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST}
    )


def _static(name: str, content_type: str) -> Handler:
    text = (FOLDER / "static" / name).read_text()

    async def served(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=content_type, charset="utf-8")

    return served


def application(asker: Asker, access: Access) -> web.Application:
    """The routes; every answer has HEADERS."""
    pages = Pages(asker)
    app = web.Application(middlewares=[_middleware(pages, access)], client_max_size=1024)
    app.router.add_get("/", pages.page)
    app.router.add_get("/healthz", pages.healthz)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/csv/{question}", pages.csv)
    for name, content_type in STATIC.items():
        app.router.add_get(f"/static/{name}", _static(name, content_type))
    app.router.add_get("/{page}", pages.page)
    return app
