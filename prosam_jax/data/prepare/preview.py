"""A contact sheet of pictures with their masks, by which a person sees whether they fit."""

import colorsys
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from prosam_jax.atomic import writing
from prosam_jax.data.datasets.folder_files import Folder
from prosam_jax.data.transforms import IGNORE

MOST = 24
"""Pictures on a sheet; of more, as many at equal distances."""

_SIDE, _LINE, _COLUMNS = 240, 14, 6
_NAMED = 5  # classes below a picture


def write(path: pathlib.Path, folder: Folder, ids: Sequence[str]) -> str:
    """Writes a sheet of pictures with their masks in colours, and says where it is.

    A picture is shown as it is read for training, gray where a mask has a class, in the colour of
    that class. The first classes of a picture are named below it; pixels to ignore are white.

    Args:
        path: The PNG file.
        folder: The folder.
        ids: Pictures that can be read, at least one.

    Returns:
        A line with the path and the number of pictures.

    Raises:
        UserError: A picture cannot be read.
        OSError: The file cannot be written.
    """
    n = min(MOST, len(ids))
    chosen = [ids[i * len(ids) // n] for i in range(n)]
    tiles = [_tile(folder, image_id) for image_id in chosen]
    columns = min(_COLUMNS, n)
    height = max(tile.height for tile in tiles)
    sheet = Image.new("RGB", (columns * _SIDE, math.ceil(n / columns) * height), "black")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * _SIDE, i // columns * height))
    with writing(path) as file:
        sheet.save(file, "PNG")
    return f"{path} shows {n} of {len(ids)} pictures with their masks"


def colour(class_id: int) -> tuple[int, int, int]:
    """The colour of class 1, 2, ...; neighbours differ most."""
    if class_id == IGNORE:
        return 255, 255, 255
    # Steps of the golden ratio come near an earlier hue after 8 classes, so these are paler.
    saturation = 0.9 - 0.45 * (class_id // 8 % 2)
    r, g, b = colorsys.hsv_to_rgb(class_id * 0.618034 % 1, saturation, 1)
    return round(255 * r), round(255 * g), round(255 * b)


def _tile(folder: Folder, image_id: str) -> Image.Image:
    picture, mask = folder.image(image_id), Image.fromarray(folder.labels(image_id))
    scale = (_SIDE - 4) / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    pixels = np.asarray(picture.resize(size), np.float32)
    labels = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
    colours = np.array([(0, 0, 0), *(colour(c) for c in range(1, 256))], np.float32)
    # Objects have no hue but that of their class, and a rim of it.
    tinted = (pixels.mean(axis=-1, keepdims=True) + colours[labels]) / 2
    inner = np.ones(labels.shape, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= labels == np.roll(labels, step, axis)
    tinted = np.where(inner[..., None], tinted, colours[labels])
    mixed = np.where(labels[..., None] > 0, tinted, pixels)
    tile = Image.new("RGB", (_SIDE, _SIDE + (2 + _NAMED) * _LINE), "black")
    tile.paste(Image.fromarray(mixed.round().astype(np.uint8)), (2, 2))
    pen = ImageDraw.Draw(tile)
    y = size[1] + 3
    pen.text((2, y), _written(image_id, from_end=True), fill="white")
    classes = [c for c in np.unique(labels).tolist() if c]
    for c in classes[:_NAMED]:
        y += _LINE
        pen.rectangle((2, y + 2, 10, y + 10), fill=colour(c))
        pen.text((15, y), _written(_name(folder, c)), fill="white")
    if (more := len(classes) - _NAMED) > 0:
        pen.text((15, y + _LINE), f"and {more} more", fill="white")
    return tile


def _written(text: str, *, from_end: bool = False) -> str:
    """A text of at most 36 characters, those that Pillow's own font has."""
    text = text.encode("ascii", "backslashreplace").decode()
    if len(text) <= 36:
        return text
    return f"...{text[-33:]}" if from_end else f"{text[:33]}..."


def _name(folder: Folder, class_id: int) -> str:
    return "ignored" if class_id == IGNORE else folder.class_name(class_id)
