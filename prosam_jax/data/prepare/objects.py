"""Objects on pictures, whatever tool outlined them: one form, its checks, and painting.

Values from a file are not trusted. `polygons`, `disc`, `run_lengths` and `runs` take them as they
lie in the file; `fill` and `paint` compare them with the picture. So C code sees only finite
corners that are not far away, and runs that fill the picture.

An error begins with what is wrong, such as "has an outline of 4 numbers": callers know whose it is.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from prosam_jax.data.transforms import IGNORE
from prosam_jax.errors import UserError

FEW = 10
"""Objects of fewer pixels are named, because they may be mistakes."""

_FARTHEST = 1e5  # of a corner; pycocotools walks along each edge, and crashes at 2e8
MOST_PIXELS = 178_956_970  # what Pillow reads
_SLACK = 0.05  # of a side, that an outline may lie outside
_NO_OUTLINE = "has no outline; add it, boxes are not enough"


class Polygons(NamedTuple):
    """Parts of an object, each with corners (x, y); (0, 0) is the picture's upper left corner.

    Attributes:
        parts: The corners of each part.
        rim: Whether the pixels on the outline belong to the object, as in labelme; otherwise COCO's
            rule decides.
        unit: Width and height of the picture in the unit of the corners; 0 for pixels.
    """

    parts: tuple[Float[np.ndarray, "_ 2"], ...]
    rim: bool = False
    unit: float = 0


class Disc(NamedTuple):
    """A disc with its centre and a point on its rim."""

    points: Float[np.ndarray, "2 2"]


class Runs(NamedTuple):
    """Lengths of alternating runs of background and object that fill a window of the picture.

    Attributes:
        counts: The lengths, background first.
        height: Of the window.
        width: Of the window.
        place: Top and left of the window; None if it must be the picture.
        by_rows: Whether runs go along rows, not down columns.
    """

    counts: Int[np.ndarray, " n"]
    height: int
    width: int
    place: tuple[int, int] | None = None
    by_rows: bool = False


Shape = Polygons | Disc | Runs


class Object(NamedTuple):
    """An object of a picture.

    Attributes:
        label: Name of its class; "" for pixels to ignore that no annotation names.
        where: File and entry that it comes from, the beginning of messages.
        shape: Its pixels.
        crowd: Whether it is a crowd, which is ignored and lies below all others.
    """

    label: str
    where: str
    shape: Shape
    crowd: bool = False


class Drawn(NamedTuple):
    """An object without its shape, and how many pixels it covers by itself."""

    label: str
    where: str
    crowd: bool
    pixels: int


class Painted(NamedTuple):
    """What was painted on a mask.

    Attributes:
        objects: Crowds, then the others, in their order.
        hidden: Number of objects that later ones cover completely.
        blank: Entries whose masks show nothing.
        doubtful: Whether EXIF data turn the picture, and nothing tells whether it was outlined
            before or after that.
    """

    objects: Sequence[Drawn]
    hidden: int
    blank: Sequence[str] = ()
    doubtful: bool = False


def check_installed() -> None:
    """Raises UserError unless pycocotools, an optional dependency, is installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise UserError("pycocotools is not installed; run: pip install 'prosam_jax[prepare]'")


def polygons(given: Any, *, rim: bool = False, unit: float = 0) -> Polygons:
    """Polygons of lists x, y, x, y, ..., or of one such list.

    Raises:
        UserError: They are not, have fewer than three corners, or a corner too far away.
    """
    if not isinstance(given, list) or not given:
        raise UserError(_NO_OUTLINE)
    parts = given if any(isinstance(part, list) for part in given) else [given]
    return Polygons(tuple(_corners(part, 3) for part in parts), rim, unit)


def disc(given: Any) -> Disc:
    """A disc of a list x, y, x, y: its centre and a point on its rim.

    Raises:
        UserError: It is not such a list, or a point is too far away.
    """
    return Disc(_corners(given, 2)[:2])


def outline(segmentation: Any) -> Polygons | Runs:
    """The shape of COCO's field `segmentation`: polygons or run lengths.

    Raises:
        UserError: It is neither, or not valid.
    """
    return run_lengths(segmentation) if isinstance(segmentation, dict) else polygons(segmentation)


