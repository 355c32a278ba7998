"""A folder of images and masks of class numbers, as for Pascal and COCO.

Counting the pixels of every mask takes minutes for COCO, so `prosam prepare` keeps the counts in
`pixel_counts.npz`. They are used as long as a mask's size in bytes and modification time stay the
same; other masks are counted again.
"""

import concurrent.futures
import dataclasses
import itertools
import pathlib
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from prosam_jax import images
from prosam_jax.atomic import replacing
from prosam_jax.config import DataConfig
from prosam_jax.data.datasets.folder_files import lines
from prosam_jax.data.datasets.tfds import TfdsMasks
from prosam_jax.data.episodes import EpisodeSource, episode_source
from prosam_jax.data.folds import FoldRule
from prosam_jax.data.transforms import IGNORE
from prosam_jax.errors import UserError

COUNTS = "pixel_counts.npz"
_AGAIN = "; prosam prepare makes it again if you delete it"

_Stamp = tuple[int, int]  # bytes and nanoseconds of a file


@dataclasses.dataclass(frozen=True)
class MaskFolder:
    """Where a benchmark's files are; "{}" stands for an image's id.

    Attributes:
        path: The folder that contains all files.
        rule: The classes of the masks.
        images: Path of an image in the folder, such as "JPEGImages/{}.jpg".
        masks: Path of a mask in the folder.
        lists: Folder of the lists of ids, `<name>.txt` with one id per line.
        square: Side of the square that images will be resized to, for fast decoding; 0 decodes
            every pixel.
    """

    path: pathlib.Path
    rule: FoldRule
    images: str
    masks: str
    lists: str
    square: int = 0

    def image_path(self, image_id: str) -> pathlib.Path:
        """Path of an image."""
        return self.path / self.images.format(image_id)

    def mask_path(self, image_id: str) -> pathlib.Path:
        """Path of its mask."""
        return self.path / self.masks.format(image_id)

    def list_path(self, name: str) -> pathlib.Path:
        """Path of a list of ids."""
        return self.path / self.lists / f"{name}.txt"

    def image(self, image_id: str) -> Image.Image:
        """The image, RGB, not rotated by EXIF data, because masks match the stored pixels.

        Raises:
            UserError: The file cannot be read.
        """
        return images.load(self.image_path(image_id), turn=False, square=self.square)

    def labels(self, image_id: str) -> UInt8[np.ndarray, "h w"]:
        """The mask's class numbers, 255 for pixels to ignore.

        Raises:
            UserError: The file cannot be read.
        """
        return images.read_labels(self.mask_path(image_id))

    def class_name(self, class_id: int) -> str:
        """Name of class 1, 2, ..."""
        return self.rule.class_names[class_id - 1]

    def ids(self, name: str, setting: str) -> list[str]:
        """The ids in a list, each once.

        Args:
            name: Name of the list, without ".txt".
            setting: The setting that gives this name, for messages.

        Raises:
            UserError: There is no such list, it is empty, or it names files that are missing.
        """
        path = self.list_path(name)
        if not path.is_file():
            lists = path.parent.glob("[!.]*.txt")
            known = ", ".join(sorted(x.stem for x in lists)) or "no list at all"
            raise UserError(
                f"{setting}={name!r}: there is no {path}; the folder has {known}; `prosam "
                "prepare` writes the benchmark's own lists"
            )
        ids = list(dict.fromkeys(" ".join(lines(path)).split()))
        if not ids:
            raise UserError(f"{setting}={name!r}: {path} is empty; choose another list")
        if missing := self.missing(ids):
            raise UserError(
                f"{setting}={name!r}: {len(missing)} files of {path} are missing, such as "
                f"{', '.join(map(str, missing[:3]))}; complete the folder or shorten the list"
            )
        return ids

    def missing(self, ids: Collection[str]) -> list[pathlib.Path]:
        """The images, then the masks, that are missing."""
        files = itertools.chain(map(self.image_path, ids), map(self.mask_path, ids))
        return [path for path in files if not path.is_file()]

    def pixel_counts(
        self,
        ids: Sequence[str],
        watch: Callable[[Iterable[list[int]], int], Iterable[list[int]]] = lambda counts, n: counts,
    ) -> Int[np.ndarray, "n c"]:
        """Number of pixels of background and of each class in each mask, at its original size.

        Masks whose counts are not known are read together with their images, so that damaged files
        are found before training.

        Args:
            ids: The images.
            watch: Wraps the iterable of counts of the masks to read, and receives their number, for
                a progress bar.

        Raises:
            UserError: A mask or its image cannot be read to the end, a mask has a number that is
                not a class or a size that differs from its image, or `pixel_counts.npz` is damaged.
        """
        known = self._known_counts()
        stamps = [_stamp(self.mask_path(image_id)) for image_id in ids]
        kept = [known.get((i, stamp)) for i, stamp in zip(ids, stamps, strict=True)]
        wanted = [i for i, counts in zip(ids, kept, strict=True) if counts is None]
        with concurrent.futures.ThreadPoolExecutor() as pool:  # Pillow decodes without the GIL
            new = iter(list(watch(pool.map(self._count, wanted), len(wanted))))
        return np.array([next(new) if counts is None else counts for counts in kept], np.int32)

    def keep_pixel_counts(self, ids: Sequence[str], counts: Int[np.ndarray, "n c"]) -> None:
        """Writes counts to the file from which `pixel_counts` takes them."""
        stamps = [_stamp(self.mask_path(image_id)) for image_id in ids]
        with replacing(self.path / COUNTS) as part, part.open("wb") as file:
            np.savez_compressed(file, ids=np.array(ids), stamps=np.array(stamps), counts=counts)

    def _known_counts(self) -> dict[tuple[str, _Stamp], Int[np.ndarray, " c"]]:
        path = self.path / COUNTS
        if not path.is_file():
            return {}
        try:
            with path.open("rb") as content, np.load(content) as file:
                ids, stamps, counts = (file[name] for name in ("ids", "stamps", "counts"))
            if counts.shape != (len(ids), 1 + len(self.rule.class_names)):
                raise ValueError(f"it has counts of shape {counts.shape}")
            keys = zip(ids.tolist(), map(tuple, stamps.tolist()), strict=True)
            return dict(zip(keys, counts, strict=True))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"cannot read {path} ({error}); delete it to count again") from error

    def _count(self, image_id: str) -> list[int]:
        path, image_path = self.mask_path(image_id), self.image_path(image_id)
        classes = 1 + len(self.rule.class_names)
        try:
            mask = Image.fromarray(images.read_labels(path))
        except UserError as error:
            raise UserError(f"{error}{_AGAIN}") from error
        counts = mask.histogram()
        strange = [value for value in range(classes, IGNORE) if counts[value]]
        if strange:
            raise UserError(
                f"{path} contains the number {strange[0]}; a mask of {self.rule.name} contains "
                f"only 0-{classes - 1} and 255{_AGAIN}"
            )
        # This reads a JPEG to its end but decodes only 1/64 of its pixels.
        images.load(image_path, turn=False, fit=mask.size, square=1)
        return counts[:classes]


def folder_episodes(
    folder: MaskFolder | TfdsMasks,
    rule: FoldRule,
    cfg: DataConfig,
    split: str,
    own_lists: tuple[str, str],
    *,
    seed: int,
    length: int | None,
) -> EpisodeSource:
    """Episodes of one split of a fold.

    Args:
        folder: Images and masks.
        rule: How the folds divide the folder's classes.
        cfg: Fold, lists, shots, image size and how images are decoded.
        split: "train" or "test".
        own_lists: Names of the benchmark's lists for training and testing.
        seed: Seed of the draws.
        length: Number of episodes; None for one pass over the images.

    Raises:
        UserError: The folder is not valid, or has too few images for an episode.
    """
    is_train = split == "train"
    setting = "train_list" if is_train else "val_list"
    name = getattr(cfg, setting) or own_lists[0 if is_train else 1]
    ids = folder.ids(name, f"data.{setting}")
    if cfg.decode == "fast":
        folder = dataclasses.replace(folder, square=cfg.image_size)
    fold = rule.index(ids, folder.pixel_counts(ids), cfg.fold, split).drawable(cfg.shots)
    return episode_source(folder, fold, cfg, split, seed=seed, length=length)


def _stamp(path: pathlib.Path) -> _Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
