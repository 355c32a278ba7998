"""Finds and opens picture files; the only module that calls `Image.open` or lists their folders.

Which files of a folder are pictures is decided by their suffixes: those that Pillow or its
installed plug-ins read, and those of cameras, so that a file which cannot be read is named and not
passed over. Hidden files (`.name`, `._name`) and folders (`.ipynb_checkpoints`) are passed over.
Names are compared as `nfc` writes them, because some systems store "é" as one character and others
as two.
"""

import contextlib
import functools
import importlib
import io
import os
import pathlib
import stat
import threading
import unicodedata
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from prosam_jax.errors import UserError

File = str | os.PathLike[str] | io.BytesIO

# Formats that Pillow registers but cannot decode by itself.
_UNREAD = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_HEIC = frozenset({".heic", ".heif", ".hif"})
_RAW = frozenset(
    f".{end}"
    for end in (
        *("3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "iiq", "kdc", "mos", "mrw"),
        *("nef", "nrw", "orf", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f"),
    )
)
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = {b"iCCP", b"tEXt", b"zTXt", b"iTXt"}
# Pictures of more pixels are in memory one at a time, because a small file can hold gigabytes.
_LARGE = 40_000_000
_one_large = threading.RLock()
# Of these texts an orientation is read.
_TURNING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


class MissingFile(UserError, FileNotFoundError):
    """A file does not exist; the message names it."""


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a path's suffix is that of a picture, also of one that needs a plug-in."""
    end = pathlib.PurePath(path).suffix.lower()
    return end in _suffixes() | _HEIC | _RAW


def is_readable(path: str | os.PathLike[str]) -> bool:
    """Whether a path's suffix is that of a picture that can be read here."""
    return pathlib.PurePath(path).suffix.lower() in _suffixes()


def listed(folder: pathlib.Path, *, deep: bool = False) -> list[str]:
    """Sorted paths of a folder's files that are not hidden, relative to it and with "/".

    Args:
        folder: The folder.
        deep: Whether to list the files of its subfolders, too.

    Raises:
        OSError: The folder, or one of its subfolders, cannot be listed.
    """
    found = []
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if deep and not name.startswith(".")]
        found += [
            pathlib.Path(place, name).relative_to(folder).as_posix()
            for name in names
            if not name.startswith(".")
        ]
    return sorted(found)


def nfc(name: str) -> str:
    """A name in Unicode's composed form, in which equal names are equal."""
    return unicodedata.normalize("NFC", name)


def called(file: Any, name: str) -> str:
    """What messages call a file: its path, or `name` if it has none."""
    return str(file) if isinstance(file, str | os.PathLike) else name


@contextlib.contextmanager
def opened(file: File | Image.Image, name: str) -> Iterator[Image.Image]:
    """Opens a picture; any error while it is in use becomes a `UserError` of one line.

    Of a PNG, ICC profiles and texts are left out, because Pillow refuses long ones.

    Args:
        file: Its path or bytes, or a Pillow image, which is given back as it is.
        name: What messages call it, see `called`.

    Raises:
        UserError: It cannot be read.
        MissingFile: There is no such file.
    """
    try:
        if isinstance(file, Image.Image):
            yield file
            return
        _check_kind(file, name)
        with Image.open(_lean(file)) as image:
            large = image.width * image.height > _LARGE
            with _one_large if large else contextlib.nullcontext():
                yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise MissingFile(f"{name} is missing") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder: pass the files in it") from None
    except UnidentifiedImageError as error:
        if _is_heic(file):
            raise UserError(_needs_heif(name)) from None
        raise UserError(
            f"cannot read {name}: it is not a picture of a known format; copy the file again, or "
            "save it as PNG"
        ) from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(
            f"{name} has more than {most:,} pixels, the most that Pillow reads; make it smaller"
        ) from error
    except MemoryError as error:  # Pillow's for impossible sizes as well
        raise UserError(
            f"cannot read {name}: there is not enough memory for its pixels; make it smaller, or "
            "copy the file again if it should be small"
        ) from error
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        line = " ".join(reason.split()) or type(error).__name__
        mend = "make it readable" if isinstance(error, PermissionError) else "copy the file again"
        raise UserError(f"cannot read {name}: {line}; {mend}") from error


def orientation(image: Image.Image) -> int:
    """How to turn a loaded picture's pixels, in EXIF's numbers 1-8; 1 leaves them.

    It is 1 for a TIFF, which Pillow turns when it loads it. Nothing else is read of the EXIF data,
    which some programs write with errors.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of any type; viewers show such a picture as it is stored
        return 1
    return int(found) if found in range(1, 9) else 1


def _check_kind(file: File, name: str) -> None:
    if isinstance(file, io.BytesIO):
        return
    if not stat.S_ISREG(mode := os.stat(file).st_mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{name} is a pipe or a device: pass a file")
    end = pathlib.PurePath(file).suffix.lower()
    if end in _suffixes():
        return
    if end in _RAW:  # Pillow takes some for TIFFs, and reads the thumbnail
        raise UserError(
            f"{name} is a camera's raw picture, which Pillow does not read: convert it to JPEG or "
            "PNG first, with the camera's program, darktable, or rawpy (pip install rawpy)"
        )
    if end in _HEIC and _is_heic(file):
        raise UserError(_needs_heif(name))


def _is_heic(file: Any) -> bool:
    if isinstance(file, io.BytesIO):
        head = file.getvalue()[:12]
    else:
        with open(file, "rb") as content:
            head = content.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _BRANDS


def _needs_heif(name: str) -> str:
    return (
        f"{name} is a HEIC picture, which Pillow reads with a plug-in only: pip install "
        "pillow-heif, or save it as JPEG"
    )


def _lean(file: File) -> File:
    """A PNG's bytes without ICC profiles and texts; other files as they are."""
    if isinstance(file, io.BytesIO):
        content = file.getvalue()
    else:
        with open(file, "rb") as stream:
            if stream.read(len(_PNG)) != _PNG:
                return file
            content = _PNG + stream.read()
    if not content.startswith(_PNG):
        return file
    kept, at = [_PNG], len(_PNG)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind, text = content[at + 4 : at + 8], content[at + 8 : at + 32]
        if kind not in _NOTES or text.startswith(_TURNING) or end > len(content):
            kept.append(content[at:end])
        at = end
    return io.BytesIO(b"".join(kept))


@functools.cache
def _suffixes() -> frozenset[str]:
    """The suffixes that can be read; loads Pillow's decoders and the plug-in for HEIC."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    forms = Image.registered_extensions()  # must come first: it loads the decoders into OPEN
    return frozenset(end for end, form in forms.items() if form in Image.OPEN.keys() - _UNREAD)


def _raise(error: OSError) -> None:
    raise error
