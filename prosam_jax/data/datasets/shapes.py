"""Shapes-5i: a few-shot segmentation benchmark in the form of Pascal-5i that needs no files.

A class is an outline and a surface; a surface is a pattern and two hues, from which each object
deviates a little. Size, place, rotation, shear, bending, brightness and the colour of the light do
not depend on the class. A picture shows 4 to 6 objects of 3 classes, each once or twice, so only
the reference tells which of them are wanted. As in Pascal-5i, training pictures show only base
classes, and test pictures show novel and base classes. Lines, triangles, squares and ovals belong
to no class, although half of them have the surface of an object in the picture.

A picture depends only on its id. Its classes are drawn first, so that an index needs no rendering,
then the layout, then the colours, each from its own stream of bits, as in `data.episodes`.
"""

import colorsys
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from prosam_jax.config import DataConfig
from prosam_jax.data.datasets.outlines import FORMS, PLAIN, Form, Outline, Window, fill
from prosam_jax.data.episodes import EpisodeSource, episode_source
from prosam_jax.data.folds import SPLITS, FoldIndex, FoldRule
from prosam_jax.data.rng import Rng
from prosam_jax.errors import UserError

_Colour = tuple[float, float, float]  # red, green and blue in 0-1

PICTURES = {"train": 2000, "test": 500}
"""Number of pictures of each split of each fold."""

SCENE_SEED = 5
"""Seed of all pictures; another seed would be another benchmark."""

MIN_SHARE = 0.015
"""Smallest fraction of a picture that a class in it covers, at 32 x 32 pixels or more."""

_AREAS = 0.026, 0.085  # fraction of the picture that an object covers before others cover it
_HUES = 0.06  # largest distance of an object's hues from those of its class
_VISIBLE = 0.6  # smallest visible fraction of an object: neither covered nor outside
_GRID = 96  # side of the raster on which layouts are checked, whatever the rendered size
_KEPT = 2**28  # bytes of pictures that a process caches: a whole fold at 128 x 128 pixels
_CLASSES, _LAYOUT, _COLOURS = range(3)  # each purpose has its own stream of bits
_ID = re.compile(r"f([0-3])-(train|test)-(\d{6})")

SHAPES_5I = FoldRule(
    "Shapes-5i (generated)",
    tuple(FORMS),
    novel=tuple(tuple(range(5 * fold + 1, 5 * fold + 6)) for fold in range(4)),
)
"""Classes 1-20; five consecutive ones are novel in each fold."""

PATTERNS = ("plain", "stripes", "checks", "dots", "gradient", "noise")


class Surface(NamedTuple):
    """The paint of a class's objects.

    Attributes:
        pattern: One of `PATTERNS`.
        hue: Hue of the first tone, in 0-1 on the colour circle.
        other_hue: Hue of the second tone.
        period: Period of the pattern, as a fraction of the picture's side.
    """

    pattern: str
    hue: float
    other_hue: float
    period: float


class Kind(NamedTuple):
    """A class: an outline, as `outlines.unit` makes it, and a surface."""

    form: Form
    surface: Surface


