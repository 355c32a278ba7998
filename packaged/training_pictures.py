"""Pictures on which the small networks of `prosam_jax/pretrained` are trained.

They are drawn like those of Shapes-5i, but none shows an outline of Shapes-5i. Every class is a
random outline from one of several families; `catalogue` leaves out outlines that resemble a class
of the benchmark, a form of its clutter, or an earlier class.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Complex64, Float, Int, UInt8

from prosam_jax.atomic import replacing
from prosam_jax.data.datasets.outlines import (
    FORMS,
    PLAIN,
    Form,
    Outline,
    fill,
    radial,
    symmetric,
    unit,
)
from prosam_jax.data.datasets.shapes import PATTERNS, Kind, Surface, scene

CLASSES = 400
"""Number of outlines in the catalogue."""

SEED = 77
"""Seed of the catalogue and of the pictures."""

SIZE = 128
"""Side of a picture in pixels."""

LIKENESS = 0.8
"""Limit of the IoU between a catalogue's and a benchmark's outline, at any place and angle."""

_RASTER, _WIDTH, _RAYS = 64, 4.0, 90  # pixels, their width in units of a form, angles
_MARGIN = 0.05  # `_likeness` may be this much too low: it tries few places and angles
_SHIFTS = np.linspace(-0.12, 0.12, 7)  # centres of similar forms differ by less
_CHOICE, _OUTLINE, _SURFACE = 3, 4, 5  # random streams; `scene` has 1 and 2


class Pictures(NamedTuple):
    """Rendered pictures.

    Attributes:
        images: RGB, 0-255.
        objects: The object that each pixel shows, 1 for the lowest, 0 for none.
        classes: Class of objects 1, 2, ... at indices 1, 2, ..., counted from 1; 0 where there is
            no such object and for the background at index 0.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    objects: UInt8[np.ndarray, "n h w"]
    classes: Int[np.ndarray, "n 7"]


def pictures(count: int, cache: pathlib.Path) -> Pictures:
    """The first `count` training pictures, rendered or read from `cache` if it has them.

    About 50 to 100 a second are rendered.
    """
    file = cache / f"pictures-{SEED}-{count}.npz"
    first = picture(0)
    if file.is_file():
        with np.load(file) as arrays:
            held = Pictures(*arrays.values())
        if all(np.array_equal(x[0], y) for x, y in zip(held, first, strict=True)):
            return held  # otherwise other code drew them
    drawn = [first, *(picture(number) for number in range(1, count))]
    rendered = Pictures(*map(np.stack, zip(*drawn, strict=True)))
    cache.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part, part.open("wb") as whole:
        np.savez(whole, *rendered)
    return rendered


