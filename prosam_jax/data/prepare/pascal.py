"""Makes the folder of Pascal-5i from VOC 2012 and SBD (Hariharan et al. 2011).

In `SegmentationClassAug`, masks of images in VOC's `train` and `val` come from VOC, with their
ignored borders; all others come from SBD, which has no such borders. The published lists were made
from such masks. The training pool is the union of VOC's `train` and SBD's `train_noval`.
"""

import pathlib
from collections.abc import Set as AbstractSet

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from prosam_jax.atomic import writing
from prosam_jax.data.datasets.folder_files import lines
from prosam_jax.data.datasets.mask_folder import MaskFolder
from prosam_jax.data.datasets.pascal import (
    IMAGES,
    LISTS,
    MASKS,
    OWN_LISTS,
    find_images,
    pascal_folder,
)
from prosam_jax.data.prepare import archives, mat_files
from prosam_jax.data.prepare.archives import Archive
from prosam_jax.errors import UserError

VOC = Archive(
    name="PASCAL VOC 2012",
    file="VOCtrainval_11-May-2012.tar",
    url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    by_hand="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ links to it",
    licence="images under Flickr's terms",
    size=1_999_639_040,
    unpacked=1_900_000_000,
    content=2_000_000_000,
    sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
)
SBD = Archive(
    name="SBD",
    file="benchmark.tgz",
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    "benchmark.tgz",
    by_hand="http://home.bharathh.info/pubs/codes/SBD/download.html links to it",
    licence="images under Flickr's terms",
    size=1_420_000_000,
    unpacked=30_000_000,
    content=3_000_000_000,
)
POOL = Archive(
    name="SBD's list train_noval",
    file="train_noval.txt",
    url="http://home.bharathh.info/pubs/codes/SBD/train_noval.txt",
    by_hand="http://home.bharathh.info/pubs/codes/SBD/download.html links to it",
    licence="none stated",
    size=70_000,
    unpacked=0,
    content=0,
)

POOL_IDS = 5623  # in SBD's list, of which no checksum is known

_VOC_MASKS = "SegmentationClass"
_TOP = "VOCdevkit/VOC2012/"  # in the archive
_KEPT = tuple(f"{_TOP}{name}" for name in (IMAGES, _VOC_MASKS, LISTS))
_SBD_MASKS = "benchmark_RELEASE/dataset/cls"


def prepare(root: pathlib.Path, *, download: bool) -> tuple[MaskFolder, bool]:
    """Completes the VOC folder at `root`, in `root/VOC2012` or in `root/VOCdevkit/VOC2012`.

    Existing files are kept.

    Args:
        root: Where the folder and the archives are or will be.
        download: Whether to fetch missing archives.

    Returns:
        The folder, and whether there was anything to do.

    Raises:
        UserError: An archive is missing or damaged.
        OSError: There is not enough room, a file cannot be written, or a download failed.
    """
    found = find_images(str(root), "--root")
    folder = pascal_folder(found[0] if found else root / _TOP)
    if not found:
        lacking = [POOL, VOC, SBD]
    else:
        if not folder.list_path(OWN_LISTS[0]).exists():
            archives.obtain([POOL], root, download=download)
        lacking = _lacking(folder, root)
    places = {POOL: root, VOC: folder.path / IMAGES, SBD: folder.path / MASKS}
    archives.check_space(root, {archive: places[archive] for archive in lacking}, download=download)
    archives.obtain(lacking, root, download=download)
    if VOC in lacking:
        archives.unpack(VOC, root, lambda name: _place(folder, name))
    is_new = _write_pool(folder, root)
    own = _own_ids(folder)
    wanted = {i for i in _pool_ids(folder, root) if not folder.mask_path(i).exists()}
    for image_id in wanted & own:
        with writing(folder.mask_path(image_id)) as mask:
            mask.write(_own_mask(folder, image_id).read_bytes())
    if wanted - own:
        _take_from_sbd(folder, root, wanted - own)
    return folder, is_new or bool(lacking or wanted)


