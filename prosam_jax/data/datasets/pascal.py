"""PASCAL VOC 2012 with SBD's masks, read from its plain folder.

```
JPEGImages/<id>.jpg
SegmentationClassAug/<id>.png       class numbers 0-20, 255 for pixels to ignore
ImageSets/Segmentation/<list>.txt   one id per line
```
"""

import os
import pathlib

from prosam_jax.config import DataConfig
from prosam_jax.data.datasets import tfds
from prosam_jax.data.datasets.mask_folder import MaskFolder, folder_episodes
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.folds import PASCAL_5I, FoldRule
from prosam_jax.errors import UserError

IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"
OWN_LISTS = "train_aug", "val"
"""Names of the lists of the training and the test pool."""

_WANTED = f"must be the VOC2012 folder that contains {IMAGES}, {MASKS} and {LISTS}"


def pascal_folder(path: pathlib.Path) -> MaskFolder:
    """The files of the folder that contains `JPEGImages`."""
    return MaskFolder(path, PASCAL_5I, f"{IMAGES}/{{}}.jpg", f"{MASKS}/{{}}.png", LISTS)


def find_images(root: str, setting: str = "data.root") -> list[pathlib.Path]:
    """Folders with `JPEGImages` among `root`, `root/VOC2012` and `root/VOCdevkit/VOC2012`.

    Raises:
        UserError: There is more than one.
    """
    base = _base(root)
    places = [base, base / "VOC2012", base / "VOCdevkit" / "VOC2012"]
    found = [p for p in places if (p / IMAGES).is_dir()]
    if len(found) > 1:
        raise UserError(f"{setting}={root!r}: found {' and '.join(map(str, found))}; it {_WANTED}")
    return found


def find_folder(root: str, setting: str = "data.root") -> MaskFolder:
    """Finds VOC 2012 at `root`, in `root/VOC2012` or in `root/VOCdevkit/VOC2012`.

    Args:
        root: Where to look.
        setting: The setting that gives `root`, for messages.

    Raises:
        UserError: It is in none of them, in several, or not complete.
    """
    command = f"prosam prepare pascal --root {root or 'FOLDER'}"
    if not root:
        raise UserError(
            f"{setting} is not set: pass --config.{setting}=FOLDER; it {_WANTED}; make it with: "
            f"{command} --download"
        )
    found = find_images(root, setting)
    if not found:
        raise UserError(
            f"{setting}={root!r}: there is no VOC 2012 in {_base(root)}; it {_WANTED}; make it "
            f"with: {command} --download"
        )
    if absent := [name for name in (MASKS, LISTS) if not (found[0] / name).is_dir()]:
        raise UserError(
            f"{setting}={root!r}: {found[0]} lacks {' and '.join(absent)}; it {_WANTED}; make them "
            f"with: {command}"
        )
    return pascal_folder(found[0])


def pascal_episodes(
    cfg: DataConfig, split: str, *, seed: int, length: int | None = None
) -> EpisodeSource:
    """Episodes of one split of a Pascal-5i fold.

    Args:
        cfg: Folder, fold, lists, shots and image size.
        split: "train" or "test".
        seed: Seed of the draws.
        length: Number of episodes; None for one pass over the images.

    Raises:
        UserError: The folder is not valid, or has too few images for an episode.
    """
    folder = tfds.find(cfg.root, PASCAL_5I) or find_folder(cfg.root)
    return folder_episodes(folder, PASCAL_5I, cfg, split, OWN_LISTS, seed=seed, length=length)


def transfer_episodes(
    cfg: DataConfig, rule: FoldRule, *, seed: int, length: int | None = None
) -> EpisodeSource:
    """Test episodes on VOC's images for a model that was trained on something else.

    Args:
        cfg: `test_root`, fold, list, shots and image size.
        rule: Which of VOC's classes a fold tests.
        seed: Seed of the draws.
        length: Number of episodes; None for one pass over the images.

    Raises:
        UserError: The folder is not valid, or has too few images for an episode.
    """
    root = cfg.test_root
    folder = tfds.find(root, PASCAL_5I) or find_folder(root, "data.test_root")
    return folder_episodes(folder, rule, cfg, "test", OWN_LISTS, seed=seed, length=length)


def _base(root: str) -> pathlib.Path:
    return pathlib.Path(os.path.expanduser(root))