def run_lengths(given: Mapping[str, Any]) -> Runs:
    """Runs of COCO's form: `size` (height, width) and `counts`, a list or COCO's text.

    Raises:
        UserError: They are not of this form, or the counts do not add up to the size.
    """
    if not given:
        raise UserError(_NO_OUTLINE)
    size, counts = given.get("size"), given.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not _are_whole(size):
        raise UserError(f"has run lengths of the size {shown(size)}; it must be [height, width]")
    return runs(_unpacked(counts) if isinstance(counts, str) else counts, *size)


def runs(
    counts: Any,
    height: int,
    width: int,
    place: tuple[int, int] | None = None,
    *,
    by_rows: bool = False,
) -> Runs:
    """Runs of a list of whole numbers; see `Runs`.

    Raises:
        UserError: They are no such list, or do not add up to height x width.
    """
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise UserError(f"has run lengths of {shown(width)} x {shown(height)} pixels")
    if not isinstance(counts, list) or not _are_whole(counts):
        raise UserError("has run lengths that are not whole numbers")
    if counts and not (min(counts) >= 0 and max(counts) <= MOST_PIXELS):
        raise UserError(f"has a run length of {shown(min(*counts, 0) or max(counts))}")
    if (total := sum(counts)) != height * width:
        raise UserError(
            f"has run lengths that add up to {total:,}, not to {width} x {height} = "
            f"{height * width:,} pixels; export it again"
        )
    return Runs(np.array(counts, np.int64), height, width, place, by_rows)


def runs_of(inside: Bool[np.ndarray, "h w"]) -> Runs:
    """The runs of an object's pixels."""
    flat = inside.ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0, 0] if flat[0] else [0]
    counts = np.diff(np.concatenate([first, starts, [flat.size]]))
    return Runs(counts.astype(np.int64), *inside.shape, by_rows=True)


def is_crowd(given: Any) -> bool:
    """Whether COCO's field `iscrowd` says so; a text of digits is read as a number.

    Raises:
        UserError: It is neither 0 nor 1.
    """
    known = {"0": False, "0.0": False, "False": False, "1": True, "1.0": True, "True": True}
    found = known.get(str(given).strip()) if isinstance(given, int | float | str) else None
    if found is None:
        raise UserError(f"has iscrowd {shown(given)}; it must be 0 or 1")
    return found


def shown(value: Any) -> str:
    """A value from a file for a message: short, and in one line."""
    if isinstance(value, list | dict):  # which may be deep, and of any length
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str) and len(value) > 60:
        return f"{value[:57]!r}..."
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of too many digits"
    return text if isinstance(value, str) or len(text) <= 60 else f"{text[:57]}..."


def plain(name: str) -> str:
    """A name from a file for a message, as it is if it can be printed in one line."""
    return name if name.isprintable() else ascii(name)


