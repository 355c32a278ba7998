"""COCO 2014 as `prosam prepare` leaves it, with ids like "val2014/COCO_val2014_0...42".

```
<id>.jpg                           train2014/COCO_train2014_<number>.jpg and so on
annotations/<id>.png               class numbers 0-80 by category id, 255 for pixels to ignore
annotations/<list>.txt             train2014.txt and val2014.txt, one id per line
```

The masks are where HSNet's code (Min et al. 2021) and its successors expect them.
"""

import os
import pathlib

from prosam_jax.config import DataConfig
from prosam_jax.data.datasets import tfds
from prosam_jax.data.datasets.mask_folder import MaskFolder, folder_episodes
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.folds import COCO_20I
from prosam_jax.errors import UserError

LISTS = "annotations"
OWN_LISTS = "train2014", "val2014"
"""Names of the lists of the training and the test pool, and of their folders of images."""


def coco_folder(path: pathlib.Path) -> MaskFolder:
    """The files of the folder that contains `train2014`, `val2014` and `annotations`."""
    return MaskFolder(path, COCO_20I, "{}.jpg", f"{LISTS}/{{}}.png", LISTS)


def find_folder(root: str) -> MaskFolder:
    """Finds COCO 2014 at `root`.

    Raises:
        UserError: It is not there, or not complete.
    """
    wanted = (
        f"it must be the folder of COCO 2014 that contains {', '.join(OWN_LISTS)} and {LISTS}; "
        f"make it with: prosam prepare coco --root {root or 'FOLDER'} --download"
    )
    if not root:
        raise UserError(f"data.root is not set: pass --config.data.root=FOLDER; {wanted}")
    path = pathlib.Path(os.path.expanduser(root))
    if absent := [name for name in (*OWN_LISTS, LISTS) if not (path / name).is_dir()]:
        raise UserError(f"data.root={root!r}: {path} lacks {' and '.join(absent)}; {wanted}")
    return coco_folder(path)


def coco_episodes(
    cfg: DataConfig, split: str, *, seed: int, length: int | None = None
) -> EpisodeSource:
    """Episodes of one split of a COCO-20i fold.

    Args:
        cfg: Folder, fold, lists, shots and image size.
        split: "train" or "test".
        seed: Seed of the draws.
        length: Number of episodes; None for as many as there are images.

    Raises:
        UserError: The folder is not valid, or has too few images for an episode.
    """
    folder = tfds.find(cfg.root, COCO_20I) or find_folder(cfg.root)
    return folder_episodes(folder, COCO_20I, cfg, split, OWN_LISTS, seed=seed, length=length)
