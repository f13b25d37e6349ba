"""Django with its instrumentation: a middleware of the project names the user."""

import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIRequestHandler, make_server

import django
from ask import ask, provider
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from opentelemetry import trace
from opentelemetry.instrumentation.django import DjangoInstrumentor


def name_user(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def middleware(request: HttpRequest) -> HttpResponse:
        trace.get_current_span().set_attribute("user.id", "anna-4711")
        return get_response(request)

    return middleware


def user(_: HttpRequest, pk: int) -> HttpResponse:
    return HttpResponse(str(pk))


def boom(_: HttpRequest) -> HttpResponse:
    raise RuntimeError("boom")


urlpatterns = [path("users/", include([path("<int:pk>/", user)])), path("boom/", boom)]
settings.configure(
    SECRET_KEY="x",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=[f"{__name__}.name_user"],
    LOGGING_CONFIG=None,
)
DjangoInstrumentor().instrument(tracer_provider=provider)
django.setup()


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


server = make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Quiet)
thread = threading.Thread(target=server.serve_forever)
thread.start()
ask(server.server_port, "/users/17/", "/missing/17/", "/boom/")
server.shutdown()
thread.join()
provider.shutdown()
