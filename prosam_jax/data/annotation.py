"""How a user marks the object of a reference: its mask, its box, scribbles or points.

The simulated user is that of VRP-SAM's code (arXiv 2402.17726), as distributions; its random
numbers are others. Sizes are in pixels of the square that images are brought to, meant for 512.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from prosam_jax.config import ANNOTATIONS, check_choice
from prosam_jax.data.rng import Rng

MOST = 20
"""Most points or strokes of one annotation."""

TEST_STROKES = 9
"""Strokes of a scribble in testing."""


@dataclasses.dataclass(frozen=True)
class Brush:
    """A kind of stroke: lowest and highest whole numbers, and spreads in pixels.

    Attributes:
        width: Of the line.
        segments: Straight pieces of a stroke.
        speed: Highest length of a piece.
        change: By how much the speed may change from one piece to the next.
        shift: Standard deviation of the length by which a whole stroke is displaced.
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
"""By how much, in radians, the heading may change from one piece of a stroke to the next."""


def annotate(
    kind: str, mask: Bool[np.ndarray, "h w"], draws: Rng, *, training: bool
) -> Bool[np.ndarray, "h w"]:
    """Pixels that a user would mark to show an object.

    Args:
        kind: One of `config.ANNOTATIONS`. "mask" is `mask` itself; "box" the filled tight box;
            "point" single pixels, 20 in testing and 1 to 20 in training, or all there are;
            "scribble" the part of random strokes inside the object: 9 wide ones in testing, 1 to
            20 wide or 1 to 20 narrow ones in training.
        mask: Pixels of the object.
        draws: The only source of chance.
        training: Whether number and kind of marks vary.

    Returns:
        The marked pixels. None if the object has none; a scribble may, very rarely, miss it.
    """
    check_choice("data.annotation", kind, ANNOTATIONS)
    if kind == "mask" or not mask.any():
        return mask
    if kind == "box":
        return _box(mask)
    return (_points if kind == "point" else _scribble)(mask, draws, training)


def _box(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = True
    return box


def _points(mask: Bool[np.ndarray, "h w"], draws: Rng, training: bool) -> Bool[np.ndarray, "h w"]:
    inside = np.flatnonzero(mask)
    n = min(MOST, len(inside))
    n = 1 + draws.below(n) if training else n
    marked = np.zeros_like(mask)
    marked.flat[inside[draws.subset(len(inside), n)]] = True
    return marked


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
        # VRP-SAM's code divides the flat index without rounding down: up to a pixel too low.
        _draw_stroke(pen, _stroke(draws, col, row + col / width, brush), _whole(draws, brush.width))
    return mask & (np.asarray(canvas) > 0)


def _whole(draws: Rng, limits: tuple[int, int]) -> int:
    low, high = limits
    return low + draws.below(high - low + 1)


def _stroke(draws: Rng, x: float, y: float, brush: Brush) -> list[tuple[float, float]]:
    """The points of a stroke that begins at (x, y); it may leave object and image."""
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
    """Lines of that width, with discs at their ends that fill the gaps at bends."""
    pen.line(points, fill=1, width=width)
    radius = width // 2 - 1
    for x, y in points:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