def paint(
    objects: Sequence[Object], numbers: Mapping[str, int], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w"], Painted]:
    """Paints crowds, as 255, and then the objects in their order, later ones over earlier ones.

    Args:
        objects: The objects.
        numbers: Class numbers by the name of the class.
        size: (width, height) of the picture that they were outlined on.

    Returns:
        Class numbers, 0 for background and 255 for pixels to ignore; and what was painted.

    Raises:
        UserError: An object lies outside of the picture, is outlined in fractions of it, or covers
            no pixel.
    """
    order = sorted(objects, key=lambda item: not item.crowd)
    owner = np.zeros(size[::-1], np.min_scalar_type(len(order)))
    drawn = []
    for i, item in enumerate(order, 1):
        try:
            _check_place(item.shape, size)
            inside = fill(item.shape, size)
            if not (count := int(np.count_nonzero(inside))):
                raise UserError("covers no pixel; outline it again, or delete it")
        except UserError as reason:
            raise UserError(f"{item.where} {reason}") from None
        owner[inside] = i
        drawn.append(Drawn(item.label, item.where, item.crowd, count))
    of_owner = [0, *(IGNORE if item.crowd else numbers[item.label] for item in order)]
    seen = set(np.unique(owner).tolist()) - {0}
    return np.array(of_owner, np.uint8)[owner], Painted(drawn, len(order) - len(seen))


def fill(shape: Shape, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a shape in a picture of a size (width, height).

    Raises:
        UserError: Its runs are those of another size.
    """
    width, height = size
    if isinstance(shape, Runs):
        return _run(shape, width, height)
    if isinstance(shape, Polygons) and not shape.rim:
        from pycocotools import mask as run_lengths  # an optional dependency, used only here

        parts = [part.ravel().tolist() for part in _in_pixels(shape, size)]
        codes = run_lengths.frPyObjects(parts, height, width)
        return run_lengths.decode(run_lengths.merge(codes)).astype(bool)
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    if isinstance(shape, Disc):
        centre, end = shape.points.tolist()
        pen.circle(centre, math.dist(centre, end), fill=1)
    else:
        for part in _in_pixels(shape, size):
            pen.polygon([tuple(corner) for corner in part.tolist()], fill=1)
    return np.array(canvas).astype(bool)


def _run(shape: Runs, width: int, height: int) -> Bool[np.ndarray, "h w"]:
    top, left = shape.place or (0, 0)
    fits = (shape.height, shape.width) == (height, width)
    if shape.place:
        bottom, right = top + shape.height, left + shape.width
        fits = top >= 0 and bottom <= height and left >= 0 and right <= width
    if not fits:
        at = f" at {left}, {top}" if shape.place else ""
        raise UserError(
            f"has run lengths of {shape.width} x {shape.height} pixels{at}, and the picture has "
            f"{width} x {height}"
        )
    flat = np.repeat(np.arange(len(shape.counts)) % 2 == 1, shape.counts)
    if shape.by_rows:
        window = flat.reshape(shape.height, shape.width)
    else:
        window = flat.reshape(shape.width, shape.height).T
    inside = np.zeros((height, width), bool)
    inside[top : top + shape.height, left : left + shape.width] = window
    return inside


def _in_pixels(shape: Polygons, size: tuple[int, int]) -> Sequence[Float[np.ndarray, "_ 2"]]:
    if not shape.unit:
        return shape.parts
    return [part * (np.array(size) / shape.unit) for part in shape.parts]


def _check_place(shape: Shape, size: tuple[int, int]) -> None:
    """Raises UserError if a corner lies outside by more than a little, or all are fractions."""
    if isinstance(shape, Runs):
        return
    parts = [shape.points] if isinstance(shape, Disc) else _in_pixels(shape, size)
    corners = np.concatenate(parts)
    sides = np.array(size, float)
    slack = 2 + _SLACK * sides
    out = ((corners < -slack) | (corners > sides + slack)).any(axis=1)
    if out.any():
        x, y = corners[out.argmax()].tolist()
        raise UserError(
            f"has a corner at {x:.6g}, {y:.6g}, outside of the picture of {size[0]} x {size[1]} "
            "pixels; outline it again on this picture"
        )
    in_pixels = isinstance(shape, Disc) or not shape.unit
    if in_pixels and max(size) > 4 and corners.min() >= 0 and corners.max() <= 1:
        raise UserError(
            "has all corners between 0 and 1, like fractions of the size; export it in pixels"
        )


def _corners(flat: Any, fewest: int) -> Float[np.ndarray, "_ 2"]:
    if not isinstance(flat, list) or not {type(value) for value in flat} <= {int, float}:
        raise UserError("has an outline that is not a list of numbers")
    if len(flat) < 2 * fewest or len(flat) % 2:
        raise UserError(
            f"has an outline of {len(flat)} numbers; it needs x and y of at least {fewest} points, "
            "an even count"
        )
    far = [value for value in flat if not abs(value) <= _FARTHEST]  # NaN as well
    if far:
        raise UserError(f"has a corner at {shown(far[0])}; outline it again")
    return np.array(flat, np.float64).reshape(-1, 2)


def _are_whole(values: Sequence[Any]) -> bool:
    return {type(value) for value in values} <= {int}


def _unpacked(text: str) -> list[int]:
    """The counts of COCO's text.

    A character has 5 bits of a number, lowest first, and one that says that more follow. From the
    fourth on, numbers are differences to the count before the last.
    """
    codes = np.array([ord(letter) - 48 for letter in text], np.int64)
    if len(codes) and (codes.min() < 0 or codes.max() > 63):
        raise UserError("has run lengths with characters that COCO's text has not")
    is_last = codes & 32 == 0
    if not len(codes) or not is_last[-1]:
        raise UserError("has run lengths that are cut short")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:
        raise UserError("has a run length of too many digits")
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, ends - starts + 1))
    counts = np.add.reduceat((codes & 31) << shift, starts)
    counts -= np.where(codes[ends] & 16, 1 << (shift[ends] + 5), 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts.tolist()
