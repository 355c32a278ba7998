"""Prepares Pascal-5i and COCO-20i and compares their lists with the published ones."""

import itertools
import os
import pathlib
import shlex
from collections.abc import Iterable

from prosam_jax import console
from prosam_jax.data import folds
from prosam_jax.data.datasets import coco, pascal
from prosam_jax.data.prepare import coco as prepare_coco
from prosam_jax.data.prepare import pascal as prepare_pascal

_BENCHMARKS = {
    "pascal": (prepare_pascal.prepare, pascal.OWN_LISTS),
    "coco": (prepare_coco.prepare, coco.OWN_LISTS),
}


def prepare(name: str, root: pathlib.Path, *, download: bool) -> None:
    """Prepares "pascal" or "coco" and prints how its lists compare with the published ones.

    Raises:
        UserError: Files are missing or damaged.
        OSError: There is not enough room, a file cannot be written, or a download failed.
    """
    complete, lists = _BENCHMARKS[name]
    folder, was_changed = complete(pathlib.Path(os.path.expanduser(root)), download=download)
    pools = [folder.ids(pool, "list") for pool in lists]
    ids = list(dict.fromkeys(itertools.chain(*pools)))
    read = 0

    def watch(counts: Iterable[list[int]], total: int) -> Iterable[list[int]]:
        nonlocal read
        read = total
        return console.track(counts, total, "counting pixels")

    counts = folder.pixel_counts(ids, watch)
    if not (was_changed or read):
        print(f"nothing to do: {folder.path} is already prepared")
    held = " and ".join(f"{len(ids):,} in {pool}" for pool, ids in zip(lists, pools, strict=True))
    print(f"{folder.path} holds {held}")
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    for fold in range(4):
        verdicts = []
        for split, pool in zip(folds.SPLITS, pools, strict=True):
            index = folder.rule.index(pool, counts[[row_of[i] for i in pool]], fold, split)
            verdicts.append(f"{split} {folds.verdict(index)}")
        print(f"{folder.rule.name} fold {fold}: {'; '.join(verdicts)}")
    if read:  # last, so that the comparison is printed even if the folder is read-only
        folder.keep_pixel_counts(ids, counts)
    setting = f"--config.data.root={shlex.quote(str(folder.path))}"
    print(f"train with: prosam train --config {name} {setting} --workdir DIR")