KINDS = tuple(
    # Consecutive classes, which share a fold, differ in pattern and have distant hues.
    Kind(form, Surface(PATTERNS[i % 6], 0.618 * i % 1, 0.382 * i % 1, 0.05 + 0.015 * (i % 4)))
    for i, form in enumerate(FORMS.values())
)
"""The twenty classes in the order of their numbers."""


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The pictures of all folds, by ids such as "f0-test-000123", rendered on demand.

    Attributes:
        size: Side of a picture in pixels; it does not change the layout.
        seed: Seed of the pictures; another one gives other pictures for the same ids.
    """

    size: int = 128
    seed: int = SCENE_SEED

    def image(self, image_id: str) -> Image.Image:
        """The picture, RGB."""
        return Image.fromarray(_renderer(self.size)(self.seed, image_id)[0])

    def labels(self, image_id: str) -> UInt8[np.ndarray, "{self.size} {self.size}"]:
        """Its class numbers, 0 for background; the array is read-only."""
        return _renderer(self.size)(self.seed, image_id)[1]

    def objects(self, image_id: str) -> tuple[int, ...]:
        """The class of each object from the lowest to the topmost, without rendering.

        Raises:
            UserError: `image_id` is not the id of a picture.
        """
        fold, split, number = _parts(image_id)
        draws = Rng(self.seed, fold, split, number, _CLASSES)
        n_novel = 1 + draws.below(2) if SPLITS[split] == "test" else 0
        classes = draws.sample(SHAPES_5I.classes(fold, "test"), n_novel)
        classes += draws.sample(SHAPES_5I.classes(fold, "train"), 3 - n_novel)
        classes += draws.sample(classes, 1 + draws.below(3))
        return tuple(draws.sample(classes, len(classes)))

    def class_name(self, class_id: int) -> str:
        """Name of class 1-20."""
        return SHAPES_5I.class_names[class_id - 1]


@functools.cache
def shapes_index(fold: int, split: str) -> FoldIndex:
    """Which pictures of a fold (0-3) show which classes of the split; nothing is rendered."""
    classes = SHAPES_5I.classes(fold, split)
    ids = [f"f{fold}-{split}-{number:06d}" for number in range(PICTURES[split])]
    shown = {image_id: Shapes().objects(image_id) for image_id in ids}
    entries = {c: tuple(i for i in ids if c in shown[i]) for c in classes}
    return FoldIndex(SHAPES_5I, fold, split, entries)


def shapes_episodes(
    cfg: DataConfig, split: str, *, seed: int, length: int | None = None
) -> EpisodeSource:
    """Episodes of one split of a Shapes-5i fold.

    Args:
        cfg: Fold, shots and image size.
        split: "train" or "test".
        seed: Seed of the draws; the pictures are always those of `SCENE_SEED`.
        length: Number of episodes; None for one pass over the pictures.

    Raises:
        UserError: No class has more pictures than `cfg.shots`.
    """
    fold = shapes_index(cfg.fold, split).drawable(cfg.shots)
    return episode_source(Shapes(cfg.image_size), fold, cfg, split, seed=seed, length=length)


def _parts(image_id: str) -> tuple[int, int, int]:
    match = _ID.fullmatch(image_id)
    if match is None:
        raise UserError(f"image_id={image_id!r} must be like 'f0-train-000123' or 'f3-test-000123'")
    fold, split, number = match.groups()
    return int(fold), SPLITS.index(split), int(number)


@functools.cache
def _renderer(size: int) -> Callable[[int, str], tuple[np.ndarray, np.ndarray]]:
    """A function that renders pictures of one size and caches the most recent ones."""

    @functools.lru_cache(maxsize=_KEPT // (4 * size**2))
    def render(
        seed: int, image_id: str
    ) -> tuple[UInt8[np.ndarray, "n n 3"], UInt8[np.ndarray, "n n"]]:
        classes = Shapes(size, seed).objects(image_id)
        image, objects = scene((seed, *_parts(image_id)), [KINDS[c - 1] for c in classes], size)
        labels = np.array((0, *classes), np.uint8)[objects]
        labels.flags.writeable = False  # the cache returns it again
        return image, labels

    return render


def scene(
    key: tuple[int, ...], kinds: Sequence[Kind], size: int
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], UInt8[np.ndarray, "{size} {size}"]]:
    """Draws objects of the given kinds in the way of the benchmark's pictures.

    Args:
        key: Seed of the streams of bits; the same key and kinds make the same picture.
        kinds: Kind of each object, from the lowest to the topmost.
        size: Side of the picture in pixels.

    Returns:
        The picture, RGB, and the number of the object at each pixel: 1 for the lowest, 0 for none.
    """
    posed = _layout(Rng(*key, _LAYOUT), [kind.form for kind in kinds])
    surfaces = [kind.surface for kind in kinds]
    image = _painted(Rng(*key, _COLOURS), posed, surfaces, size)
    objects = np.zeros((size, size), np.uint8)
    for number, (window, inside) in enumerate(fill(posed, size), 1):
        objects[window][inside] = number
    return image, objects


def _layout(draws: Rng, forms: Sequence[Form]) -> list[Form]:
    """Poses objects on top of each other; each is redrawn until all so far are visible enough."""
    posed, needed, owner = [], [], np.zeros((_GRID, _GRID), np.uint8)
    for number, unposed in enumerate(forms, 1):
        while True:  # 21 poses in all for the hardest picture of the benchmark
            low, high = _AREAS
            area = low * (high / low) ** draws.uniform(0, 1)
            form = _posed(draws, unposed, area)
            window, inside = fill([form], _GRID)[0]
            covered = owner.copy()
            covered[window][inside] = number
            shown = np.bincount(covered.ravel(), minlength=number + 1)[1:] / _GRID**2
            least = [*needed, max(_VISIBLE * area, 1.3 * MIN_SHARE)]
            if (shown >= least).all():
                break
        posed.append(form)
        needed, owner = least, covered
    return posed


def _posed(draws: Rng, form: Form, area: float) -> Form:
    """Mirrors, shears, stretches, rotates and bends a form and moves it to a random place."""
    turn, shear = draws.uniform(0, 2 * math.pi), draws.uniform(-0.2, 0.2)
    stretch = math.exp(draws.uniform(-0.15, 0.15)) * draws.choose((-1, 1))
    turned = np.array([(math.cos(turn), -math.sin(turn)), (math.sin(turn), math.cos(turn))])
    matrix = turned @ np.array([(stretch, shear), (0, 1 / abs(stretch))])  # of determinant +-1
    centre = np.array([draws.uniform(0.12, 0.88), draws.uniform(0.12, 0.88)])
    phase = np.array([draws.uniform(0, 2 * math.pi), draws.uniform(0, 2 * math.pi)])
    wave, depth = draws.uniform(4, 9), draws.uniform(0.01, 0.035)

    def pose(outline: Outline) -> Outline:
        bent = outline + depth * np.sin(wave * outline[:, ::-1] + phase[None])
        return centre[None] + math.sqrt(area) * bent @ matrix.T

    return tuple(pose(outline) for outline in form)


def _painted(
    draws: Rng, forms: Sequence[Form], surfaces: Sequence[Surface], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Paints background, clutter and objects at twice the size, adds light and shrinks them."""
    side = 2 * size
    clutter = [_line(draws) for _ in range(2 + draws.below(4))]
    clutter += [_posed(draws, draws.choose(PLAIN), 0.02) for _ in range(2 + draws.below(3))]
    painted = [draws.choose(surfaces) if draws.below(2) else _any_surface(draws) for _ in clutter]
    ground = _any_surface(draws)
    colours = [_colour(draws, ground.hue, saturation=(0.05, 0.5), value=(0.35, 0.9))]
    others = [_toned(draws, colours[0], ground.other_hue, 0.15)]
    owner = np.zeros((side, side), np.uint8)
    tone = _pattern(draws, ground, (slice(0, side), slice(0, side)), side)
    filled = fill((*clutter, *forms), side)
    pieces = zip(filled, (*painted, *surfaces), strict=True)
    for number, ((window, inside), surface) in enumerate(pieces, 1):
        hue, other = (h + draws.uniform(-_HUES, _HUES) for h in (surface.hue, surface.other_hue))
        choices = [_colour(draws, hue, saturation=(0.4, 1), value=(0.4, 1)) for _ in range(3)]
        colours.append(max(choices, key=lambda colour: math.dist(colour, colours[0])))
        others.append(_toned(draws, colours[-1], other, draws.uniform(0.3, 0.6)))
        np.copyto(owner[window], np.uint8(number), where=inside)
        np.copyto(tone[window], _pattern(draws, surface, window, side), where=inside)
    first, other = np.array(colours, np.float32), np.array(others, np.float32)
    cast = [draws.uniform(0.85, 1.05) for _ in range(3)]
    light = _light(draws, owner)
    noise = draws.noise(3, size, size)
    image = np.empty((size, size, 3), np.uint8)
    index = owner.astype(np.intp)
    for channel in range(3):  # one at a time, so that its canvas stays in the CPU's cache
        canvas = (other - first)[:, channel].take(index, mode="clip")
        canvas *= tone
        canvas += first[:, channel].take(index, mode="clip")
        canvas *= light * np.float32(cast[channel])
        rows = canvas[::2] + canvas[1::2]
        small = (rows[:, ::2] + rows[:, 1::2]) * (255 / 4)
        small += noise[channel] * np.float32(0.05) - 6
        image[..., channel] = np.clip(small, 0, 255)
    return image


