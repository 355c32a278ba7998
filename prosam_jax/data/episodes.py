"""Episodes: which images make one up, as a function of (seed, index), and how it is read.

Random choices use the raw bits of PCG64 directly, so an episode depends neither on NumPy's version
nor on the number of workers nor on restarts.
"""

import bisect
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt, UInt8
from PIL import Image

from prosam_jax.config import DataConfig
from prosam_jax.data.annotation import drawn_annotation
from prosam_jax.data.folds import FoldIndex
from prosam_jax.data.rng import Rng
from prosam_jax.data.transforms import class_mask, ignored, resize_image, resize_mask
from prosam_jax.errors import UserError
from prosam_jax.types import Episode

_T = TypeVar("_T")

# Each purpose has its own stream of bits.
_TRAIN, _TEST, _ORDER, _TRAIN_MARKS, _TEST_MARKS, _WRONG = range(6)
_ATTEMPTS = 20  # to find a reference with an annotated pixel


@dataclasses.dataclass(frozen=True)
class EpisodeSpec:
    """The images of an episode.

    Attributes:
        index: Index of the episode in its list or stream.
        class_id: Class to segment, numbered as in the dataset.
        target_id: Id of the target image.
        reference_ids: Ids of the reference images, one per shot; none of them is the target.
    """

    index: int
    class_id: int
    target_id: str
    reference_ids: tuple[str, ...]

    def __str__(self) -> str:
        """The line "index class target references..."."""
        return " ".join([str(self.index), str(self.class_id), self.target_id, *self.reference_ids])


def draw_train(fold: FoldIndex, seed: int, index: int, shots: int) -> EpisodeSpec:
    """Draws a training episode; every pass over the targets is in a new order.

    Class and references are drawn uniformly from the possible ones, and references may repeat, as
    in VRP-SAM's code (arXiv 2402.17726), but with other random numbers.

    Args:
        fold: The images, as `FoldIndex.drawable(shots)` gives them.
        seed: At least 0.
        index: Index in the endless stream of episodes.
        shots: Number of reference images.
    """
    epoch, position = divmod(index, len(fold.images))
    target_id = fold.images[_order(seed, epoch, len(fold.images))[position]]
    return _around(target_id, fold, index, _bits(seed, _TRAIN, index, 1 + shots))


def draw_test(fold: FoldIndex, seed: int, index: int, shots: int) -> EpisodeSpec:
    """Draws a test episode; the targets take turns in the order of their ids.

    Everything else is as in `draw_train`.
    """
    target_id = fold.images[index % len(fold.images)]
    return _around(target_id, fold, index, _bits(seed, _TEST, index, 1 + shots))


def draw_shuffled(fold: FoldIndex, seed: int, index: int, shots: int) -> EpisodeSpec:
    """Draws a test episode like `draw_test`, but with the targets in a fixed shuffled order.

    So the first targets show all classes, even if file names begin with the class.
    """
    target_id = fold.shuffled[index % len(fold.images)]
    return _around(target_id, fold, index, _bits(seed, _TEST, index, 1 + shots))


def draw_by_class(fold: FoldIndex, seed: int, index: int, shots: int) -> EpisodeSpec:
    """Draws an episode by its class first, for training or testing according to the fold's split.

    Class, target and references are each drawn uniformly from the possible ones, with repetition,
    as in VRP-SAM's code for COCO-20i. There, every GPU draws the same episodes; here, each index
    has its own.
    """
    stream = _TRAIN if fold.split == "train" else _TEST
    of_class, of_query, *others = _bits(seed, stream, index, 2 + shots)
    class_id = _choose(of_class, fold.filled)
    target_id = _choose(of_query, fold.entries[class_id])
    return EpisodeSpec(index, class_id, target_id, _references(others, fold, class_id, target_id))


def draw_wrong(fold: FoldIndex, seed: int, right: EpisodeSpec) -> EpisodeSpec:
    """A test episode's target with references of another class of the fold.

    Class and references are drawn uniformly from the possible ones. The target may show that class,
    too: a model that follows the reference misses the right object either way.

    Raises:
        UserError: The fold has images of only one class.
    """
    others = [c for c in fold.filled if c != right.class_id]
    if not others:
        raise UserError(
            f"{fold.label} has only one class, so there is no reference of a wrong class: name two "
            "classes in data.novel"
        )
    of_class, *bits = _bits(seed, _WRONG, right.index, 1 + len(right.reference_ids))
    class_id = _choose(of_class, others)
    references = _references(bits, fold, class_id, right.target_id)
    return dataclasses.replace(right, class_id=class_id, reference_ids=references)


def episode_list_digest(specs: Iterable[EpisodeSpec]) -> str:
    """SHA-256 of the specs' lines, which identifies a list of episodes."""
    return hashlib.sha256("\n".join(map(str, specs)).encode()).hexdigest()


def _around(target_id: str, fold: FoldIndex, index: int, bits: list[int]) -> EpisodeSpec:
    class_id = _choose(bits[0], fold.classes_of[target_id])
    return EpisodeSpec(index, class_id, target_id, _references(bits[1:], fold, class_id, target_id))


def _references(
    bits: Sequence[int], fold: FoldIndex, class_id: int, target_id: str
) -> tuple[str, ...]:
    """Draws images of the class that are not the target, one per number in `bits`."""
    ids = fold.entries[class_id]
    target = bisect.bisect_left(ids, target_id)
    shown = ids[target : target + 1] == (target_id,)
    drawn = [_choose(b, range(len(ids) - shown)) for b in bits]
    return tuple(ids[i + (shown and i >= target)] for i in drawn)


