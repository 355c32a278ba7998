"""Files that are written whole or not at all."""

import contextlib
import pathlib
import uuid
from collections.abc import Iterator
from typing import IO

PART = ".part"
"""Ends the names of files that are not whole yet; a killed process may leave one."""


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write to, which takes the place of `path` once the block is through.

    Whatever stops the block leaves `path` as it was. Of several threads or processes that write it
    at a time the last one to end counts.
    """
    part = path.with_name(f".{uuid.uuid4().hex}{PART}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(target: pathlib.Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part, part.open("wb") as file:
        yield file
