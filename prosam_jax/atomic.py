"""Atomic writes: a file appears complete or not at all; and locks, for one writer at a time."""

import contextlib
import os
import pathlib
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO

import filelock

from prosam_jax.errors import UserError

PART = ".part"
"""Suffix of files that are not complete yet; a killed process may leave one behind."""


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to; it replaces `path` when the block succeeds.

    If the block fails, `path` stays as it was. If several threads or processes write it at the same
    time, the last one to finish wins.

    Raises:
        OSError: It cannot be written, or is a folder or a device; the error names `path`.
    """
    check_file(path)
    part = path.with_name(f".{uuid.uuid4().hex}{PART}")
    try:
        with named(path, part):
            yield part
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):  # a disk that is read-only refuses this as well
            part.unlink(missing_ok=True)


def check_file(path: pathlib.Path) -> None:
    """Raises OSError if a path to write to is a folder, a pipe or a device such as /dev/null."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is a folder, a pipe or a device: name a file")


@contextlib.contextmanager
def named(path: pathlib.Path, part: pathlib.Path | None = None) -> Iterator[None]:
    """Lets an OSError name `path` if it names no file, as of a full disk, or names `part`."""
    try:
        yield
    except OSError as error:
        if error.errno and (
            error.filename is None or str(part or path) in (error.filename, error.filename2)
        ):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def check_place(path: pathlib.Path) -> None:
    """Raises UserError unless a file can be written there, before hours are spent on what it holds.

    Nothing is made: where its folder is missing, the nearest that is there is tried.
    """
    mend = "move it away, or choose another place"
    try:
        if path.is_dir():
            raise UserError(f"{path} must be a file and is a folder: {mend}")
        folder = next(x for x in path.parents if x.exists())
        if not folder.is_dir():
            raise UserError(f"{folder} must be a folder and is a file: {mend}")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): mend that, or choose another place"
        ) from error


@contextlib.contextmanager
def writing(target: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a file, in a folder made if needed, that gets its name when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part, part.open("wb") as file:
        yield file


@contextlib.contextmanager
def locked(path: pathlib.Path, told: str) -> Iterator[None]:
    """Holds a lock, which the system releases when the process ends, however it ends.

    Args:
        path: The lock's file. Its folder is made if needed, and removed if it is left empty.
        told: What to say if another process holds it.

    Raises:
        UserError: Another process holds it, or it cannot be written.
    """
    check_place(path)
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(told) from None
    try:
        yield
    finally:
        if os.name == "posix":  # on Windows, releasing it removes it
            path.unlink(missing_ok=True)
        lock.release()
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                path.parent.rmdir()
