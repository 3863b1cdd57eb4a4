"""A chat endpoint on this machine that answers over real HTTP whatever a test scripts."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-secret-0123456789abcdef"


def completion(text, usage=True):
    answer = {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    }
    return 200, json.dumps(
        answer | ({"usage": {"prompt_tokens": 100, "completion_tokens": 10}} if usage else {})
    )


class Endpoint:
    """`script(prompt, number)` gives a text, a (status, body[, headers]), "hang", "drip", "drip
    headers" or "close"; `requests` holds what came.
    """

    def __init__(self):
        self.script, self.requests, self.headers, self.over = (
            lambda prompt, number: "hello",
            [],
            [],
            threading.Event(),
        )
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.headers.append((self.path, dict(self.headers)))
                answer = outer.script(body["messages"][0]["content"], len(outer.requests))
                if answer == "hang":
                    outer.over.wait(30)
                if answer in ("close", "hang"):
                    self.connection.close()
                    return
                if answer in ("drip", "drip headers"):
                    self.send_response(200)
                    if answer == "drip":
                        self.end_headers()
                    else:
                        self.flush_headers()
                        self.wfile.write(b"X-Slow: ")
                    while not outer.over.wait(0.05):
                        try:
                            self.wfile.write(b" ")
                        except OSError:
                            return
                    return
                status, text, *headers = completion(answer) if isinstance(answer, str) else answer
                data = text.encode() if isinstance(text, str) else text
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@contextmanager
def serving():
    endpoint = Endpoint()
    thread = threading.Thread(
        target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.over.set()
        endpoint.server.shutdown()
        endpoint.server.server_close()
        thread.join()


def wait_until(true, seconds):
    """Whether `true()` held within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.5)
    return False