def picture(
    number: int,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"], Int[np.ndarray, " 7"]]:
    """Training picture `number`, as in `Pictures`: 3 to 6 objects, sometimes two of one class."""
    generator = np.random.default_rng([SEED, number, _CHOICE])
    n = generator.integers(3, 7)
    chosen = generator.choice(CLASSES, n, replace=False)
    if generator.random() < 0.3:
        chosen[0] = chosen[1]
        generator.shuffle(chosen)
    image, objects = scene((SEED, number), [kinds()[c] for c in chosen], SIZE)
    classes = np.zeros(7, np.int32)
    classes[1 : n + 1] = chosen + 1
    return image, objects, classes


@functools.cache
def catalogue() -> tuple[Form, ...]:
    """The outlines of the training classes, with area 1 and centred on the origin."""
    known = [_centred(form) for form in (*FORMS.values(), *PLAIN)]
    shifts = [np.array([(x, y)]) for x in _SHIFTS for y in _SHIFTS]
    benchmark = [_spectrum(tuple(o + shift for o in form)) for form in known for shift in shifts]
    benchmark, taken, forms = np.stack(benchmark), [], []
    for form in filter(_is_drawable, _candidates()):
        found = _spectrum(_centred(form))
        others = [benchmark, np.stack(taken)] if taken else [benchmark]
        if all(_likeness(found, x).max() < LIKENESS - _MARGIN for x in others):
            forms.append(form)
            taken.append(found)
        if len(forms) == CLASSES:
            return tuple(forms)
    raise AssertionError("the candidates do not end")


@functools.cache
def kinds() -> tuple[Kind, ...]:
    """The training classes: every outline of the catalogue with a surface made at random."""
    generator = np.random.default_rng([SEED, 0, _SURFACE])
    found = []
    for form in catalogue():
        pattern = PATTERNS[generator.integers(len(PATTERNS))]
        hue, other = generator.uniform(0, 1, 2).tolist()
        found.append(Kind(form, Surface(pattern, hue, other, generator.uniform(0.045, 0.1))))
    return tuple(found)


def traits() -> Float[np.ndarray, "k t"]:
    """Each class's surface as numbers: pattern, both hues on their circle, period."""
    surfaces = [kind.surface for kind in kinds()]
    pattern = np.array([[s.pattern == name for name in PATTERNS] for s in surfaces], float)
    angle = 2 * np.pi * np.array([(s.hue, s.other_hue) for s in surfaces])
    turns = np.concatenate([angle, 2 * angle[:, :1]], axis=1)
    period = np.array([[s.period] for s in surfaces])
    columns = [pattern, np.cos(turns), np.sin(turns), (period - 0.07) / 0.02]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _raster(form: Form) -> Bool[np.ndarray, "h w"]:
    raster = np.zeros((_RASTER, _RASTER), bool)
    ((window, inside),) = fill([tuple(outline / _WIDTH + 0.5 for outline in form)], _RASTER)
    raster[window] = inside
    return raster


def _centred(form: Form) -> Form:
    """The form with its centre of mass at the origin, which makes turns comparable."""
    rows, columns = np.nonzero(_raster(form))
    middle = np.array([(columns.mean(), rows.mean())]) + 0.5
    return tuple(outline - (middle / _RASTER - 0.5) * _WIDTH for outline in form)


def _spectrum(form: Form) -> Complex64[np.ndarray, "f r"]:
    """Spectrum of a form sampled along rays from the origin, weighted by the root of each area."""
    angle = 2 * np.pi * np.arange(_RAYS)[:, None] / _RAYS
    radius = np.linspace(0.03, _WIDTH / 2 - 0.05, 32, dtype=np.float32)[None]
    column, row = (
        ((radius * direction(angle) / _WIDTH + 0.5) * _RASTER).astype(int)
        for direction in (np.cos, np.sin)
    )
    samples = _raster(form)[row, column] * np.sqrt(radius)
    return np.fft.rfft(samples, axis=0, norm="ortho").astype(np.complex64)


def _likeness(
    one: Complex64[np.ndarray, "f r"], many: Complex64[np.ndarray, "m f r"]
) -> Float[np.ndarray, " m"]:
    """Greatest IoU of a form, turned and mirrored about the origin, with each of the others."""
    products = [np.einsum("fr,mfr->mf", spectrum, many) for spectrum in (one, one.conj())]
    both = np.fft.irfft(products, _RAYS, norm="forward").max(axis=(0, 2))
    areas = [
        np.fft.irfft(np.square(np.abs(x)).sum(-1), _RAYS, norm="forward")[..., 0]
        for x in (one, many)
    ]
    return both / (areas[0] + areas[1] - both)


def _is_drawable(form: Form) -> bool:
    """Whether it is visible in a small picture, neither too long nor thin, and has about area 1."""
    points = np.concatenate(form)
    if not np.isfinite(points).all() or np.abs(points).max() > 1.35:
        return False
    raster = _raster(form)
    core = raster.copy()
    for axis in (0, 1):
        for shift in (-1, 1):
            core &= np.roll(raster, shift, axis)
    area = raster.mean() * _WIDTH**2
    return 0.9 < area < 1.1 and core.sum() > 0.5 * raster.sum()


def _candidates() -> Iterator[Form]:
    families: tuple[Callable[[np.random.Generator], Outline], ...] = (
        _waves, _spikes, _corners, _mirrored, _sectors, _stroke, _gielis, _blocks, _union,
    )  # fmt: skip
    number = 0
    while True:
        generator = np.random.default_rng([SEED, number, _OUTLINE])
        outline = families[number % len(families)](generator)
        number += 1
        yield unit((outline, *_holes(generator, outline)))


def _holes(generator: np.random.Generator, outline: Outline) -> Form:
    """Sometimes a smaller copy, a polygon or a disc cut out of the middle."""
    kind = generator.random()
    if kind < 0.75:
        return ()
    middle = (outline.min(0) + outline.max(0)) / 2
    reach = np.linalg.norm(outline - middle, axis=1).min()
    if kind < 0.87:
        return (middle + generator.uniform(0.4, 0.6) * (outline - middle),)
    corners = generator.integers(3, 7)
    hole = radial(np.repeat(generator.uniform(0.5, 0.85) * reach, corners if kind < 0.94 else 40))
    return (middle + hole,)


def _waves(generator: np.random.Generator) -> Outline:
    """A radius with a few frequencies."""
    angle = 2 * np.pi * np.arange(96) / 96
    radius = np.ones(96)
    for k in generator.choice(np.arange(1, 9), 3, replace=False):
        radius += generator.uniform(0.1, 0.5) * np.cos(k * angle + generator.uniform(0, 2 * np.pi))
    return radial(np.maximum(radius, 0.15))


def _spikes(generator: np.random.Generator) -> Outline:
    """A star whose rays differ in length or lean to one side."""
    rays, ratio = generator.integers(3, 10), generator.uniform(0.3, 0.75)
    cycle = generator.uniform(0.7, 1.0, generator.integers(1, 4))
    lean = generator.uniform(-0.45, 0.45)
    angle = 2 * np.pi * (np.arange(2 * rays) + np.tile((lean, 0), rays)) / (2 * rays)
    radius = np.where(
        np.arange(2 * rays) % 2, ratio * 0.8, np.resize(np.repeat(cycle, 2), 2 * rays)
    )
    return radius[:, None] * np.stack([np.sin(angle), -np.cos(angle)], axis=-1)


def _corners(generator: np.random.Generator) -> Outline:
    """A polygon with a few corners, sorted by angle."""
    n = generator.integers(4, 9)
    angle = 2 * np.pi * (np.arange(n) + generator.uniform(-0.35, 0.35, n)) / n
    return generator.uniform(0.25, 1, n)[:, None] * np.stack([np.sin(angle), np.cos(angle)], -1)


def _mirrored(generator: np.random.Generator) -> Outline:
    """A profile of straight or curved sides and its mirror image."""
    n = generator.integers(3, 7)
    y = np.sort(generator.uniform(-1, 1, n))
    x = generator.uniform(0.12, 0.9, n)
    if generator.random() < 0.4:
        t = np.linspace(-1, 1, 40)
        return symmetric(*zip(np.interp(t, y, x) * (1.05 - t**4), t, strict=True))
    if generator.random() < 0.5:  # steps instead of slopes
        x, y = np.repeat(x, 2)[:-1], np.repeat(y, 2)[1:]
    return symmetric((0, -1.05), *zip(x, y, strict=True), (0, 1.05))


def _sectors(generator: np.random.Generator) -> Outline:
    """Blades around a hub."""
    blades, open_share = generator.integers(2, 7), generator.uniform(0.3, 0.6)
    inner, slope = generator.uniform(0.25, 0.6), generator.uniform(-0.5, 0.5)
    turn = (np.arange(192) / 192 * blades) % 1
    return radial(np.where(turn < open_share, 1 + slope * (turn / open_share - 0.5), inner))


def _stroke(generator: np.random.Generator) -> Outline:
    """A thick bent line."""
    bend = generator.uniform(-2.2, 2.2, generator.integers(1, 4))
    turn = np.cumsum(np.interp(np.linspace(0, 1, 60), np.linspace(0, 1, len(bend) + 1),
                               np.append(bend, generator.uniform(-2.2, 2.2))) / 20)  # fmt: skip
    along = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    middle = np.cumsum(along, axis=0) / 20
    width = generator.uniform(0.2, 0.38, 2)
    across = along[:, ::-1] * (-1, 1) * np.linspace(width[0], width[1], 60)[:, None]
    return np.concatenate([middle + across, (middle - across)[::-1]])


def _gielis(generator: np.random.Generator) -> Outline:
    """The superformula (Gielis 2003)."""
    angle = 2 * np.pi * np.arange(120) / 120
    m, n1 = generator.integers(2, 10), generator.uniform(0.4, 3)
    n2, n3 = generator.uniform(0.5, 4, 2)
    total = np.abs(np.cos(m * angle / 4)) ** n2 + np.abs(np.sin(m * angle / 4)) ** n3
    radius = np.clip(total ** (-1 / n1), 0, 4)
    return radial(0.15 + radius / radius.max())


def _blocks(generator: np.random.Generator) -> Outline:
    """Columns of different heights above and below a line, like letters."""
    n = generator.integers(2, 6)
    edges = np.linspace(-1, 1, n + 1) + np.pad(generator.uniform(-0.15, 0.15, n - 1), 1)
    top = -generator.choice((0.2, 0.6, 1.0), n)
    bottom = generator.choice((0.2, 0.6, 1.0), n)
    upper = [(x, top[i]) for i in range(n) for x in edges[i : i + 2]]
    lower = [(x, bottom[i]) for i in reversed(range(n)) for x in edges[[i + 1, i]]]
    return np.array(upper + lower)


def _union(generator: np.random.Generator) -> Outline:
    """A union of bars, discs and polygons that contain the origin."""
    angle = 2 * np.pi * np.arange(144) / 144
    radius = np.full(144, 0.2)
    for _ in range(generator.integers(2, 5)):
        turned = angle - generator.choice(16) * np.pi / 8
        kind = generator.choice(("bar", "disc", "polygon"))
        if kind == "bar":  # a bar that begins at the origin
            length, half = generator.uniform(0.6, 1.2), generator.uniform(0.12, 0.3)
            ahead = np.cos(turned) > 0
            reach = np.minimum(
                length / np.maximum(np.cos(turned), 1e-6),
                half / np.maximum(np.abs(np.sin(turned)), 1e-6),
            )
            reach = np.where(ahead, reach, 0)
        elif kind == "disc":  # off centre, still containing the origin
            size = generator.uniform(0.35, 0.6)
            off = generator.uniform(0.3, 0.9) * size
            reach = off * np.cos(turned) + np.sqrt(size**2 - (off * np.sin(turned)) ** 2)
        else:
            n = generator.integers(3, 6)
            sector = (turned % (2 * np.pi / n)) - np.pi / n
            reach = generator.uniform(0.3, 0.6) * np.cos(np.pi / n) / np.cos(sector)
        radius = np.maximum(radius, reach)
    return radial(radius)