def _any_surface(draws: Rng) -> Surface:
    hue, other = draws.uniform(0, 1), draws.uniform(0, 1)
    return Surface(draws.choose(PATTERNS), hue, other, draws.uniform(0.04, 0.11))


def _colour(
    draws: Rng, hue: float, saturation: tuple[float, float], value: tuple[float, float]
) -> _Colour:
    return colorsys.hsv_to_rgb(hue % 1, draws.uniform(*saturation), draws.uniform(*value))


def _toned(draws: Rng, colour: _Colour, hue: float, contrast: float) -> _Colour:
    """A darker tone of a bright colour, or a brighter tone of a dark one."""
    signed = contrast if sum(colour) < 1.5 else -contrast
    change = _colour(draws, hue, saturation=(0, 0.7), value=(0.7, 1))
    r, g, b = (min(max(c + signed * d, 0), 1) for c, d in zip(colour, change, strict=True))
    return r, g, b


def _pattern(draws: Rng, surface: Surface, window: Window, side: int) -> Float[np.ndarray, "h w"]:
    """Weight of a piece's second tone in a window of the canvas, from 0 to 1."""
    turn, period = draws.uniform(0, 2 * math.pi), side * surface.period * draws.uniform(0.8, 1.25)
    cells = draws.noise(16, 16)
    pattern = surface.pattern
    y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] / period
    x = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :] / period
    if pattern == "plain":
        return np.zeros((y.size, x.size), np.float32)
    u = math.cos(turn) * x + math.sin(turn) * y
    if pattern == "stripes":
        return (u - np.floor(u) < 0.5).astype(np.float32)
    if pattern == "gradient":
        return (u - u.min()) / (u.max() - u.min() + np.float32(1e-6))
    v = math.cos(turn) * y - math.sin(turn) * x
    if pattern == "checks":
        return ((u - np.floor(u) < 0.5) != (v - np.floor(v) < 0.5)).astype(np.float32)
    if pattern == "dots":
        return ((u - np.rint(u)) ** 2 + (v - np.rint(v)) ** 2 < 0.09).astype(np.float32)
    return cells[(2 * u).astype(int) & 15, (2 * v).astype(int) & 15] / np.float32(255)


def _light(draws: Rng, owner: UInt8[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Brightness that falls off with distance from the light, with shadows of upper pieces."""
    side, turn = len(owner), draws.uniform(0, 2 * math.pi)
    dy, dx = math.sin(turn), math.cos(turn)
    places = np.arange(side)
    above = owner
    for axis, shift in enumerate((dy, dx)):
        above = above.take(places + round(0.015 * side * shift), axis=axis, mode="clip")
    across = (places / side - 0.5).astype(np.float32)
    slope = draws.uniform(0, 0.5)
    light = draws.uniform(0.85, 1.1) + slope * (dy * across[:, None] + dx * across[None])
    return np.multiply(light, np.float32(0.6), out=light, where=above > owner)


def _line(draws: Rng) -> Form:
    """A bent line."""
    a, b, c = (np.array([[draws.uniform(0, 1), draws.uniform(0, 1)]]) for _ in range(3))
    t = np.linspace(0, 1, 15)[:, None]
    middle = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    along = np.gradient(middle, axis=0)
    across = along[:, ::-1] * (-1, 1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = draws.uniform(0.004, 0.012) * across
    return (np.concatenate([middle + half, (middle - half)[::-1]]),)
