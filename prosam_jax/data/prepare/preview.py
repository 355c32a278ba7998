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


def write(path: pathlib.Path, folder: Folder, ids: Sequence[str]) -> str:
    """Writes a sheet of pictures with their masks in colours, and says where it is.

    A picture is shown as it is read for training. Classes have one colour each, named below the
    pictures that show them; pixels to ignore are white.

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
    r, g, b = colorsys.hsv_to_rgb(class_id * 0.618034 % 1, 0.9, 1)
    return round(255 * r), round(255 * g), round(255 * b)


def _tile(folder: Folder, image_id: str) -> Image.Image:
    picture, mask = folder.image(image_id), Image.fromarray(folder.labels(image_id))
    scale = (_SIDE - 4) / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    pixels = np.asarray(picture.resize(size), np.float32)
    labels = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
    colours = np.array([(0, 0, 0), *(colour(c) for c in range(1, 256))], np.float32)
    mixed = np.where(labels[..., None] > 0, (pixels + colours[labels]) / 2, pixels)
    classes = [c for c in np.unique(labels).tolist() if c]
    tile = Image.new("RGB", (_SIDE, _SIDE + 5 * _LINE), "black")
    tile.paste(Image.fromarray(mixed.round().astype(np.uint8)), (2, 2))
    pen = ImageDraw.Draw(tile)
    lines = [(image_id, (255, 255, 255))]
    lines += [(_name(folder, c), colour(c)) for c in classes[:4]]
    for i, (text, fill) in enumerate(lines):
        plain = text.encode("ascii", "backslashreplace").decode()  # what Pillow's own font has
        pen.text((2, size[1] + 3 + i * _LINE), plain[-38:], fill=fill)
    return tile


def _name(folder: Folder, class_id: int) -> str:
    return "ignored" if class_id == IGNORE else folder.class_name(class_id)
