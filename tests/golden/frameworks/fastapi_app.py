"""FastAPI with its instrumentation: a dependency names the user, as its documentation has people do."""

import threading
import time
from typing import Annotated

import uvicorn
from ask import ask, provider
from fastapi import Depends, FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

app = FastAPI()


def current_user() -> str:
    trace.get_current_span().set_attribute("user.id", "anna-4711")
    return "anna-4711"


User = Annotated[str, Depends(current_user)]


@app.get("/users/{user_id}")
def user(user_id: int, _: User) -> dict[str, int]:
    return {"id": user_id}


@app.get("/boom")
def boom(_: User) -> None:
    raise RuntimeError("boom")


FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
thread = threading.Thread(target=server.run)
thread.start()
while not server.started:
    time.sleep(0.05)
ask(server.servers[0].sockets[0].getsockname()[1])
server.should_exit = True
thread.join()
provider.shutdown()
