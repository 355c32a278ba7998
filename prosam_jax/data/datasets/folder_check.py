"""Reads every file of a user's folder once, to find bad files before training starts."""

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Container, Mapping
from typing import Any

from PIL import Image

from prosam_jax import console
from prosam_jax.atomic import writing
from prosam_jax.data.datasets.folder_files import IMAGES, MASKS, Folder, pictures, stem
from prosam_jax.data.transforms import IGNORE
from prosam_jax.errors import UserError

CHECKED = "checked.json"
"""File in the folder in which `prosam prepare` keeps what was found."""

_READER = 2  # the rules by which files are read: what others found is not trusted


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a folder contains.

    Attributes:
        shares: For each good picture, the fraction of it that each class covers.
        faults: One line for each bad file.
    """

    shares: Mapping[str, Mapping[int, float]]
    faults: Mapping[str, str]

    def summary(self) -> str:
        """The number of bad files, and the first fault."""
        n = len(self.faults)
        first = next(iter(self.faults.values()))
        return f"{n} bad files, such as: {first}" if n > 1 else f"1 bad file: {first}"


def check(folder: Folder, *, trust: bool = True, keep: bool = False) -> Contents:
    """Reads all pictures and masks.

    Args:
        folder: The folder.
        trust: Whether to skip files that are in `checked.json` and, by size and time, have not
            changed since.
        keep: Whether to write `checked.json`.

    Raises:
        UserError: `checked.json` is damaged.
    """
    known = _noted(folder) if trust else {}
    stamps = {image_id: list(stamp) for image_id, stamp in stamps_of(folder)}
    todo = [i for i, stamp in stamps.items() if known.get(i, {}).get("stamp") != stamp]
    workers = min(8, os.cpu_count() or 1)  # limits how many pictures are in memory at once
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:  # Pillow decodes without the GIL
        found = pool.map(functools.partial(_read, folder), todo)
        new = list(console.track(found, len(todo), "reading pictures and masks"))
    notes: dict[str, dict[str, Any]] = {i: known.get(i, {}) for i in stamps}
    for image_id, note in zip(todo, new, strict=True):
        notes[image_id] = {"stamp": stamps[image_id], **note}
    if keep:
        with writing(folder.path / CHECKED) as file:
            held = {"reader": _READER, "classes": folder.class_names, "files": notes}
            file.write(json.dumps(held, indent=0).encode())
    bad = {i: note["fault"] for i, note in notes.items() if "fault" in note}
    faults = bad | _strays(folder, bad)
    shares = {
        i: {int(c): share for c, share in note["shares"].items()}
        for i, note in notes.items()
        if i not in faults
    }
    return Contents(shares, faults)


def _read(folder: Folder, image_id: str) -> dict[str, Any]:
    """The fraction that each class covers, or the fault of the picture or its mask."""
    path = folder.image_path(image_id)
    try:
        if not _is_utf8(image_id):
            raise UserError(f"{path} has a name that is not UTF-8; rename it")
        if not folder.masks[image_id]:
            raise UserError(f"{path} has no mask in {folder.path / MASKS}")
        labels = folder.labels(image_id)
        folder.image(image_id)
    except UserError as fault:
        return {"fault": str(fault)}
    counts = Image.fromarray(labels).histogram()  # NumPy's would need eight times the mask's memory
    shares = {str(c): counts[c] / labels.size for c in range(1, IGNORE) if counts[c]}
    return {"shares": shares}


def _is_utf8(name: str) -> bool:
    return name.encode(errors="ignore").decode() == name


def _strays(folder: Folder, bad: Container[str]) -> dict[str, str]:
    """Faults of pictures and masks that do not correspond one to one.

    A bad picture, such as the raw file beside a camera's JPEG, takes no mask from a good one.
    """
    faults, owner = {}, {}
    for image_id in sorted(folder.masks, key=lambda image_id: image_id in bad):
        other = owner.setdefault(stem(image_id), image_id)
        if other != image_id and image_id not in bad:
            faults[image_id] = (
                f"{folder.image_path(image_id)} and {other} share one mask; rename it"
            )
    for name in pictures(folder.path / MASKS):
        path = folder.path / MASKS / name
        if stem(name) not in owner:
            faults[f"{MASKS}/{name}"] = f"{path} has no picture in {folder.path / IMAGES}"
        elif (used := folder.masks[owner[stem(name)]]) != name:
            faults[f"{MASKS}/{name}"] = f"{path} and {used} belong to one picture; remove one"
    return faults


def _noted(folder: Folder) -> dict[str, dict[str, Any]]:
    path = folder.path / CHECKED
    try:
        held = json.loads(path.read_bytes())
        same = held.get("reader") == _READER and tuple(held["classes"]) == folder.class_names
        return held["files"] if same else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot read {path} ({error}); delete it, to check all files again"
        ) from error


def stamps_of(folder: Folder) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Each picture's id with sizes and modification times of it and its mask; 0 for no file."""
    return tuple(
        (i, _of_file(folder.image_path(i)) + _of_file(folder.mask_path(i))) for i in folder.masks
    )


def _of_file(path: pathlib.Path) -> tuple[int, int]:
    if not path.is_file():
        return 0, 0
    found = path.stat()
    return found.st_size, found.st_mtime_ns
