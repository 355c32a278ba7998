"""Annotations of the object in a reference: mask, box, scribble or points.

`given_annotation` reads a user's annotation; `drawn_annotation` simulates one from the object's
mask, for episodes. The simulation follows VRP-SAM's code (arXiv 2402.17726) in its distributions,
but not in its random numbers. Sizes are in pixels of the square that images are resized to, for
512 pixels.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from prosam_jax.config import ANNOTATIONS, check_choice
from prosam_jax.data.rng import Rng
from prosam_jax.data.transforms import resize_mask
from prosam_jax.errors import UserError
from prosam_jax.images import ImageLike, Numbers, numbers, read_mask

KINDS = ("mask", "points", "box", "scribble")
"""The annotations that `given_annotation` takes."""

MOST = 20
"""Largest number of points or strokes of one annotation."""

TEST_STROKES = 9
"""Number of strokes of a scribble in testing."""


@dataclasses.dataclass(frozen=True)
class Brush:
    """A kind of stroke; pairs are the lowest and highest integer, lengths are in pixels.

    Attributes:
        width: Width of the line.
        segments: Number of straight segments of a stroke.
        speed: Largest length of a segment.
        change: Largest change of length from one segment to the next.
        shift: Standard deviation of the distance by which a whole stroke is displaced.
        jitter: Displacement of single points along each axis.
    """

    width: tuple[int, int]
    segments: tuple[int, int]
    speed: float
    change: float
    shift: float
    jitter: tuple[int, int]


WIDE = Brush((3, 9), (10, 29), 20, 15, 3, (-3, 2))
NARROW = Brush((2, 4), (6, 21), 12, 8, 1.5, (-1, 0))
BEND = 0.5
"""Largest change of direction, in radians, from one segment of a stroke to the next."""


def given_annotation(
    size: tuple[int, int],
    side: int,
    *,
    mask: ImageLike | None = None,
    points: Numbers | None = None,
    box: Numbers | None = None,
    scribble: ImageLike | None = None,
) -> Bool[np.ndarray, "{side} {side}"]:
    """A user's annotation of a reference, resized to the model's square.

    As in training, a mask is resized by `resize_mask`, a box is filled, and points are single
    pixels. Every pixel of a scribble counts, however thin it gets.

    Args:
        size: (height, width) of the picture.
        side: Side of the square in pixels.
        mask: See `images.read_mask`; it has the size of the picture.
        points: N x 2, x and y in pixels of the picture.
        box: x0, y0, x1, y1 in pixels of the picture; x1 and y1 are exclusive.
        scribble: The strokes, given like a mask.

    Raises:
        UserError: Not exactly one annotation is given, or it is empty, outside the picture or not
            valid.
        FileNotFoundError: There is no such file.
    """
    given = dict(zip(KINDS, (mask, points, box, scribble), strict=True))
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        held = f"is annotated with {' and '.join(names)}" if names else "has no annotation"
        raise UserError(f"a reference {held}: pass one of {', '.join(KINDS)}")
    if mask is not None:
        square = resize_mask(_fitting(mask, size, "mask"), side)
        if not square.any():
            raise UserError(
                f"mask is empty at {side} x {side}, the size that the model sees: annotate a "
                "larger object, or crop the picture to it"
            )
        return square
    if box is not None:
        return _filled(box, size, side)
    square = np.zeros((side, side), np.bool_)
    if points is not None:
        rows, cols = _pixels(points, size)
    else:
        strokes = _fitting(scribble, size, "scribble")
        rows, cols = np.nonzero(strokes)
        if side > min(size):  # a pixel becomes several
            square = resize_mask(strokes, side)
    square[rows * side // size[0], cols * side // size[1]] = True
    return square


def drawn_annotation(
    kind: str, mask: Bool[np.ndarray, "h w"], draws: Rng, *, training: bool
) -> Bool[np.ndarray, "h w"]:
    """Simulates how a user would annotate an object.

    Args:
        kind: A value of `data.annotation`. "mask" is `mask` itself; "box" is the filled tight box;
            "point" is single pixels, 20 in testing and 1 to 20 in training, or all if there are
            fewer; "scribble" is the part of random strokes inside the object: 9 wide ones in
            testing, 1 to 20 wide or 1 to 20 narrow ones in training.
        mask: Pixels of the object.
        draws: The source of all random numbers.
        training: Whether the number of points or strokes and the kind of strokes vary.

    Returns:
        The annotated pixels: no pixel if the object is empty, and very rarely if a scribble misses
        it.

    Raises:
        UserError: `kind` is unknown.
    """
    check_choice("data.annotation", kind, ANNOTATIONS)
    if kind == "mask" or not mask.any():
        return mask
    if kind == "box":
        return _box(mask)
    return (_points if kind == "point" else _scribble)(mask, draws, training)


def _fitting(mask: ImageLike | None, size: tuple[int, int], name: str) -> Bool[np.ndarray, "h w"]:
    assert mask is not None
    array = read_mask(mask, name)
    if array.shape != size:
        held, wanted = (f"{width} x {height}" for height, width in (array.shape, size))
        raise UserError(f"{name} has {held} pixels, but the picture {wanted}: pass the same size")
    if not array.any():
        raise UserError(f"{name} is empty: set pixels of the object (in files, white on black)")
    return array


def _pixels(points: Numbers, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels that contain the points."""
    xy = numbers("points", points, (None, 2))
    height, width = size
    if not len(xy):
        raise UserError("points is empty: pass at least one x, y")
    outside = ~((xy >= 0) & (xy < [[width, height]])).all(1)
    if outside.any():
        raise UserError(
            f"points has {xy[outside][0].tolist()}, which is outside the picture of {width} x "
            f"{height} pixels: pass x, y in pixels of the picture"
        )
    x, y = xy.astype(np.int64).T
    return y, x


