"""Published archives: finding, fetching and unpacking them, so that it can be resumed."""

import contextlib
import dataclasses
import functools
import gzip
import lzma
import os
import pathlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import IO, NamedTuple, cast

import rich.progress

from prosam_jax import console
from prosam_jax.atomic import writing
from prosam_jax.errors import UserError, short
from prosam_jax.weights.download import fetch
from prosam_jax.weights.registry import Remote

AGAIN = "delete it and get it again"
LARGEST_HEADER = 1 << 20  # bytes
LARGE = 1 << 30  # bytes, which a checksum takes seconds for
DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError),
)


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published file that a benchmark is made from.

    Attributes:
        name: What it is, for messages.
        file: Its file name on disk.
        url: Its address.
        by_hand: How to get it by hand.
        licence: Its terms.
        size: Size in bytes; approximate if no checksum is known.
        unpacked: Approximate size in bytes of the largest folder that is unpacked from it.
        content: More bytes than its files have together, unpacked.
        sha256: Its checksum, "" if none is known.
    """

    name: str
    file: str
    url: str
    by_hand: str
    licence: str
    size: int
    unpacked: int
    content: int
    sha256: str = ""


class Member(NamedTuple):
    """A file in an archive: its name, its size in bytes, and how to open it when its turn comes.

    The name is relative, normalised and leads to nowhere else: it has no "..".
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def check_space(
    root: pathlib.Path, wanted: Mapping[Archive, pathlib.Path], *, download: bool
) -> None:
    """Raises OSError unless `root` has room for archives and for what is unpacked from them.

    Args:
        root: Where the archives are or will be.
        wanted: Each archive with the folder it is unpacked to; files in that folder are deducted.
        download: Whether missing archives will be fetched.
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
            f"{root} needs about {needed / 1e9:.1f} GB more and has {free / 1e9:.1f} GB free; make "
            "room, or choose another --root"
        )


def obtain(archives: Iterable[Archive], root: pathlib.Path, *, download: bool) -> None:
    """Makes sure that archives are in `root`, and that they are the published ones.

    Raises:
        UserError: One is missing and must not be or cannot be fetched, or a wrong file was fetched
            or is there already.
        OSError: The connection failed repeatedly, or the disk is full.
    """
    archives = tuple(archives)
    missing = [archive for archive in archives if not (root / archive.file).is_file()]
    if missing and not download:
        ways = "; ".join(f"{archive.file}: {archive.by_hand}" for archive in missing)
        raise UserError(f"add --download, or get these by hand and put them into {root}: {ways}")
    for archive in archives:
        if archive not in missing and archive.sha256 and archive.size > LARGE:
            console.note(f"checking {root / archive.file}")
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
def members(archive: Archive, root: pathlib.Path) -> Iterator[Iterator[Member]]:
    """Iterates over the files of a tar or zip archive in `root`, with a progress bar.

    Links and devices are passed over.

    Raises:
        UserError: The archive is damaged, holds more than the published one, or a file that lies
            outside of it.
    """
    path = root / archive.file
    read = _in_zip if path.suffix == ".zip" else _in_tar
    try:
        with contextlib.closing(read(path)) as found:
            yield _checked(found, archive, path)
    except DAMAGED as error:
        raise UserError(f"{path} is damaged or incomplete ({error}); {AGAIN}") from error


def _checked(found: Iterator[Member], archive: Archive, path: pathlib.Path) -> Iterator[Member]:
    total = 0
    while member := _next(found):
        name = pathlib.PurePosixPath(member.name)
        strange = name.is_absolute() or {"..", ""} & {*name.parts, name.name}
        if strange or {"\\", "\0"} & set(member.name):
            raise UserError(f"{path} holds {short(member.name)}, outside of its folder; {AGAIN}")
        total += member.size
        if total > archive.content:
            raise UserError(
                f"{path} holds more than {archive.content:,} bytes unpacked, which {archive.name} "
                f"has not; {AGAIN}"
            )
        yield member._replace(name=str(name))


def _next(found: Iterator[Member]) -> Member | None:
    try:
        return next(found, None)
    except (*DAMAGED, OSError):
        raise
    except Exception as error:  # Python's readers raise anything on arbitrary bytes
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from error


def unpack(
    archive: Archive, root: pathlib.Path, place: Callable[[str], pathlib.Path | None]
) -> None:
    """Unpacks files of an archive in `root`, except those that exist at full length.

    Args:
        archive: The archive.
        root: Its folder.
        place: Gives the path for a file's name in the archive (see `Member`), or None to skip the
            file.

    Raises:
        UserError: As for `members`.
    """
    with members(archive, root) as found:
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
    # As a stream, because a compressed archive cannot be read backwards.
    with bar as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Info) as archive:
        for info in archive:
            if info.isfile():
                # extractfile returns None only for members that are not files.
                opened = cast(Callable[[], IO[bytes]], functools.partial(archive.extractfile, info))
                yield Member(info.name, info.size, opened)


class _Info(tarfile.TarInfo):
    """An entry's header; what belongs to one, such as a long name, is read as a whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Info":
        info = super().frombuf(buf, encoding, errors)
        if info.size > LARGEST_HEADER and not info.isfile():
            raise tarfile.ReadError(f"a header has {info.size:,} bytes")
        return info


def _in_zip(path: pathlib.Path) -> Generator[Member, None, None]:
    with zipfile.ZipFile(path) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        if any(info.flag_bits & 1 or info.header_offset < 0 for info in files):
            raise zipfile.BadZipFile("a file in it is encrypted, or lies before its beginning")
        for info in console.track(files, len(files), path.name):
            yield Member(info.filename, info.file_size, functools.partial(archive.open, info))


def _bytes_in(folder: pathlib.Path) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())
