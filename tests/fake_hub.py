"""A hub on this machine: the few addresses of Hugging Face's that pushing and pulling ask for."""

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import re
import threading

import huggingface_hub
import huggingface_hub.utils
from huggingface_hub import constants

TOKEN = "hf_token_of_the_test"
ENDPOINTS = (
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([\w.-]+))?", "info"),
    ("POST", r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", "preupload"),
    ("POST", r"/api/models/([\w.-]+/[\w.-]+)/commit/main", "commit"),
    ("HEAD", r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w.-]+)", "resolve"),
    ("GET", r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w.-]+)", "resolve"),
)


@functools.lru_cache(maxsize=4)
def _sha256(content):
    """Of a large file it takes longer than the client waits for several answers."""
    return hashlib.sha256(content).hexdigest()


class Hub:
    """What the hub holds.

    Attributes:
        url: Its address.
        files: Contents by repository and name.
        private: Whether a repository is private.
        cards: The model cards whose front matter was sent to be validated.
    """

    def __init__(self):
        self.url = ""
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.cards: list[str] = []

    def sha(self, repo):
        """The commit, which follows from the contents."""
        held = sorted((name, _sha256(x)) for name, x in self.files[repo].items())
        return hashlib.sha1(repr(held).encode()).hexdigest()

    def create(self, request):
        body = request.json()
        repo = f"{body['organization']}/{body['name']}"
        if repo in self.files:
            return request.answer(409, {"url": f"{self.url}/{repo}"})
        self.files[repo] = {}
        self.private[repo] = body.get("visibility") == "private" or body.get("private") is True
        return request.answer(200, {"url": f"{self.url}/{repo}"})

    def validate(self, request):
        self.cards.append(request.json()["content"])
        return request.answer(200, {"warnings": [], "errors": []})

    def info(self, request, repo, revision):
        if repo not in self.files:
            return request.refuse(404, "RepoNotFound")
        if revision not in (None, "main", self.sha(repo)):
            return request.refuse(404, "RevisionNotFound")
        known = {"id": repo, "private": self.private[repo], "sha": self.sha(repo), "tags": []}
        return request.answer(200, known)

    def preupload(self, request, repo):
        modes = [
            {"path": x["path"], "uploadMode": "regular", "shouldIgnore": False}
            for x in request.json()["files"]
        ]
        return request.answer(200, {"files": modes})

    def commit(self, request, repo):
        for line in request.body().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.files[repo][entry["value"]["path"]] = content
        sha = self.sha(repo)
        known = {"commitUrl": f"{self.url}/{repo}/commit/{sha}", "commitOid": sha}
        return request.answer(200, known)

    def resolve(self, request, repo, revision, name):
        if revision not in ("main", self.sha(repo)):
            return request.refuse(404, "RevisionNotFound")
        if name not in self.files[repo]:
            return request.refuse(404, "EntryNotFound")
        content = self.files[repo][name]
        return request.send(
            200, content, {"ETag": f'"{_sha256(content)}"', "X-Repo-Commit": self.sha(repo)}
        )


def _handler(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self):
            path = self.path.partition("?")[0]
            for method, pattern, name in ENDPOINTS:
                if method == self.command and (match := re.fullmatch(pattern, path)):
                    closed = method == "POST" or hub.private.get(match.groups()[0])
                    if closed and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                        return self.refuse(401, "")
                    return getattr(hub, name)(self, *match.groups())
            return self.refuse(404, "NotFound")

        do_GET = do_HEAD = do_POST = handle_any

        def body(self):
            return self.rfile.read(int(self.headers["Content-Length"]))

        def json(self):
            return json.loads(self.body())

        def answer(self, status, value):
            self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def refuse(self, status, code):
            self.send(status, b"", {"X-Error-Code": code} if code else {})

        def send(self, status, content, headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args):
            """Nothing is logged."""

    return Handler


@contextlib.contextmanager
def running():
    """A hub that answers while the block runs."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def logged_in(folder, monkeypatch):
    """A hub where the client is logged in, with a cache of its own in a folder."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    with running() as hub:
        yield hub
    huggingface_hub.utils.close_session()


def make_default(hub, monkeypatch):
    """As if HF_ENDPOINT had named the hub when the client was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
