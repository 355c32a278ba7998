"""Published archives: found or fetched, and read so that an interrupted run can go on."""

import contextlib
import dataclasses
import functools
import gzip
import os
import pathlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import IO, NamedTuple, TypeVar, cast

import rich.console
import rich.progress

from prosam_jax import console
from prosam_jax.atomic import writing
from prosam_jax.errors import UserError
from prosam_jax.weights.download import fetch
from prosam_jax.weights.registry import Remote

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file that a benchmark is made of.

    Attributes:
        name: What it is.
        file: Its name on disk.
        url: Its address.
        by_hand: How a person gets it.
        licence: Its terms.
        size: Its bytes; about, where no checksum is known.
        unpacked: Bytes of the largest folder that is made of it, about.
        sha256: Its checksum, "" if none is known.
    """

    name: str
    file: str
    url: str
    by_hand: str
    licence: str
    size: int
    unpacked: int
    sha256: str = ""


class Member(NamedTuple):
    """A file in an archive: its name there, its bytes, and how to open it, in turn only."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def check_space(
    root: pathlib.Path, wanted: Mapping[Archive, pathlib.Path], *, download: bool
) -> None:
    """Raises OSError unless `root` has room for archives and for what is unpacked from each.

    Args:
        root: Where archives lie, or shall.
        wanted: Each archive with the folder it is unpacked to; files that lie there count.
        download: Whether archives that are missing are fetched.
    """
    needed = 0
    for archive, folder in wanted.items():
        needed += max(0, archive.unpacked - _bytes_in(folder))
        if download and not (root / archive.file).exists():
            part = root / f"{archive.file}.part"
            needed += max(0, archive.size - (part.stat().st_size if part.exists() else 0))
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"{root} needs room for about {needed / 1e9:.1f} GB more and has {free / 1e9:.1f} GB; "
            "make room, or choose another --root"
        )


def obtain(archives: Iterable[Archive], root: pathlib.Path, *, download: bool) -> None:
    """Sees to it that archives lie in `root`.

    Raises:
        UserError: One is not there, or what was fetched is not what it should be.
        OSError: The connection broke again and again.
    """
    missing = [archive for archive in archives if not (root / archive.file).is_file()]
    if missing and not download:
        ways = "; ".join(f"{archive.file}: {archive.by_hand}" for archive in missing)
        raise UserError(f"add --download, or get by hand and put into {root}: {ways}")
    for archive in missing:
        remote = Remote(
            name=archive.name,
            file=archive.file,
            publisher=archive.name,
            licence=archive.licence,
            by_hand=archive.by_hand,
            url=archive.url,
            sha256=archive.sha256 or None,
            size=archive.size if archive.sha256 else None,
        )
        fetch(remote, root)


@contextlib.contextmanager
def members(path: pathlib.Path) -> Iterator[Iterator[Member]]:
    """The files of a tar or zip archive, in turn, with a progress bar.

    Raises:
        UserError: The archive is damaged.
    """
    read = _in_zip if path.suffix == ".zip" else _in_tar
    try:
        with contextlib.closing(read(path)) as found:
            yield found
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(
            f"{path} is damaged or not complete ({error}); delete it and get it again"
        ) from error


def unpack(path: pathlib.Path, place: Callable[[str], pathlib.Path | None]) -> None:
    """Writes files of an archive, except those that are there at full length.

    Args:
        path: The archive.
        place: Where a file of this name goes, None for nowhere.

    Raises:
        UserError: The archive is damaged.
    """
    with members(path) as found:
        for member in found:
            target = place(member.name)
            if target is None or (target.exists() and target.stat().st_size == member.size):
                continue
            with member.open() as source, writing(target) as file:
                shutil.copyfileobj(source, file)


def _in_tar(path: pathlib.Path) -> Generator[Member, None, None]:
    shown = console.stderr()
    bar = rich.progress.open(
        path, "rb", description=path.name, console=shown, disable=not shown.is_terminal
    )
    # As a stream: a compressed archive cannot go back.
    with bar as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for info in archive:
            if info.isfile():
                # None comes only for what is no file.
                opened = cast(Callable[[], IO[bytes]], functools.partial(archive.extractfile, info))
                yield Member(info.name, info.size, opened)


def _in_zip(path: pathlib.Path) -> Generator[Member, None, None]:
    with zipfile.ZipFile(path) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        for info in console.track(files, len(files), path.name):
            yield Member(info.filename, info.file_size, functools.partial(archive.open, info))


def _bytes_in(folder: pathlib.Path) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())
