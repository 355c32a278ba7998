"""PASCAL VOC 2012 with SBD's masks, read from its plain folder.

```
JPEGImages/<id>.jpg
SegmentationClassAug/<id>.png       class numbers 0-20, 255 for pixels to ignore
ImageSets/Segmentation/<list>.txt   one id in a line
```
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from prosam_jax.config import DataConfig
from prosam_jax.data.episodes import EpisodeSource, episode_source
from prosam_jax.data.folds import CLASS_NAMES, fold_index
from prosam_jax.data.transforms import IGNORE

_IMAGES, _MASKS, _LISTS = "JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"
_CLASSES = 1 + len(CLASS_NAMES)


@dataclasses.dataclass(frozen=True)
class PascalFolder:
    """The folder that holds `JPEGImages`; see `find_folder`."""

    path: pathlib.Path

    def image_path(self, image_id: str) -> pathlib.Path:
        """Path of an image."""
        return self.path / _IMAGES / f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> pathlib.Path:
        """Path of its mask."""
        return self.path / _MASKS / f"{image_id}.png"

    def image(self, image_id: str) -> Image.Image:
        """The image, RGB, not turned as its EXIF data may ask, for masks lie on the stored pixels.

        Raises:
            ValueError: The file cannot be read.
        """
        with _opened(self.image_path(image_id)) as image:
            return image.convert("RGB")

    def labels(self, image_id: str) -> UInt8[np.ndarray, "h w"]:
        """The mask's class numbers.

        Raises:
            ValueError: The file cannot be read.
        """
        with _opened(self.mask_path(image_id)) as mask:
            return np.array(mask)

    def class_name(self, class_id: int) -> str:
        """VOC's name of class 1-20."""
        return CLASS_NAMES[class_id - 1]

    def ids(self, name: str, setting: str) -> list[str]:
        """The ids in a list, each once.

        Args:
            name: Name of the list, without ".txt".
            setting: The setting that gave this name, for messages.

        Raises:
            ValueError: There is no such list, it is empty, or files are missing that it names.
        """
        folder = self.path / _LISTS
        path = folder / f"{name}.txt"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "no list at all"
            raise ValueError(f"{setting}={name!r}: there is no {path}; the folder holds {known}")
        ids = list(dict.fromkeys(path.read_text().split()))
        if not ids:
            raise ValueError(f"{setting}={name!r}: {path} lists no image")
        files = itertools.chain(map(self.image_path, ids), map(self.mask_path, ids))
        missing = [str(p) for p in files if not p.is_file()]
        if missing:
            raise ValueError(
                f"{setting}={name!r}: {len(missing)} files are missing that {path} calls for, "
                f"such as {', '.join(missing[:3])}; complete the folder or shorten the list"
            )
        return ids

    def pixel_counts(self, ids: Sequence[str]) -> Int[np.ndarray, "n 21"]:
        """Pixels of background and of each class in each mask, at its original size.

        Raises:
            ValueError: A mask cannot be read, holds other values than 0-20 and 255, or differs
                from its image in size.
        """
        with concurrent.futures.ThreadPoolExecutor() as pool:  # Pillow decodes without the GIL
            return np.array(list(pool.map(self._count, ids)))

    def _count(self, image_id: str) -> list[int]:
        path, image_path = self.mask_path(image_id), self.image_path(image_id)
        with _opened(path) as mask:
            mask.load()
        if mask.mode not in ("P", "L"):
            raise ValueError(
                f"{path} is of mode {mask.mode}; a mask has one channel (mode P or L) of class "
                "numbers 0-20 and 255"
            )
        counts = mask.histogram()
        strange = [value for value in range(_CLASSES, IGNORE) if counts[value]]
        if strange:
            raise ValueError(f"{path} holds the value {strange[0]}; a mask holds 0-20 and 255")
        with _opened(image_path) as image:
            image_size = image.size
        if image_size != mask.size:
            raise ValueError(
                f"{path} has (width, height) {mask.size} and {image_path} {image_size}; an image "
                "and its mask must have one size"
            )
        return counts[:_CLASSES]


def find_folder(root: str) -> PascalFolder:
    """Finds VOC 2012 at `root`, in `root/VOC2012` or in `root/VOCdevkit/VOC2012`.

    Raises:
        ValueError: It is in none of them, or in several.
    """
    wanted = f"data.root must be the VOC2012 folder that holds {_IMAGES}, {_MASKS} and {_LISTS}"
    if not root:
        raise ValueError(f"data.root is not set; {wanted}")
    base = pathlib.Path(root).expanduser()
    places = [base, base / "VOC2012", base / "VOCdevkit" / "VOC2012"]
    found = [p for p in places if (p / _IMAGES).is_dir()]
    if len(found) != 1:
        where = " and ".join(map(str, found)) or f"nothing of that kind in {base}"
        raise ValueError(f"data.root={root!r}: found {where}; {wanted}")
    absent = [name for name in (_MASKS, _LISTS) if not (found[0] / name).is_dir()]
    if absent:
        raise ValueError(f"data.root={root!r}: {found[0]} lacks {' and '.join(absent)}; {wanted}")
    return PascalFolder(found[0])


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
        ValueError: The folder is not as it must be, or has no image for any episode.
    """
    folder = find_folder(cfg.root)
    setting = "train_list" if split == "train" else "val_list"
    ids = folder.ids(getattr(cfg, setting), f"data.{setting}")
    fold = fold_index(ids, folder.pixel_counts(ids), cfg.fold, split).drawable(cfg.shots)
    return episode_source(folder, fold, cfg, split, seed=seed, length=length)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three on broken files
        raise ValueError(f"cannot read {path}: {error}; copy the file again") from error
