"""A chat by the OpenAI client, against a server of this script's own, by the instrumentation that is named."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from ask import provider
from openai import OpenAI
from opentelemetry import trace

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a private answer"}}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46},
}


class Model(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if sys.argv[1] == "openinference":
    from openinference.instrumentation.openai import OpenAIInstrumentor
else:
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
OpenAIInstrumentor().instrument(tracer_provider=provider)
server = HTTPServer(("127.0.0.1", 0), Model)
threading.Thread(target=server.serve_forever).start()
client = OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1")
with trace.get_tracer("shop", tracer_provider=provider).start_as_current_span(
    "ask", attributes={"user.id": "anna-4711"}
):
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "a private question"}])
server.shutdown()
provider.shutdown()
