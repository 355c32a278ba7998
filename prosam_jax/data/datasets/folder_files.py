"""The layout of a user's own folder, and its pictures and masks.

```
images/<any folders>/<name>.jpg        or .png, .tif or another suffix of `picture_files`
masks/<the same folders>/<name>.png    class numbers 0 (background), 1, 2, ...; 255 is ignored
classes.txt                            names of classes 1, 2, ..., one per line
<list>.txt                             for data.train_list and data.val_list, a picture per line
```
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from prosam_jax import images, picture_files
from prosam_jax.data.transforms import IGNORE
from prosam_jax.errors import UserError

IMAGES, MASKS, CLASSES = "images", "masks", "classes.txt"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A user's folder; a picture's id is its path relative to `images`.

    Attributes:
        path: The folder that contains `images`, `masks` and `classes.txt`.
        class_names: Names of classes 1, 2, ...
        masks: Path of each picture's mask relative to `masks`, "" if there is none.
        square: Side of the square that pictures will be resized to, for fast decoding; 0 decodes
            every pixel.
    """

    path: pathlib.Path
    class_names: tuple[str, ...]
    masks: Mapping[str, str]
    square: int = 0

    def image_path(self, image_id: str) -> pathlib.Path:
        """Path of a picture."""
        return self.path / IMAGES / image_id

    def mask_path(self, image_id: str) -> pathlib.Path:
        """Path of its mask."""
        return self.path / MASKS / self.masks[image_id]

    def image(self, image_id: str) -> Image.Image:
        """The picture, RGB; UserError if it cannot be read or does not fit its mask."""
        size = images.size(self.mask_path(image_id), turn=False)
        return images.load(self.image_path(image_id), fit=size, square=self.square)

    def labels(self, image_id: str) -> UInt8[np.ndarray, "h w"]:
        """The mask's class numbers; UserError if it cannot be read or holds other numbers."""
        path = self.mask_path(image_id)
        labels = images.read_labels(path)
        check_numbers(path, labels, len(self.class_names))
        check_labelled(path, labels)
        return labels

    def class_name(self, class_id: int) -> str:
        """Name of class 1, 2, ..."""
        return self.class_names[class_id - 1]


def numbers_in(labels: UInt8[np.ndarray, "h w"]) -> list[int]:
    """The numbers that a mask contains, ascending."""
    return np.flatnonzero(Image.fromarray(labels).histogram()).tolist()


def is_ignored(labels: UInt8[np.ndarray, "h w"]) -> bool:
    """Whether a mask has pixels to ignore and otherwise only background."""
    return numbers_in(labels) in ([0, IGNORE], [IGNORE])


def check_numbers(path: pathlib.Path, labels: UInt8[np.ndarray, "h w"], most: int) -> None:
    """Raises UserError if a mask contains numbers that are not those of classes 1 to `most`."""
    if strange := [number for number in numbers_in(labels) if most < number < IGNORE]:
        raise UserError(
            f"{path} contains the number {strange[0]}; {CLASSES} names classes 1-{most}, and "
            "255 is ignored: correct the mask, or add the class"
        )


def check_labelled(path: pathlib.Path, labels: UInt8[np.ndarray, "h w"]) -> None:
    """Raises UserError if a mask `is_ignored`, as one of an object in white on black is."""
    if is_ignored(labels):
        raise UserError(
            f"{path} contains only 0 and 255, which is ignored; write class numbers, or list "
            "such masks with their classes in a CSV for prosam prepare folder --annotations"
        )


def find_folder(root: str) -> Folder:
    """Finds a user's folder at `root`.

    Raises:
        UserError: A part of the layout is missing, or `classes.txt` is not valid.
    """
    wanted = f"it must contain {IMAGES}, {MASKS} and {CLASSES}"
    if not root:
        raise UserError(f"data.root is not set: pass --config.data.root=FOLDER; {wanted}")
    path = pathlib.Path(os.path.expanduser(root))
    if not (path / IMAGES).is_dir():
        raise UserError(f"data.root={root!r}: there is no {path / IMAGES}; {wanted}")
    if lacking := [name for name in (MASKS, CLASSES) if not (path / name).exists()]:
        raise UserError(
            f"data.root={root!r}: there is no {path / lacking[0]}; {wanted}; `prosam "
            "prepare folder --annotations SOURCE` makes masks and classes from a CSV file or the "
            "files of annotation tools"
        )
    masks = {stem(name): name for name in pictures(path / MASKS)}
    found = {name: masks.get(stem(name), "") for name in pictures(path / IMAGES)}
    if not found:
        raise UserError(f"data.root={root!r}: {path / IMAGES} has no pictures; put them there")
    return Folder(path, read_classes(path / CLASSES), found)


def read_classes(path: pathlib.Path) -> tuple[str, ...]:
    """The names in `classes.txt`; UserError if there are none, too many or duplicates."""
    names = tuple(lines(path))
    if not 0 < len(names) < IGNORE:
        raise UserError(f"{path} names {len(names)} classes; it must name 1 to {IGNORE - 1}")
    if twice := [name for at, name in enumerate(names) if name in names[:at]]:
        raise UserError(f"{path} names {twice[0]!r} twice; remove one")
    return names


def pictures(folder: pathlib.Path) -> list[str]:
    """Sorted paths, relative to `folder` and with "/", of all its pictures that are not hidden."""
    return [n for n in picture_files.listed(folder, deep=True) if picture_files.is_picture(n)]


def stem(name: str) -> str:
    """A path without its suffix, in composed form; a picture and its mask have the same one."""
    return picture_files.nfc(name.rpartition(".")[0])


def lines(path: pathlib.Path) -> list[str]:
    """A text file's lines that are not blank, in composed form; UserError if it is not UTF-8."""
    try:
        found = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    return [picture_files.nfc(line.strip()) for line in found if line.strip()]
