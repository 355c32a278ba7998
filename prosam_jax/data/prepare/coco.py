"""Makes the folder of COCO-20i from COCO 2014's images and annotations."""

import multiprocessing
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from prosam_jax import console
from prosam_jax.atomic import writing
from prosam_jax.data.datasets.coco import LISTS, OWN_LISTS, coco_folder
from prosam_jax.data.datasets.folder_files import lines
from prosam_jax.data.datasets.mask_folder import MaskFolder
from prosam_jax.data.prepare import archives
from prosam_jax.data.prepare.archives import Archive
from prosam_jax.data.prepare.coco_masks import (
    Annotated,
    read_annotations,
    write_mask,
)
from prosam_jax.data.prepare.objects import check_installed
from prosam_jax.data.processes import begin_worker, starting_workers
from prosam_jax.errors import UserError

_BY_HAND = "https://cocodataset.org/#download links to it"
_LICENCE = "annotations CC-BY-4.0, images under Flickr's terms"

ANNOTATIONS = Archive(
    name="COCO 2014's annotations",
    file="annotations_trainval2014.zip",
    url="http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
    by_hand=_BY_HAND,
    licence=_LICENCE,
    size=252_872_794,
    unpacked=480_000_000,
    content=1_500_000_000,
    sha256="031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
)
IMAGES = {
    "train2014": Archive(
        name="COCO 2014's training images",
        file="train2014.zip",
        url="http://images.cocodataset.org/zips/train2014.zip",
        by_hand=_BY_HAND,
        licence=_LICENCE,
        size=13_510_573_713,
        unpacked=13_900_000_000,
        content=15_000_000_000,
        sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    ),
    "val2014": Archive(
        name="COCO 2014's validation images",
        file="val2014.zip",
        url="http://images.cocodataset.org/zips/val2014.zip",
        by_hand=_BY_HAND,
        licence=_LICENCE,
        size=6_645_013_297,
        unpacked=6_900_000_000,
        content=7_500_000_000,
        sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    ),
}

MASKS_PER_WORKER = 500  # a process takes about as long to start as these take to write


def prepare(root: pathlib.Path, *, download: bool) -> tuple[MaskFolder, bool]:
    """Completes the COCO folder at `root`.

    Existing files, including masks, are kept.

    Args:
        root: Where the folders and the archives are or will be.
        download: Whether to fetch missing archives.

    Returns:
        The folder, and whether there was anything to do.

    Raises:
        UserError: An archive is missing or damaged, or pycocotools is not installed.
        OSError: There is not enough room, a file cannot be written, or a download failed.
    """
    folder = coco_folder(root)
    todo = [pool for pool in OWN_LISTS if not _is_done(folder, pool)]
    files = {pool: root / LISTS / f"instances_{pool}.json" for pool in todo}
    if not todo:
        return folder, False
    check_installed()
    if not all(path.exists() for path in files.values()):
        # Which images are missing is not known yet, unless there are none at all.
        empty = [pool for pool in todo if not any((root / pool).glob("*.jpg"))]
        _obtain(root, [ANNOTATIONS, *(IMAGES[pool] for pool in empty)], download=download)
        wanted = {f"{LISTS}/{path.name}": path for path in files.values()}
        archives.unpack(ANNOTATIONS, root, wanted.get)
    images = {pool: read_annotations(path) for pool, path in files.items()}
    lacking = [pool for pool in todo if _is_incomplete(root / pool, images[pool])]
    _obtain(root, [IMAGES[pool] for pool in lacking], download=download)
    for pool in lacking:
        archives.unpack(IMAGES[pool], root, lambda name, pool=pool: _place(root, pool, name))
    for pool in todo:
        _write_masks(folder, pool, images[pool])
    return folder, True


def _obtain(root: pathlib.Path, wanted: Sequence[Archive], *, download: bool) -> None:
    places = {IMAGES[pool]: root / pool for pool in OWN_LISTS} | {ANNOTATIONS: root / LISTS}
    archives.check_space(root, {archive: places[archive] for archive in wanted}, download=download)
    archives.obtain(wanted, root, download=download)


def _is_done(folder: MaskFolder, pool: str) -> bool:
    path = folder.list_path(pool)
    return path.exists() and not folder.missing(lines(path))


def _is_incomplete(folder: pathlib.Path, images: Sequence[Annotated]) -> bool:
    there = {path.name for path in folder.glob("*.jpg")}
    return any(image.file_name not in there for image in images)


def _place(root: pathlib.Path, pool: str, name: str) -> pathlib.Path | None:
    path = pathlib.PurePosixPath(name)
    return root / pool / path.name if path.parts[:-1] == (pool,) else None


def _write_masks(folder: MaskFolder, pool: str, images: Sequence[Annotated]) -> None:
    """Writes missing masks, and then the list, whose existence means that all are there."""
    ids = [f"{pool}/{pathlib.PurePath(image.file_name).stem}" for image in images]
    jobs = [(folder.mask_path(i), image) for i, image in zip(ids, images, strict=True)]
    jobs = [job for job in jobs if not job[0].exists()]
    workers = min(os.cpu_count() or 1, len(jobs) // MASKS_PER_WORKER)
    what = f"masks of {pool}"
    if workers < 2:
        for _ in console.track(map(write_mask, jobs), len(jobs), what):
            pass
    else:
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(workers, context, begin_worker) as executor:
                with starting_workers():
                    done = executor.map(write_mask, jobs, chunksize=50)
                for _ in console.track(done, len(jobs), what):
                    pass
        except BrokenProcessPool as error:
            raise UserError(
                f"a process that made {what} was killed, perhaps because memory ran out; run the "
                "same command again to resume"
            ) from error
    with writing(folder.list_path(pool)) as file:
        file.write("".join(f"{i}\n" for i in ids).encode())
