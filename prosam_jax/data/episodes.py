"""Which images make up an episode, as a function of (seed, index), and how one is read.

Choices come straight from the bits of PCG64 (`draws`). So neither NumPy's version nor the number
of workers nor a restart changes an episode.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from prosam_jax.config import DataConfig
from prosam_jax.data.annotation import annotate
from prosam_jax.data.draws import Draws
from prosam_jax.data.folds import FoldIndex
from prosam_jax.data.transforms import class_mask, resize_image, resize_mask
from prosam_jax.types import Episode

_T = TypeVar("_T")

# Each purpose has its own stream of bits.
_TRAIN, _TEST, _ORDER, _TRAIN_MARKS, _TEST_MARKS = range(5)
_ATTEMPTS = 20  # to find a reference on which something is marked


@dataclasses.dataclass(frozen=True)
class EpisodeSpec:
    """The images of an episode.

    Attributes:
        index: Index of the episode in its list or stream.
        class_id: Class to be segmented, numbered as in the dataset.
        query_id: Id of the target image.
        support_ids: Ids of the reference images, one for each shot; none is the target.
    """

    index: int
    class_id: int
    query_id: str
    support_ids: tuple[str, ...]


def draw_train(fold: FoldIndex, seed: int, index: int, shots: int) -> EpisodeSpec:
    """Draws a training episode; every pass over the targets has an order of its own.

    Class and references are uniform over those possible, and references may repeat, as in
    VRP-SAM's code (arXiv 2402.17726; its random numbers are others).

    Args:
        fold: The images, as `FoldIndex.drawable(shots)` gives them.
        seed: At least 0.
        index: Index in the endless stream of episodes.
        shots: Number of reference images.
    """
    epoch, position = divmod(index, len(fold.images))
    query_id = fold.images[_order(seed, epoch, len(fold.images))[position]]
    return _around(query_id, fold, index, _bits(seed, _TRAIN, index, 1 + shots))


def draw_test(fold: FoldIndex, seed: int, index: int, shots: int) -> EpisodeSpec:
    """Draws a test episode; the targets take turns in the order of their ids.

    All else is as in `draw_train`.
    """
    query_id = fold.images[index % len(fold.images)]
    return _around(query_id, fold, index, _bits(seed, _TEST, index, 1 + shots))


def episode_list_digest(specs: Iterable[EpisodeSpec]) -> str:
    """SHA-256 of the lines "index class target references...", the name of a list of episodes."""
    lines = (
        " ".join([str(spec.index), str(spec.class_id), spec.query_id, *spec.support_ids])
        for spec in specs
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _around(query_id: str, fold: FoldIndex, index: int, bits: list[int]) -> EpisodeSpec:
    class_id = _choose(bits[0], fold.classes_of[query_id])
    others = [image_id for image_id in fold.entries[class_id] if image_id != query_id]
    return EpisodeSpec(index, class_id, query_id, tuple(_choose(b, others) for b in bits[1:]))


def _choose(bits: int, items: Sequence[_T]) -> _T:
    return items[bits * len(items) >> 64]  # 64 uniform bits, scaled to a position


def _bits(seed: int, stream: int, index: int, n: int) -> list[int]:
    return np.random.PCG64(np.random.SeedSequence([seed, stream, index])).random_raw(n).tolist()


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
    return np.argsort(_bits(seed, _ORDER, epoch, n), kind="stable")


@runtime_checkable
class Images(Protocol):
    """A dataset: images and label maps by id. Workers receive it pickled."""

    def image(self, image_id: str) -> Image.Image:
        """The image, RGB."""
        ...

    def labels(self, image_id: str) -> UInt8[np.ndarray, "h w"]:
        """Its class numbers, 0 for background and 255 for pixels to ignore."""
        ...

    def class_name(self, class_id: int) -> str:
        """What a class is called."""
        ...


@dataclasses.dataclass(frozen=True)
class EpisodeSource:
    """Reads episode i at `source[i]`: unbatched, images as uint8, nothing random left.

    Attributes:
        images: Where images and labels are read.
        fold: What is drawn from.
        draw: `draw_train` or `draw_test`.
        seed: Seed of the draws.
        shots: Reference images per episode.
        size: Side in pixels of the square that everything is brought to.
        length: Number of episodes.
        annotation: How references are marked, one of `config.ANNOTATIONS`.
        cueless: What becomes of a reference without a marked pixel, one of `config.CUELESS`.
    """

    images: Images
    fold: FoldIndex
    draw: Callable[[FoldIndex, int, int, int], EpisodeSpec]
    seed: int
    shots: int
    size: int
    length: int
    annotation: str = "mask"
    cueless: str = "redraw"

    def __len__(self) -> int:
        return self.length

    def spec(self, index: int) -> EpisodeSpec:
        """Which images episode `index` is made of."""
        return self.draw(self.fold, self.seed, index, self.shots)

    def __getitem__(self, index: int) -> Episode:
        spec = self.spec(index)
        query_image, query_mask, query_ignore = self._read(spec.query_id, spec.class_id)
        supports = [self._reference(spec, shot) for shot in range(self.shots)]
        support_image, support_mask = map(np.stack, zip(*supports, strict=True))
        return Episode(
            support_image=support_image,
            support_mask=support_mask,
            query_image=query_image,
            query_mask=query_mask,
            query_ignore=query_ignore,
            class_id=np.int32(spec.class_id),
            index=np.int32(spec.index),
            valid=np.bool_(True),
        )

    def _reference(self, spec: EpisodeSpec, shot: int) -> tuple[np.ndarray, np.ndarray]:
        """A reference image and its annotation.

        Raises:
            ValueError: "redraw" was asked for, and no attempt gave a marked pixel.
        """
        training = self.fold.split == "train"
        stream = _TRAIN_MARKS if training else _TEST_MARKS
        image_id = spec.support_ids[shot]
        for attempt in range(_ATTEMPTS):
            draws = Draws(self.seed, stream, spec.index, shot, attempt)
            image, mask, _ = self._read(image_id, spec.class_id)
            marked = annotate(self.annotation, mask, draws, training=training)
            if marked.any() or self.cueless == "report":
                return image, marked
            if not mask.any():
                others = [i for i in self.fold.entries[spec.class_id] if i != spec.query_id]
                image_id = draws.choose(others)
        name = self.images.class_name(spec.class_id)
        raise ValueError(
            f"episode {spec.index}: {_ATTEMPTS} references of {name} in a row, such as "
            f"{spec.support_ids[shot]}, show no pixel of it at data.image_size={self.size}; "
            "raise that, or set data.cueless to report"
        )

    def _read(self, image_id: str, class_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = resize_image(self.images.image(image_id), self.size)
        return image, *class_mask(resize_mask(self.images.labels(image_id), self.size), class_id)


def episode_source(
    images: Images, fold: FoldIndex, cfg: DataConfig, split: str, *, seed: int, length: int | None
) -> EpisodeSource:
    """Episodes of one split of a fold; `length` None is one pass over its images."""
    return EpisodeSource(
        images=images,
        fold=fold,
        draw=draw_train if split == "train" else draw_test,
        seed=seed,
        shots=cfg.shots,
        size=cfg.image_size,
        length=len(fold.images) if length is None else length,
        annotation=cfg.annotation,
        cueless=cfg.cueless,
    )
