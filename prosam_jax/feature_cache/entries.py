"""The files of a cache: one per image, used only if complete and of that very image.

    DIR/<type>-<size>-<digest>/about.json     what made the entries of this folder
    DIR/<type>-<size>-<digest>/ab/cdef...     an entry, named by its key

A key is the SHA-256 of all that an embedding depends on: the facts in `about.json` and the input
pixels. An entry holds its seal, the SHA-256 of key and numbers, and then the numbers. The seal
fails for an entry that is cut short, changed, or of another image or encoder.

Each entry has its own file, which appears by one rename. So any number of processes may write
without a lock, an interruption loses only the entry in progress, damage costs one image, and the
random order of training reads only what it needs.
"""

import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from prosam_jax.atomic import PART, replacing
from prosam_jax.errors import UserError
from prosam_jax.feature_cache.packing import Packed

_SEAL = hashlib.sha256().digest_size
_ABANDONED = 3600  # seconds; an entry is written within one


class Entries:
    """The entries of one encoder in one type.

    Attributes:
        folder: Where they are.
        nbytes: Size of each file.
        damaged: Keys of entries that were found damaged and have not been replaced since.
    """

    def __init__(self, root: pathlib.Path, facts: Mapping[str, Any], like: Packed):
        """Opens the folder; nothing is read or written yet.

        Args:
            root: `cache.dir`.
            facts: All that an embedding depends on besides the pixels, as JSON values.
            like: An entry's shapes and types, with a first axis of 1.
        """
        self._about = json.dumps(facts, sort_keys=True, indent=2) + "\n"
        self._digest = hashlib.sha256(self._about.encode()).digest()
        self._like = like
        _, h, w, _ = like.values.shape
        name = f"{like.values.dtype}-{h}x{w}-{self._digest.hex()[:16]}"
        self.folder = root / name
        self.nbytes = _SEAL + sum(_nbytes(part) for part in like if part is not None)
        self.damaged: set[bytes] = set()
        self._prepared = False

    def key(self, image: UInt8[np.ndarray, "h w 3"]) -> bytes:
        """The name of an image's entry."""
        digest = hashlib.sha256(self._digest)
        digest.update(f"{image.shape}".encode())
        digest.update(np.ascontiguousarray(image).data)
        return digest.digest()

    def path(self, key: bytes) -> pathlib.Path:
        """The file of an entry, in one of 256 folders."""
        return self.folder / key[:1].hex() / key[1:].hex()

    def read(self, key: bytes) -> Packed | None:
        """An entry, or None if there is no intact one."""
        try:
            path = self.path(key)  # a pipe or a device in its place would be read without end
            data = memoryview(path.read_bytes() if path.stat().st_size == self.nbytes else b"")
        except FileNotFoundError:
            return None
        except OSError:  # such as a bad sector
            data = memoryview(b"")
        if len(data) != self.nbytes or data[:_SEAL] != _seal(key, data[_SEAL:]):
            self.damaged.add(key)
            return None
        at, parts = _SEAL, []
        for part in self._like:
            if part is not None:
                flat = np.frombuffer(data, part.dtype, part.size, at)
                parts.append(flat.reshape(part.shape))
                at += flat.nbytes
        return Packed(*parts, *[None] * (len(Packed._fields) - len(parts)))

    def write(self, key: bytes, entry: Packed) -> None:
        """Writes an entry, and replaces an older one once it is complete.

        It is not flushed to the disk; the seal detects what a power failure damages.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        if not self._prepared:
            self._prepare()
        payload = b"".join(part.tobytes() for part in entry if part is not None)
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(_seal(key, payload) + payload)
        self.damaged.discard(key)

    def _prepare(self) -> None:
        """Makes the folder with its `about.json`, and deletes what killed processes left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        with replacing(about) as part:
            part.write_text(self._about)
        for path in self.folder.glob(f"*/*{PART}"):
            try:
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:  # another process did it
                continue
        self._prepared = True

    def count(self) -> int:
        """The number of entries, checked or not."""
        return sum(not path.name.endswith(PART) for path in self.folder.glob("??/*"))

    def free(self) -> int:
        """Free bytes on the disk."""
        there = next(path for path in self.folder.absolute().parents if path.exists())
        return shutil.disk_usage(there).free

    def check_space(self, new: int) -> None:
        """Raises UserError, in one line, unless the disk has room for `new` more entries."""
        if (need := new * self.nbytes) > (free := self.free()):
            raise UserError(
                f"cache.dir={str(self.folder.parent)!r}: {new:,} more entries take {size(need)} "
                f"and the disk has {size(free)} left; free some space, choose another "
                "cache.dir, or a cache.dtype of fewer bytes (int8)"
            )


def size(nbytes: int) -> str:
    """A number of bytes in readable form."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if nbytes >= unit:
            return f"{nbytes / unit:,.1f} {name}"
    return f"{nbytes / 1e3:,.1f} kB"


def _nbytes(part: Any) -> int:
    return part.size * part.dtype.itemsize


def _seal(key: bytes, payload: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(payload)
    return digest.digest()
