"""Folds of Pascal-5i, COCO-20i and COCO to Pascal: which image counts for which class.

The lists are derived from pixel counts. For Pascal-5i (Shaban et al. 2017) the rule reproduces the
published lists of all four folds image by image (Tian et al. 2020, arXiv 2008.01449, which the
field has used since).
"""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Integer

from prosam_jax.config import check_choice
from prosam_jax.errors import UserError, printable

MIN_PIXELS = 2048
"""Smallest number of pixels, at the original size, with which an image counts for a class."""

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class FoldRule:
    """The classes of a benchmark and how its folds divide them.

    Attributes:
        name: Name of the benchmark.
        class_names: Names of classes 1, 2, ...; 0 is background.
        novel: For each fold, the classes kept for testing, ascending.
        own: Whether these are a user's own classes. `novel` then says which are held out, for which
            nobody else's folds stand.
        by_class: Whether an episode is drawn by its class first (VRP-SAM's code for COCO-20i)
            rather than by its target (for Pascal-5i).
        published: (split, fold) -> (number of images, `digest`) of the lists that published results
            use; the digest is "" if only the number is known.
    """

    name: str
    class_names: tuple[str, ...]
    novel: tuple[tuple[int, ...], ...]
    own: bool = False
    by_class: bool = False
    published: Mapping[tuple[str, int], tuple[int, str]] = dataclasses.field(default_factory=dict)

    def classes(self, fold: int, split: str) -> tuple[int, ...]:
        """Classes of a split: "test" has the fold's novel ones, "train" all others.

        Raises:
            UserError: The split or the fold is unknown.
        """
        check_choice("split", split, SPLITS)
        if fold not in range(len(self.novel)):
            raise UserError(f"fold={fold} must be 0, 1, 2 or 3")
        novel = self.novel[fold]
        if split == "test":
            return novel
        return tuple(c for c in range(1, 1 + len(self.class_names)) if c not in novel)

    def index(
        self, ids: Sequence[str], counts: Integer[np.ndarray, "n c"], fold: int, split: str
    ) -> "FoldIndex":
        """Applies the rule to a pool of images.

        An image counts for a class if it has at least `MIN_PIXELS` pixels of it. In training it
        must also have no pixel of any novel class.

        Args:
            ids: Image ids of the pool. Pascal: VOC 2012's `train` and those images of SBD that are
                not in VOC 2012's `val` for training, VOC 2012's `val` for testing; COCO: train2014
                and val2014.
            counts: Pixels of background and of each class in each mask at its original size.
            fold: 0-3.
            split: "train" or "test".
        """
        classes = self.classes(fold, split)
        large = counts >= MIN_PIXELS
        if split == "train":
            large &= ~counts[:, list(self.novel[fold])].any(axis=1, keepdims=True)
        entries = {c: tuple(sorted(itertools.compress(ids, large[:, c]))) for c in classes}
        return FoldIndex(self, fold, split, entries)


@dataclasses.dataclass(frozen=True)
class FoldIndex:
    """The images of one split of one fold.

    Attributes:
        rule: The benchmark.
        fold: 0-3.
        split: "train" (base classes), "test" (novel classes), or "val" where a benchmark has other
            classes for validation.
        entries: The sorted ids of the images of each class of the split; classes are ascending.
    """

    rule: FoldRule
    fold: int
    split: str
    entries: Mapping[int, tuple[str, ...]]

    @property
    def label(self) -> str:
        """Benchmark, fold (where it has several) and split, or own classes that are held out."""
        if not self.rule.own:
            fold = f" fold {self.fold}" if len(self.rule.novel) > 1 else ""
            return f"{self.rule.name}{fold} {self.split}"
        novel = [self.rule.class_names[c - 1] for c in self.rule.novel[self.fold]]
        return f"{self.rule.name} {self.split} (held out for testing: {named(novel)})"

    @property
    def classes(self) -> tuple[int, ...]:
        """All classes of the split, including those without images."""
        return tuple(self.entries)

    @functools.cached_property
    def filled(self) -> tuple[int, ...]:
        """The classes that have images."""
        return tuple(c for c, ids in self.entries.items() if ids)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that have images."""
        return tuple(self.rule.class_names[c - 1] for c in self.filled)

    @functools.cached_property
    def images(self) -> tuple[str, ...]:
        """The sorted ids of the images of all classes, each once."""
        return tuple(sorted(self.classes_of))

    @functools.cached_property
    def shuffled(self) -> tuple[str, ...]:
        """`images` in a fixed order that is independent of their names' order."""
        return tuple(sorted(self.images, key=lambda x: hashlib.sha256(os.fsencode(x)).digest()))

    @functools.cached_property
    def classes_of(self) -> dict[str, tuple[int, ...]]:
        """The classes that each image counts for, ascending."""
        found: dict[str, tuple[int, ...]] = {}
        for class_id, ids in self.entries.items():
            for image_id in ids:
                found[image_id] = (*found.get(image_id, ()), class_id)
        return found

    def drawable(self, shots: int) -> "FoldIndex":
        """The index without the images of classes that have no more than `shots` of them.

        Raises:
            UserError: No class has more than `shots` images.
        """
        kept = {c: ids if len(ids) > shots else () for c, ids in self.entries.items()}
        if not any(kept.values()):
            most = max(map(len, self.entries.values()), default=0)
            raise UserError(
                f"{self.label}: an episode needs {shots + 1} images of one class, "
                f"and no class has more than {most}; choose other classes (data.fold, data.novel), "
                "fewer data.shots, or longer lists (data.train_list, data.val_list)"
            )
        return dataclasses.replace(self, entries=kept)


