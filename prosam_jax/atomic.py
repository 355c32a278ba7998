"""Atomic writes: a file appears complete or not at all."""

import contextlib
import pathlib
import uuid
from collections.abc import Iterator
from typing import IO

PART = ".part"
"""Suffix of files that are not complete yet; a killed process may leave one behind."""


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to; it replaces `path` when the block succeeds.

    If the block fails, `path` stays as it was. If several threads or processes write it at the same
    time, the last one to finish wins.
    """
    part = path.with_name(f".{uuid.uuid4().hex}{PART}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(target: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a file, in a folder made if needed, that gets its name when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part, part.open("wb") as file:
        yield file