def _choose(bits: int, items: Sequence[_T]) -> _T:
    return items[bits * len(items) >> 64]  # 64 uniform bits, scaled to a position


def _bits(seed: int, stream: int, index: int, n: int) -> list[int]:
    return np.random.PCG64(np.random.SeedSequence([seed, stream, index])).random_raw(n).tolist()


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
    return np.argsort(_bits(seed, _ORDER, epoch, n), kind="stable")


@runtime_checkable
class Images(Protocol):
    """A dataset: images and label maps by id. It is pickled for workers."""

    def image(self, image_id: str) -> Image.Image:
        """The image, RGB."""
        ...

    def labels(self, image_id: str) -> UInt[np.ndarray, "h w"]:
        """Its class numbers, 0 for background; pixels to ignore are as `IGNORE` has them."""
        ...

    def class_name(self, class_id: int) -> str:
        """The name of a class."""
        ...


@dataclasses.dataclass(frozen=True)
class EpisodeSource:
    """Episodes by index: `source[i]` reads episode i, unbatched, and is always the same.

    Attributes:
        images: The dataset that images and labels are read from.
        fold: The index that episodes are drawn from.
        draw: `draw_train`, `draw_test`, `draw_shuffled` or `draw_by_class`.
        seed: Seed of the draws.
        shots: Reference images per episode.
        size: Side in pixels of the square that everything is resized to.
        length: Number of episodes.
        annotation: How references are annotated, see `data.annotation`.
        empty_annotation: What happens to a reference without an annotated pixel, see
            `data.empty_annotation`.
        wrong: Whether the references are followed by as many of a wrong class (`draw_wrong`).
        canvas: (height, width) into which the true masks fit in their own pixels; None to resize
            them to the square as well.
    """

    images: Images
    fold: FoldIndex
    draw: Callable[[FoldIndex, int, int, int], EpisodeSpec]
    seed: int
    shots: int
    size: int
    length: int
    annotation: str = "mask"
    empty_annotation: str = "redraw"
    wrong: bool = False
    canvas: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.length

    def spec(self, index: int) -> EpisodeSpec:
        """The images of episode `index`."""
        return self.draw(self.fold, self.seed, index, self.shots)

    def image(self, image_id: str) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of an image as episodes show them."""
        return resize_image(self.images.image(image_id), self.size)

    def __getitem__(self, index: int) -> Episode:
        spec = self.spec(index)
        labels = self.images.labels(spec.target_id)
        if self.canvas:
            below, beside = (room - n for room, n in zip(self.canvas, labels.shape, strict=True))
            none = ignored(labels.dtype)
            shown = np.pad(labels, ((0, below), (0, beside)), constant_values=none)
        else:
            shown = resize_mask(labels, self.size)
        target_mask, target_ignore = class_mask(shown, spec.class_id)
        specs = [spec]
        if self.wrong:
            specs.append(draw_wrong(self.fold, self.seed, spec))
        supports = [self._reference(of, shot) for of in specs for shot in range(self.shots)]
        reference_image, reference_mask = map(np.stack, zip(*supports, strict=True))
        return Episode(
            reference_image=reference_image,
            reference_mask=reference_mask,
            target_image=self.image(spec.target_id),
            target_mask=target_mask,
            target_ignore=target_ignore,
            class_id=np.int32(spec.class_id),
            index=np.int32(spec.index),
            valid=np.bool_(True),
            target_size=np.array(labels.shape, np.int32),
        )

    def _reference(self, spec: EpisodeSpec, shot: int) -> tuple[np.ndarray, np.ndarray]:
        """A reference image and its annotation.

        If no attempt gives an annotated pixel, the first one stays and is counted, so that a run
        does not fail.
        """
        training = self.fold.split == "train"
        stream = _TRAIN_MARKS if training else _TEST_MARKS
        image_id, found = spec.reference_ids[shot], []
        for attempt in range(_ATTEMPTS if self.empty_annotation == "redraw" else 1):
            draws = Rng(self.seed, stream, spec.index, shot, attempt)
            image, mask, _ = self._read(image_id, spec.class_id)
            annotated = drawn_annotation(self.annotation, mask, draws, training=training)
            if annotated.any():
                return image, annotated
            found.append((image, annotated))
            if not mask.any():
                others = [i for i in self.fold.entries[spec.class_id] if i != spec.target_id]
                image_id = draws.choose(others)
        return found[0]

    def _read(self, image_id: str, class_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = resize_mask(self.images.labels(image_id), self.size)
        return self.image(image_id), *class_mask(labels, class_id)


def episode_source(
    images: Images, fold: FoldIndex, cfg: DataConfig, split: str, *, seed: int, length: int | None
) -> EpisodeSource:
    """Episodes of one split of a fold; with `length` None, one pass over its images."""
    by_target = draw_train if split == "train" else draw_test
    if cfg.name in ("folder", "fss") and split != "train":
        by_target = draw_shuffled
    return EpisodeSource(
        images=images,
        fold=fold,
        draw=draw_by_class if fold.rule.by_class else by_target,
        seed=seed,
        shots=cfg.shots,
        size=cfg.image_size,
        length=len(fold.images) if length is None else length,
        annotation=cfg.annotation,
        empty_annotation=cfg.empty_annotation,
    )