def digest(index: FoldIndex) -> str:
    """SHA-256 of the lines "class id", sorted by class and then by id."""
    lines = (f"{c} {image_id}" for c, ids in index.entries.items() for image_id in ids)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe(index: FoldIndex) -> str:
    """One line: `label` and `verdict`."""
    return f"{index.label}: {verdict(index)}"


def verdict(index: FoldIndex) -> str:
    """The number of images, whether they are the published list, and which classes have none."""
    found = f"{len(index.images):,} images"
    images, published = index.rule.published.get((index.split, index.fold), (0, ""))
    if digest(index) == published:
        return f"the published list, {found}"
    if published:
        line = f"NOT the published list, {found} instead of {images:,}"
    elif images:
        line = f"{found}; the published list has {images:,}, but its digest is not known"
    else:
        line = found
    empty = [index.rule.class_names[c - 1] for c, ids in index.entries.items() if not ids]
    if not empty:
        return line
    return f"{line}; too few images to draw {named(empty)}"


def named(classes: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(classes) - 3} more" if len(classes) > 3 else ""
    return printable(f"{', '.join(classes[:3])}{more}")


PASCAL_5I = FoldRule(
    "Pascal-5i",
    (
        "aeroplane", "bicycle", "bird", "boat", "bottle",
        "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person",
        "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    novel=tuple(tuple(range(5 * fold + 1, 5 * fold + 6)) for fold in range(4)),
    published={
        ("train", 0): (4208, "6f2fd19976dae1507f1569ff47dc095bdd981bb0a80ccd4a9a5b5b03f3a4f59c"),
        ("train", 1): (3726, "6170164ef88e3e4c508c220124ebe14934df2cda58fb2ef390582a62b808ecf2"),
        ("train", 2): (2752, "8c2e1e766ef711c6415299fbb90c29cfc447366e6d9286d8db5a6986b1245ac0"),
        ("train", 3): (4510, "d31de1bdeedf81fd7fcb4358e34249a430f8fd40c741b49b6ffd43c9190a42e2"),
        ("test", 0): (364, "0a1ecc2c1b172b774ff5f3afddb552f4287e2c998a8c999c634f54d2b89e4db3"),
        ("test", 1): (445, "e4dd17f78b4f659017901e24d7377f89b4d51ff90a3994ea9f42ee6612628785"),
        ("test", 2): (592, "2651acb6cadced635cfc80edb9133100343a2ced53569697e00b330bbcfd34e8"),
        ("test", 3): (336, "99a902de2551b30a17e55bd6899df799d44819fe73f7d628e150dfd8998d8eba"),
    },
)  # fmt: skip
"""VOC's classes in VOC's order; five consecutive ones are novel in each fold."""

COCO_20I = FoldRule(
    "COCO-20i",
    (
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
        "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat",
        "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack",
        "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball",
        "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket",
        "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
        "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair",
        "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse",
        "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
        "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
        "toothbrush",
    ),
    novel=tuple(tuple(range(fold + 1, 81, 4)) for fold in range(4)),
    by_class=True,
    published={
        ("train", 0): (21917, ""), ("train", 1): (41809, ""),
        ("train", 2): (43045, ""), ("train", 3): (44614, ""),
        ("test", 0): (26052, ""), ("test", 1): (15305, ""),
        ("test", 2): (13138, ""), ("test", 3): (12640, ""),
    },
)  # fmt: skip
"""COCO's classes by category id; every fourth is novel in a fold (Nguyen and Todorovic 2019)."""

_IN_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def in_coco(names: Iterable[str]) -> list[str]:
    """The names as COCO has them: "airplane" for VOC's "aeroplane", with blanks for "_"."""
    return [_IN_COCO.get(name, name).replace("_", " ") for name in names]


def _novel_in_coco(fold: int) -> tuple[int, ...]:
    novel = {COCO_20I.class_names[c - 1] for c in COCO_20I.novel[fold]}
    names = enumerate(in_coco(PASCAL_5I.class_names), 1)
    return tuple(c for c, name in names if name in novel)


COCO_TO_PASCAL = {
    "pascal_disjoint": FoldRule(
        "COCO to Pascal, disjoint",
        PASCAL_5I.class_names,
        novel=tuple(_novel_in_coco(fold) for fold in range(4)),
    ),
    "pascal_standard": dataclasses.replace(
        PASCAL_5I, name="COCO to Pascal, standard (COCO has shown most of these classes)"
    ),
}
"""What a model trained on a fold of COCO-20i is tested on, by the value of `data.test`.

"pascal_disjoint" tests the VOC classes that are novel in that fold of COCO-20i (Boudiaf et al.
2021, arXiv 2012.06166), "pascal_standard" the novel classes of that fold of Pascal-5i.
"""
