"""A file server that answers well, or as badly as a test tells it to."""

import collections
import contextlib
import http.server
import os
import re
import threading
from unittest import mock

import numpy as np

from prosam_jax.weights import download

DATA = np.random.default_rng(0).bytes(3_000_017)
OTHER = np.random.default_rng(1).bytes(3_000_017)
CUT = 1_234_567


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.ranges.append(self.headers["Range"])
        answer = self.server.answers.popleft() if self.server.answers else serve()
        answer(self)

    def log_message(self, *_):
        pass

    def start(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def serve(*, upto=None, then=lambda: None):
    """As a server that knows ranges; the connection ends after byte `upto`."""

    def answer(handler):
        data = handler.server.data
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        first = int(asked[1]) if asked else 0
        if first >= len(data):
            handler.start(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)
            return
        part = {"Content_Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if asked else {}
        handler.start(206 if asked else 200, Content_Length=len(data) - first, **part)
        handler.wfile.write(data[first:upto])
        handler.wfile.flush()
        then()

    return answer


def reply(status, body=b"", **headers):
    """Status, headers and body as given, whatever was asked for."""

    def answer(handler):
        handler.start(status, **headers)
        handler.wfile.write(body)

    return answer


@contextlib.contextmanager
def serving():
    """Gives `answers` in turn, then serves `data`; `ranges` has each request's Range header."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # clients that hang up are part of the tests
    server.data, server.answers, server.ranges = DATA, collections.deque(), []
    server.url = f"http://127.0.0.1:{server.server_port}/file"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with (
            mock.patch.object(download, "WAITS", (0.0, 0.0, 0.0)),
            mock.patch.dict(os.environ, no_proxy="*"),
        ):
            yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
