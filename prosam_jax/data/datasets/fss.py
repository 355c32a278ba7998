"""FSS-1000 (Li et al., CVPR 2020, arXiv 1907.12347): ten pictures of each of 1,000 classes.

```
<class>/<n>.jpg    n from 1 to 10, most of 224 x 224 pixels
<class>/<n>.png    its mask: the object where the gray is 128 or more
```

Training uses 520 classes, validation during training 240 others and the test 240 others again, so
there are no folds. `fss_classes.txt` names them in this order, a paragraph each. The authors fixed
only the test classes (`fss_test_set.txt` in github.com/HKUSTCV/FSS-1000) and leave the others to
chance (issue 7 there); these are the lists of HSNet (Min et al., ICCV 2021), which its successors
use, as github.com/isl-org/lang-seg has them. The test classes of both are the same.

An episode's target is a picture of the split and its references are other pictures of the same
class, drawn uniformly, with repetition: over 2,400 test episodes each picture is the target once,
as in HSNet's code and in Matcher's (arXiv 2305.13310). They, too, sum the areas of a class before
they divide, and report the mean over the 240 classes, at 400 x 400 and 518 x 518 pixels. SANSA's
code (arXiv 2505.21795) reports the mean IoU of the 2,400 episodes instead, which is another number.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt16
from PIL import Image

from prosam_jax import images
from prosam_jax.config import DataConfig
from prosam_jax.data.episodes import EpisodeSource, episode_source
from prosam_jax.data.folds import FoldIndex, FoldRule
from prosam_jax.errors import UserError

PAIRS = range(1, 11)
"""Numbers of the pictures of a class."""

PLACES = "", "data", "FSS-1000", "FSS-1000/data", "fewshot_data", "fewshot_data/fewshot_data"
"""Where the folders of the classes may lie: as the archive has them, and as HSNet, Matcher and
others ask for them."""

_LISTS = (pathlib.Path(__file__).parent / "fss_classes.txt").read_text().split("\n\n")
CLASSES: dict[str, list[str]] = dict(
    zip(("train", "val", "test"), map(str.split, _LISTS), strict=True)
)
"""Names of the classes of each split, sorted."""

_NUMBERS = {name: c for c, name in enumerate((x for of in CLASSES.values() for x in of), 1)}
# One fold. `fss_index` divides the others into those of training and those of validation.
FSS_1000 = FoldRule(
    "FSS-1000", tuple(_NUMBERS), novel=(tuple(_NUMBERS[name] for name in CLASSES["test"]),)
)
"""The classes, numbered in the order of training, validation, test."""


@dataclasses.dataclass(frozen=True)
class FSS:
    """The pictures and masks, by ids such as "abacus/1"; `path` has the folders of the classes."""

    path: pathlib.Path

    def image_path(self, image_id: str) -> pathlib.Path:
        """Path of a picture."""
        return self.path / f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> pathlib.Path:
        """Path of its mask."""
        return self.path / f"{image_id}.png"

    def image(self, image_id: str) -> Image.Image:
        """The picture, RGB, not rotated by EXIF data; UserError if it cannot be read."""
        return images.load(self.image_path(image_id), turn=False)

    def labels(self, image_id: str) -> UInt16[np.ndarray, "h w"]:
        """The class's number on the object, 0 elsewhere; UserError if the mask cannot be read.

        A few of the published masks are of another size than their picture, or no masks at all
        (`prosam prepare fss` names them). All are cut at 128, as published results have it.
        """
        gray = np.asarray(images.load(self.mask_path(image_id), turn=False).convert("L"))
        number = _NUMBERS[image_id.partition("/")[0]]
        return np.where(gray >= 128, np.uint16(number), np.uint16(0))

    def class_name(self, class_id: int) -> str:
        """Name of class 1-1000."""
        return FSS_1000.class_names[class_id - 1]

    def missing(self, ids: Iterable[str]) -> list[pathlib.Path]:
        """The pictures and masks that are missing."""
        files = (path(i) for i in ids for path in (self.image_path, self.mask_path))
        return [path for path in files if not path.is_file()]


def find(root: str) -> FSS | None:
    """The first of `PLACES` in `root` that has the folder of a class."""
    base = pathlib.Path(os.path.expanduser(root))
    for place in (base / name for name in PLACES):
        if place.is_dir() and not _NUMBERS.keys().isdisjoint(os.listdir(place)):
            return FSS(place)
    return None


@functools.cache
def fss_index(split: str) -> FoldIndex:
    """The pictures of each class of a split, "train", "val" or "test"; no file is looked at."""
    entries = {_NUMBERS[c]: tuple(sorted(f"{c}/{n}" for n in PAIRS)) for c in CLASSES[split]}
    return FoldIndex(FSS_1000, 0, split, entries)


def fss_episodes(
    cfg: DataConfig, split: str, *, seed: int, length: int | None = None
) -> EpisodeSource:
    """Episodes of one split.

    Args:
        cfg: Folder, shots and image size.
        split: "train", "val" or "test".
        seed: Seed of the draws.
        length: Number of episodes; None for one pass over the pictures.

    Raises:
        UserError: The folder is not there or lacks files of the split, or an episode needs more
            pictures than a class has.
    """
    command = f"prosam prepare fss --root {cfg.root or 'FOLDER'}"
    if not cfg.root:
        raise UserError(
            "data.root is not set: pass --config.data.root=FOLDER; it must be the folder of "
            f"FSS-1000 that contains the folders of the classes; make it with: {command}"
        )
    folder = find(cfg.root)
    if folder is None:
        raise UserError(
            f"data.root={cfg.root!r}: there is no folder of a class of FSS-1000, such as "
            f"{FSS_1000.class_names[0]}; make them with: {command}"
        )
    index = fss_index(split)
    if missing := folder.missing(index.images):
        raise UserError(
            f"data.root={cfg.root!r}: {len(missing):,} files of FSS-1000 are missing, such as "
            f"{', '.join(map(str, missing[:3]))}; complete them with: {command}"
        )
    return episode_source(folder, index.drawable(cfg.shots), cfg, split, seed=seed, length=length)