def sbd_labels(content: bytes) -> UInt8[np.ndarray, "h w"]:
    """Class numbers 0-20 from the content of a file `cls/<id>.mat` of SBD.

    Raises:
        ValueError: It is damaged, or holds other numbers.
    """
    found = mat_files.field(content, "GTcls", "Segmentation")
    if not np.isin(found, np.arange(21)).all():
        raise ValueError("holds other numbers than the classes 0-20")
    return found.astype(np.uint8)


def _lacking(folder: MaskFolder, root: pathlib.Path) -> list[Archive]:
    """The archives that are needed to complete a folder."""
    own, ids = _own_ids(folder), _pool_ids(folder, root)
    if not ids:
        return [VOC, SBD]
    if not folder.missing(ids):
        return []
    masks = {i for i in ids if not folder.mask_path(i).exists()}
    needs_voc = (
        not own  # its lists tell whether a mask comes from VOC or SBD
        or any(not folder.image_path(i).exists() for i in ids)
        or any(not _own_mask(folder, i).exists() for i in masks & own)
    )
    return [VOC] * needs_voc + [SBD] * bool(masks - own)


def _pool_ids(folder: MaskFolder, root: pathlib.Path) -> set[str]:
    """Ids of both pools; empty until all lists exist."""
    own, test = _read(folder.list_path("train")), _read(folder.list_path(OWN_LISTS[1]))
    sbd, train = _read(root / POOL.file), _read(folder.list_path(OWN_LISTS[0]))
    train = train or (own | sbd if own and sbd else set())
    return train | test if train and test else set()


def _own_ids(folder: MaskFolder) -> set[str]:
    """Ids of the images whose masks come from VOC; empty until its lists exist."""
    train, val = (_read(folder.list_path(name)) for name in ("train", "val"))
    return train | val if train and val else set()


def _read(path: pathlib.Path) -> set[str]:
    return set(" ".join(lines(path)).split()) if path.exists() else set()


def _own_mask(folder: MaskFolder, image_id: str) -> pathlib.Path:
    return folder.path / _VOC_MASKS / f"{image_id}.png"


def _place(folder: MaskFolder, name: str) -> pathlib.Path | None:
    is_kept = str(pathlib.PurePosixPath(name).parent) in _KEPT
    return folder.path / name.removeprefix(_TOP) if is_kept else None


def _write_pool(folder: MaskFolder, root: pathlib.Path) -> bool:
    """Writes the list of the training pool unless it exists; returns whether it did."""
    path = folder.list_path(OWN_LISTS[0])
    if path.exists():
        return False
    sbd = _read(root / POOL.file)
    if len(sbd) != POOL_IDS:
        raise UserError(
            f"{root / POOL.file} holds {len(sbd):,} names and {POOL.name} {POOL_IDS:,}; "
            f"{archives.AGAIN}"
        )
    ids = _read(folder.list_path("train")) | sbd
    with writing(path) as file:
        file.write("".join(f"{i}\n" for i in sorted(ids)).encode())
    return True


def _take_from_sbd(folder: MaskFolder, root: pathlib.Path, wanted: AbstractSet[str]) -> None:
    left = set(wanted)
    with archives.members(SBD, root) as found:
        for member in found:
            path = pathlib.PurePosixPath(member.name)
            if str(path.parent) == _SBD_MASKS and path.stem in left:
                try:
                    labels = sbd_labels(member.open().read(mat_files.LARGEST + 1))
                except ValueError as error:
                    raise UserError(
                        f"{root / SBD.file} is damaged: {member.name} {error}; {archives.AGAIN}"
                    ) from error
                with writing(folder.mask_path(path.stem)) as mask:
                    Image.fromarray(labels).save(mask, "PNG")
                left.remove(path.stem)
    if left:  # a damaged entry of a tar file ends it without an error
        raise UserError(
            f"{root / SBD.file} has no {_SBD_MASKS}/{min(left)}.mat, and lacks {len(left):,} masks "
            f"in all; {archives.AGAIN}"
        )
