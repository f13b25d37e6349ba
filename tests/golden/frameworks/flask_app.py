"""Flask with its instrumentation: before_request names the user."""

import threading

from ask import ask, provider
from flask import Flask
from opentelemetry import trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from werkzeug.serving import make_server

app = Flask(__name__)
FlaskInstrumentor().instrument_app(app, tracer_provider=provider)


@app.before_request
def name_user() -> None:
    trace.get_current_span().set_attribute("enduser.id", "anna-4711")


@app.get("/users/<int:user_id>")
def user(user_id: int) -> dict[str, int]:
    return {"id": user_id}


@app.get("/boom")
def boom() -> None:
    raise RuntimeError("boom")


server = make_server("127.0.0.1", 0, app)
thread = threading.Thread(target=server.serve_forever)
thread.start()
ask(server.server_port)
server.shutdown()
thread.join()
provider.shutdown()
