"""Pascal-5i: which image shows which class in which of the four folds (Shaban et al. 2017).

The lists are derived from pixel counts by a rule that gives the published ones, image by image.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer

from prosam_jax.config import check_choice

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle",
    "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Names of classes 1-20 in VOC's order; 0 is background."""

MIN_PIXELS = 2048
"""Fewest pixels, at the original size, with which an image counts for a class."""

SPLITS = ("train", "test")

PUBLISHED = {
    ("train", 0): (4208, "6f2fd19976dae1507f1569ff47dc095bdd981bb0a80ccd4a9a5b5b03f3a4f59c"),
    ("train", 1): (3726, "6170164ef88e3e4c508c220124ebe14934df2cda58fb2ef390582a62b808ecf2"),
    ("train", 2): (2752, "8c2e1e766ef711c6415299fbb90c29cfc447366e6d9286d8db5a6986b1245ac0"),
    ("train", 3): (4510, "d31de1bdeedf81fd7fcb4358e34249a430f8fd40c741b49b6ffd43c9190a42e2"),
    ("test", 0): (364, "0a1ecc2c1b172b774ff5f3afddb552f4287e2c998a8c999c634f54d2b89e4db3"),
    ("test", 1): (445, "e4dd17f78b4f659017901e24d7377f89b4d51ff90a3994ea9f42ee6612628785"),
    ("test", 2): (592, "2651acb6cadced635cfc80edb9133100343a2ced53569697e00b330bbcfd34e8"),
    ("test", 3): (336, "99a902de2551b30a17e55bd6899df799d44819fe73f7d628e150dfd8998d8eba"),
}
"""(split, fold) -> (images, `digest`) of the lists that the field compares on."""


def novel_classes(fold: int) -> tuple[int, ...]:
    """The five classes that fold 0-3 keeps for testing, numbered from 1."""
    if fold not in range(4):
        raise ValueError(f"fold={fold} must be 0, 1, 2 or 3")
    return tuple(range(5 * fold + 1, 5 * fold + 6))


def base_classes(fold: int) -> tuple[int, ...]:
    """The fifteen classes that fold 0-3 trains on, numbered from 1."""
    novel = novel_classes(fold)
    return tuple(c for c in range(1, 21) if c not in novel)


@dataclasses.dataclass(frozen=True)
class FoldIndex:
    """The images of one split of one fold.

    Attributes:
        fold: 0-3.
        split: "train" (base classes) or "test" (novel classes).
        entries: For each class of the split, ascending, the sorted ids of its images.
    """

    fold: int
    split: str
    entries: Mapping[int, tuple[str, ...]]

    @property
    def classes(self) -> tuple[int, ...]:
        """All classes of the split, those without images too."""
        return tuple(self.entries)

    @functools.cached_property
    def images(self) -> tuple[str, ...]:
        """The distinct ids of all classes, sorted."""
        return tuple(sorted(self.classes_of))

    @functools.cached_property
    def classes_of(self) -> dict[str, tuple[int, ...]]:
        """For each image the classes that it counts for, ascending."""
        found: dict[str, tuple[int, ...]] = {}
        for class_id, ids in self.entries.items():
            for image_id in ids:
                found[image_id] = (*found.get(image_id, ()), class_id)
        return found

    def drawable(self, shots: int) -> "FoldIndex":
        """The index with only those classes filled that have an image more than `shots`.

        Raises:
            ValueError: No class has that many images.
        """
        kept = {c: ids if len(ids) > shots else () for c, ids in self.entries.items()}
        if not any(kept.values()):
            most = max(map(len, self.entries.values()))
            raise ValueError(
                f"fold {self.fold} {self.split}: an episode takes {shots + 1} images of one class, "
                f"and no class has more than {most}; choose another data.fold, fewer data.shots "
                "or longer data.train_list and data.val_list"
            )
        return dataclasses.replace(self, entries=kept)


def fold_index(
    ids: Sequence[str], counts: Integer[np.ndarray, "n 21"], fold: int, split: str
) -> FoldIndex:
    """Applies the rule of Pascal-5i to a pool of images.

    An image counts for a class with at least `MIN_PIXELS` pixels of it. In training it must
    besides show no pixel of any novel class.

    Args:
        ids: Image ids of the pool: for training VOC 2012's `train` and SBD's images that are not
            in VOC 2012's `val`, for testing VOC 2012's `val`.
        counts: Pixels of background and of each class in each mask at its original size.
        fold: 0-3.
        split: "train" or "test".
    """
    check_choice("split", split, SPLITS)
    novel = novel_classes(fold)
    large = counts >= MIN_PIXELS
    if split == "train":
        classes = base_classes(fold)
        large &= ~counts[:, list(novel)].any(axis=1, keepdims=True)
    else:
        classes = novel
    entries = {c: tuple(sorted(itertools.compress(ids, large[:, c]))) for c in classes}
    return FoldIndex(fold, split, entries)


def digest(index: FoldIndex) -> str:
    """SHA-256 of the lines "class id", by class and then by id."""
    lines = (f"{c} {image_id}" for c, ids in index.entries.items() for image_id in ids)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe(index: FoldIndex) -> str:
    """One line: is this the published list, how many images, which classes have none."""
    images, published = PUBLISHED[index.split, index.fold]
    name = f"Pascal-5i fold {index.fold} {index.split}"
    if digest(index) == published:
        return f"{name}: the published list, {images} images"
    line = f"{name}: NOT the published list, {len(index.images)} images instead of {images}"
    empty = [CLASS_NAMES[c - 1] for c, ids in index.entries.items() if not ids]
    return f"{line}; too few images to draw {', '.join(empty)}" if empty else line
