"""A file server that misbehaves in every way that a download must stand, and what tests ask."""

import collections
import contextlib
import dataclasses
import hashlib
import http.server
import os
import re
import socket
import struct
import threading
import time
from unittest import mock

import numpy as np
import pytest

from prosam_jax.weights import download, registry

DATA = np.random.default_rng(0).bytes(3_000_017)
OTHER = np.random.default_rng(1).bytes(3_000_017)
DIGEST = hashlib.sha256(DATA).hexdigest()
CUT = 1_234_567


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        served = self.server
        served.requests.append((self.headers["Range"], self.headers["If-Range"]))
        served.agents.add(self.headers["User-Agent"])
        answer = served.answers.popleft() if served.answers else serve
        answer(self)

    def log_message(self, *_):
        pass

    def wanted(self, data):
        """(first byte, whether it was asked for), as a server that knows Range and If-Range."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        current = self.headers["If-Range"] in (None, self.server.etag)
        return (int(asked[1]), True) if asked and current else (0, False)

    def start(self, status, **headers):
        self.send_response(status)
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def serve(handler, *, data=None, upto=None):
    data = handler.server.data if data is None else data
    first, partial = handler.wanted(data)
    if first >= len(data):
        handler.start(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)
        return
    length = {"Content_Length": len(data) - first}
    if partial:
        handler.start(206, Content_Range=f"bytes {first}-{len(data) - 1}/{len(data)}", **length)
    else:
        handler.start(200, **length)
    handler.wfile.write(data[first:upto])


def cut(upto=CUT, data=None):
    return lambda handler: serve(handler, data=data, upto=upto)


def reset(upto):
    def answer(handler):
        serve(handler, upto=upto)
        handler.wfile.flush()
        time.sleep(0.1)
        # With linger time 0, closing sends a reset instead of an end.
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return answer


def without_range(handler):
    handler.start(200, Content_Length=len(handler.server.data))
    handler.wfile.write(handler.server.data)


def wrong_range(handler):
    data = handler.server.data
    handler.start(206, Content_Range=f"bytes 0-{len(data) - 1}/{len(data)}")
    handler.wfile.write(data)


def heedless_of_if_range(handler):
    data = handler.server.data
    first = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    handler.start(206, Content_Range=f"bytes {first}-{len(data) - 1}/{len(data)}")
    handler.wfile.write(data[first:])


def announcing(length, end=None):
    def answer(handler):
        handler.start(200, Content_Length=length)
        handler.wfile.write(handler.server.data[:end])

    return answer


def status(code):
    return lambda handler: handler.start(code, Content_Length=0)


def page(content_type, text):
    def answer(handler):
        handler.start(200, Content_Length=len(text), Content_Type=content_type)
        handler.wfile.write(text)

    return answer


def endless(data):
    """Neither a length nor a last chunk: the connection just ends."""

    def answer(handler):
        handler.start(200)
        handler.wfile.write(data)

    return answer


def chunked(handler):
    handler.start(200, Transfer_Encoding="chunked")
    handler.wfile.write(b"%x\r\n%b\r\n" % (CUT, handler.server.data[:CUT]))


def elsewhere(handler):
    handler.start(302, Location="/moved/file", Content_Length=0)


@contextlib.contextmanager
def serving():
    """Answers with `answers` in turn, then serves `data` as a good server does."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.handle_error = lambda *_: None  # clients that hang up are part of the tests
    served.data, served.etag = DATA, '"one"'
    served.answers, served.requests, served.agents = collections.deque(), [], set()
    served.url = f"http://127.0.0.1:{served.server_port}/file"
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    try:
        with (
            mock.patch.object(download, "WAITS", (0.0, 0.0, 0.0)),
            mock.patch.dict(os.environ, no_proxy="*"),
        ):
            yield served
    finally:
        served.shutdown()
        thread.join()
        served.server_close()


def published(server, **changes):
    """An entry for `DATA` at the server."""
    entry = dataclasses.replace(
        registry.named("sam_vit_b"),
        file="x.pth",
        url=server.url,
        sha256=DIGEST,
        size=len(DATA),
        by_hand="a page links to it",
    )
    return dataclasses.replace(entry, **changes)


def fetch(entry, folder, data=DATA):
    """Fetches, and looks at all that lies in the folder afterwards."""
    fetched = download.fetch(entry, folder)
    assert fetched.path == folder / "x.pth"
    assert fetched.path.read_bytes() == data
    assert os.listdir(folder) == ["x.pth"]
    return fetched


def failure(entry, folder, kind=ValueError):
    """The message, of one line, of a fetch that fails."""
    with pytest.raises(kind) as error:
        download.fetch(entry, folder)
    message = str(error.value)
    assert "\n" not in message
    return message


def ranges(server):
    """The Range header of every request."""
    return [asked for asked, _ in server.requests]