def _filled(box: Numbers, size: tuple[int, int], side: int) -> Bool[np.ndarray, "{side} {side}"]:
    x0, y0, x1, y1 = numbers("box", box, (4,)).tolist()
    height, width = size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UserError(
            f"box={[x0, y0, x1, y1]} must be x0 < x1, y0 < y1 inside the picture of {width} x "
            f"{height} pixels"
        )
    square = np.zeros((side, side), np.bool_)
    rows, cols = (
        slice(int(low * side / whole), int(np.ceil(high * side / whole)))
        for low, high, whole in ((y0, y1, height), (x0, x1, width))
    )
    square[rows, cols] = True
    return square


def _box(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = True
    return box


def _points(mask: Bool[np.ndarray, "h w"], draws: Rng, training: bool) -> Bool[np.ndarray, "h w"]:
    inside = np.flatnonzero(mask)
    n = min(MOST, len(inside))
    n = 1 + draws.below(n) if training else n
    points = np.zeros_like(mask)
    points.flat[inside[draws.subset(len(inside), n)]] = True
    return points


def _scribble(mask: Bool[np.ndarray, "h w"], draws: Rng, training: bool) -> Bool[np.ndarray, "h w"]:
    inside = np.flatnonzero(mask)
    brush, n = WIDE, min(TEST_STROKES, len(inside))
    if training:
        brush = draws.choose((WIDE, NARROW))
        n = 1 + draws.below(min(MOST, len(inside)))
    height, width = mask.shape
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    for pixel in inside[draws.subset(len(inside), n)].tolist():
        row, col = divmod(pixel, width)
        # VRP-SAM's code divides the flat index without rounding: y is up to a pixel too large.
        _draw_stroke(pen, _stroke(draws, col, row + col / width, brush), _whole(draws, brush.width))
    return mask & (np.asarray(canvas) > 0)


def _whole(draws: Rng, limits: tuple[int, int]) -> int:
    low, high = limits
    return low + draws.below(high - low + 1)


def _stroke(draws: Rng, x: float, y: float, brush: Brush) -> list[tuple[float, float]]:
    """The points of a stroke that starts at (x, y); it may leave the object and the image."""
    heading, speed = draws.uniform(0, 2 * math.pi), draws.uniform(0, brush.speed)
    points = [(x, y)]
    for _ in range(_whole(draws, brush.segments)):
        speed += draws.uniform(-brush.change, brush.change)
        speed = min(max(speed, 0), brush.speed)
        heading += draws.uniform(-BEND, BEND)
        x, y = x + speed * math.sin(heading), y + speed * math.cos(heading)
        points.append((x, y))
    shift, direction = abs(brush.shift * draws.normal()), draws.uniform(0, 2 * math.pi)
    dx, dy = int(shift * math.cos(direction)), int(shift * math.sin(direction))
    points = [(x + dx, y + dy) for x, y in points]
    for i in draws.subset(len(points), len(points) // 2):
        x, y = points[i]
        points[i] = x + _whole(draws, brush.jitter), y + _whole(draws, brush.jitter)
    return points


def _draw_stroke(pen: ImageDraw.ImageDraw, points: list[tuple[float, float]], width: int) -> None:
    """Draws lines of that width, with discs at their ends to fill the gaps at bends."""
    pen.line(points, fill=1, width=width)
    radius = width // 2 - 1
    for x, y in points:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
