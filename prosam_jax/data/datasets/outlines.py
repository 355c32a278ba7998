"""The twenty forms of Shapes-5i as polygons, and a rasteriser for polygons."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

Outline = Float[np.ndarray, "_ 2"]
"""A closed polygon of points (x, y); y points down."""

Form = tuple[Outline, ...]
"""An outline and the outlines of its holes."""

Window = tuple[slice, slice]
"""A range of rows and a range of columns of a raster."""


def fill(forms: Sequence[Form], size: int) -> list[tuple[Window, Bool[np.ndarray, "h w"]]]:
    """The pixels of a square raster whose centres lie inside a form, by the even-odd rule.

    Args:
        forms: Polygons, with coordinates in units of the raster's side; they may extend beyond it.
        size: Side of the raster in pixels.

    Returns:
        For each form, the window of the raster that contains it, and which pixels of the window
        are inside.
    """
    outlines = [outline for form in forms for outline in form]
    start = size * np.concatenate(outlines) - 0.5  # in pixels, with integers at pixel centres
    stop = size * np.concatenate([part for o in outlines for part in (o[1:], o[:1])]) - 0.5
    sides = np.array([sum(map(len, form)) for form in forms])
    before = sides.cumsum() - sides
    low = np.floor(np.minimum.reduceat(start, before)).clip(0, size)
    high = (np.ceil(np.maximum.reduceat(start, before)) + 1).clip(0, size)
    width, height = (high - low).T
    area = height * (width + 1)  # with an extra column for edges right of the window
    offset = area.cumsum() - area
    # An edge crosses the rows from its upper end (inclusive) to its lower end (exclusive).
    of_form = np.stack([*low.T, high[:, 1], width, offset])
    left, top, bottom, width, offset = of_form.repeat(sides, axis=1)
    x, y, dx, dy = *start.T, *(stop - start).T
    first = np.minimum(np.maximum(np.ceil(np.minimum(y, stop[:, 1])), top), bottom)
    last = np.minimum(np.maximum(np.ceil(np.maximum(y, stop[:, 1])), top), bottom)
    count = (last - first).astype(int)
    rows = first - count.cumsum() + count
    of_edge = np.stack([x, y, dx, dy, rows, left, width, offset - top * (width + 1)])
    x, y, dx, dy, row, left, width, offset = of_edge.repeat(count, axis=1)
    row += np.arange(len(row))
    column = np.ceil(x + (row - y) * dx / dy) - left  # the first pixel right of the edge
    place = offset + row * (width + 1) + np.minimum(np.maximum(column, 0), width)
    crossings = np.zeros(int(area.sum()), np.uint8)
    np.add.at(crossings, place.astype(int), np.uint8(1))
    # Each row has an even number of crossings, so one cumulative sum serves all rows.
    inside = (crossings.cumsum(dtype=np.uint8) & 1).view(bool)
    filled, begin = [], 0
    for (left, top), (right, bottom) in zip(low.astype(int), high.astype(int), strict=True):
        shape = bottom - top, right - left + 1
        end = begin + shape[0] * shape[1]
        window = slice(top, bottom), slice(left, right)
        filled.append((window, inside[begin:end].reshape(shape)[:, :-1]))
        begin = end
    return filled


def radial(radius: Sequence[float] | Float[np.ndarray, " n"]) -> Outline:
    """Points at the given distances from the origin, at equal angles, starting from the top."""
    angle = 2 * np.pi * np.arange(len(radius)) / len(radius)
    return np.asarray(radius)[:, None] * np.stack([np.sin(angle), -np.cos(angle)], axis=-1)


def _points(*points: tuple[float, float]) -> Outline:
    return np.array(points, float)


def symmetric(*right: tuple[float, float]) -> Outline:
    """An outline from its right half, top to bottom, completed by the mirror image."""
    half = _points(*right)
    return np.concatenate([half, half[::-1] * (-1, 1)])


def _arc(x: float, y: float, radius: float, start: float, stop: float) -> Outline:
    """Part of a circle; angles are in degrees, clockwise from the right."""
    angle = np.radians(np.linspace(start, stop, 40))
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=-1)


def _disc(x: float, y: float, radius: float) -> Outline:
    return (x, y) + radius * radial([1] * 40)


def _square(left: float, top: float, side: float) -> Outline:
    return (left, top) + side * _points((0, 0), (1, 0), (1, 1), (0, 1))


def _heart() -> Outline:
    t = 2 * np.pi * np.arange(60) / 60
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=-1)


def unit(outlines: Form) -> Form:
    """Centres a form, scales it to area 1 and divides its sides, so that they can bend."""
    centre = (outlines[0].min(0) + outlines[0].max(0)) / 2
    whole, *holes = map(_area, outlines)
    scale = 1 / math.sqrt(whole - sum(holes))
    return tuple(_cut((outline - centre) * scale) for outline in outlines)


def _area(outline: Outline) -> float:
    x, y = outline.T
    return abs(float(x @ (np.roll(y, -1) - np.roll(y, 1)))) / 2


def _cut(outline: Outline) -> Outline:
    sides = zip(outline, np.roll(outline, -1, axis=0), strict=True)
    cuts = [np.linspace(a, b, math.ceil(math.dist(a, b) / 0.15), endpoint=False) for a, b in sides]
    return np.concatenate(cuts)


_DRAWN: dict[str, Form] = {
    "star": (radial([1, 0.42] * 5),),
    "ring": (_disc(0, 0, 1), _disc(0, 0, 0.56)),
    "house": (symmetric((0, -1), (1.1, -0.1), (0.8, -0.1), (0.8, 1), (0.25, 1), (0.25, 0.35)),),
    "drop": (np.concatenate([_arc(0, 0.4, 0.75, -25, 205), _points((0, -1.3))]),),
    "zigzag": (
        _points(
            *((-0.9, -1), (0.9, -1), (0.9, -0.5), (-0.1, 0.45), (0.9, 0.45)),
            *((0.9, 1), (-0.9, 1), (-0.9, 0.5), (0.1, -0.45), (-0.9, -0.45)),
        ),
    ),
    "heart": (_heart(),),
    "gear": (radial([0.78, 1, 1, 0.78] * 8), _disc(0, 0, 0.36)),
    "arrow": (symmetric((0, -1.1), (0.85, -0.1), (0.3, -0.1), (0.3, 1.1)),),
    "elbow": (_points((-0.8, -1), (-0.2, -1), (-0.2, 0.4), (0.8, 0.4), (0.8, 1), (-0.8, 1)),),
    "mushroom": (
        np.concatenate(
            [_arc(0, 0, 1, 180, 360), _points((0.3, 0), (0.36, 0.95), (-0.36, 0.95), (-0.3, 0))]
        ),
    ),
    "cross": (symmetric((0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1)),),
    "crescent": (np.concatenate([_arc(0, 0, 1, 40, 320), _arc(0.46, 0, 0.713, 295, 65)]),),
    "window": (
        _square(-1, -1, 2),
        *(_square(x, y, 0.56) for x in (-0.72, 0.16) for y in (-0.72, 0.16)),
    ),
    "fish": (
        np.concatenate(
            [_arc(-0.2, 0, 1, 30, 330) * (1, 0.55), _points((1.35, -0.6), (1.1, 0), (1.35, 0.6))]
        ),
    ),
    "crown": (symmetric((0, -0.85), (0.42, 0.05), (1, -0.65), (0.85, 0.75)),),
    "flower": (radial(0.5 + 0.5 * np.abs(np.cos(np.pi * np.arange(96) / 16))), _disc(0, 0, 0.22)),
    "key": (
        np.concatenate(
            [
                _arc(-0.65, 0, 0.5, 20, 340),
                _points((1.2, -0.17), (1.2, 0.5), (0.92, 0.5), (0.92, 0.17)),
                _points((0.7, 0.17), (0.7, 0.45), (0.42, 0.45), (0.42, 0.17)),
            ]
        ),
        _disc(-0.65, 0, 0.24),
    ),
    "tee": (symmetric((1, -1), (1, -0.45), (0.28, -0.45), (0.28, 1)),),
    "hourglass": (symmetric((0.8, -1), (0.15, 0), (0.8, 1)),),
    "hexagon": (radial([1] * 6),),
}

FORMS = {name: unit(outlines) for name, outlines in _DRAWN.items()}
"""The form of each class, of area 1 and centred, in the order of the class numbers."""

PLAIN = tuple(
    unit((form,)) for form in (radial([1] * 3), radial([1] * 4), _disc(0, 0, 1) * (1.5, 1))
)
"""Triangle, square and oval, which belong to no class, of area 1 and centred."""
