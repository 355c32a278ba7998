"""Unpacks FSS-1000 and looks at each of its 10,000 pairs of a picture and its mask.

What cannot be used is bad. What is odd is used as it is, because published results have it so: the
archive has masks of another size than their picture and at least one that is a photograph (issues
8, 23 and 25 of github.com/HKUSTCV/FSS-1000), and HSNet's code leaves none out.
"""

import concurrent.futures
import functools
import itertools
import os
import pathlib
import shlex
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt16

from prosam_jax import console, images
from prosam_jax.data.datasets.fss import CLASSES, FSS, FSS_1000, PAIRS, find, fss_index
from prosam_jax.data.prepare import archives
from prosam_jax.data.prepare.archives import Archive
from prosam_jax.errors import UserError, printable

ZIP = Archive(
    name="FSS-1000",
    file="fewshot_data.zip",
    url="",  # of a drive that asks before it gives
    by_hand="https://github.com/HKUSTCV/FSS-1000 links to it",
    licence="none stated",
    size=0,  # this and the next are for downloads; the authors publish neither size nor checksum
    unpacked=0,
    content=8_000_000_000,  # twice what all pictures and masks would have uncompressed
)


class Found(NamedTuple):
    """What `check` found: a line for each bad file, and for each odd one."""

    bad: list[str]
    odd: list[str]


def prepare(root: pathlib.Path) -> int:
    """Completes the folder from the archive in `root`, and checks it.

    Prints a line for each bad and each odd file, and a summary. Existing files are kept.

    Returns:
        Number of bad files.

    Raises:
        UserError: There is neither a class's folder nor the archive, or the archive is damaged.
        OSError: A file cannot be written.
    """
    root = pathlib.Path(os.path.expanduser(root))
    folder, zipped = find(str(root)), root / ZIP.file
    if folder is None and not zipped.is_file():
        raise UserError(
            f"--root={root}: there is neither a class's folder, such as {FSS_1000.class_names[0]}, "
            f"nor {ZIP.file}; get that by hand ({ZIP.by_hand}) and put it there"
        )
    folder = folder or FSS(root / zipped.stem)
    indices = {split: fss_index(split) for split in CLASSES}
    ids = [i for index in indices.values() for i in index.images]
    if zipped.is_file() and folder.missing(ids):
        wanted = {f"{i}{end}" for i in ids for end in (".jpg", ".png")}
        archives.unpack(ZIP, root, functools.partial(_place, folder, wanted))
    found = check(folder, ids)
    for line in (*found.bad, *found.odd):
        print(printable(line))
    held = ", ".join(f"{len(x.classes)} for {split}" for split, x in indices.items())
    print(
        f"{folder.path}: classes of {len(PAIRS)} pairs: {held}; bad files: {len(found.bad)}; odd "
        f"ones, used as they are: {len(found.odd)}"
    )
    if not found.bad:
        path = shlex.quote(str(folder.path))
        print(f"train with: prosam train --config fss --config.data.root={path} --workdir DIR")
    return len(found.bad)


def check(folder: FSS, ids: Iterable[str]) -> Found:
    """Reads pictures and masks; a class that has none is one line. `ids` are sorted by class."""
    bad, pairs = [], []
    for name, group in itertools.groupby(ids, lambda image_id: image_id.partition("/")[0]):
        of = list(group)
        missing = folder.missing(of)
        if len(missing) == 2 * len(of):
            bad.append(f"{folder.path / name} has none of its {len(of)} pairs")
            continue
        bad += [f"{path} is missing" for path in missing]
        single = {path.with_suffix("") for path in missing}
        pairs += [i for i in of if folder.path / i not in single]
    workers = min(8, os.cpu_count() or 1)  # Pillow decodes without the GIL
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        found = pool.map(functools.partial(_look, folder), pairs)
        looked = list(console.track(found, len(pairs), "reading pictures and masks"))
    bad += [line for one in looked for line in one.bad]
    return Found(bad, [line for one in looked for line in one.odd])


def _look(folder: FSS, image_id: str) -> Found:
    mask = folder.mask_path(image_id)
    try:
        picture, labels = folder.image(image_id), folder.labels(image_id)
    except UserError as fault:
        return Found([str(fault)], [])
    odd = []
    (height, width), (own_width, own_height) = labels.shape, picture.size
    if (width, height) != (own_width, own_height):
        odd.append(f"{mask} has {width} x {height} pixels, its picture {own_width} x {own_height}")
    if not labels.any():
        odd.append(f"{mask} shows no object: no gray of it is 128 or more")
    elif not _is_white_on_black(mask, labels):
        odd.append(f"{mask} is not white on black; its gray of 128 or more counts as the object")
    return Found([], odd)


def _is_white_on_black(mask: pathlib.Path, labels: UInt16[np.ndarray, "h w"]) -> bool:
    try:
        return np.array_equal(images.read_mask(mask, turn=False), labels > 0)
    except UserError:  # it is a photograph, or has several numbers
        return False


def _place(folder: FSS, wanted: set[str], name: str) -> pathlib.Path | None:
    """Where a file of the archive belongs, whatever folders it has around those of the classes."""
    inner = "/".join(pathlib.PurePosixPath(name).parts[-2:])
    return folder.path / inner if inner in wanted else None
