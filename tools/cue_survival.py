"""How many annotations survive on the way to the size of the features, as a table in Markdown.

    python -m tools.cue_survival --root=VOCdevkit/VOC2012 --train_list=train_aug --val_list=val

A reference whose marks are all lost tells the model nothing. Measured are test references of all
four folds of Pascal-5i and of Shapes-5i at 512 pixels, at the strides of the backbones.
"""

import pathlib
import sys

import jax.numpy as jnp
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from prosam_jax import resize
from prosam_jax.config import ANNOTATIONS, DataConfig
from prosam_jax.data import benchmark

ROOT = flags.DEFINE_string("root", None, "Folder of VOC 2012.", required=True)
EPISODES = flags.DEFINE_integer("episodes", 100, "Episodes of each fold.")
TRAIN_LIST = flags.DEFINE_string("train_list", "train_aug", "As data.train_list.")
VAL_LIST = flags.DEFINE_string("val_list", "val", "As data.val_list.")

SIZE = 512
GRIDS = {"1/8": 64, "DINOv2, 1/14": 36, "1/16": 32}
BENCHMARKS = {"pascal": "Pascal-5i", "shapes": "Shapes-5i"}


def marks(name: str, kind: str, split: str) -> np.ndarray:
    """Annotations of references of all folds, (n, 512, 512)."""
    found = []
    for fold in range(4):
        cfg = DataConfig(
            name=name,
            root=ROOT.value,
            fold=fold,
            annotation=kind,
            train_list=TRAIN_LIST.value,
            val_list=VAL_LIST.value,
        )
        source = benchmark.episodes(cfg, split, seed=321, length=EPISODES.value)
        found += [source[i].support_mask for i in range(EPISODES.value)]
    return np.concatenate(found)


def survival(marked: np.ndarray, side: int) -> str:
    """Share of annotations with a cell left, and their mean number, by both rules."""
    columns = []
    for shrink in (
        lambda x: resize.nearest(x[..., None], (side, side))[..., 0],
        lambda x: resize.coverage(x, (side, side)),
    ):
        cells = np.concatenate(
            [
                np.asarray((shrink(jnp.asarray(part, jnp.float32)) > 0).sum((1, 2)))
                for part in np.array_split(marked, max(1, len(marked) // 50))
            ]
        )
        columns += [f"{100 * (cells > 0).mean():.1f} %", f"{cells.mean():.1f}"]
    return " | ".join(columns)


def main(argv: list[str]) -> None:
    """Prints one row per benchmark, annotation and size of the features."""
    print("| pictures | annotation | features | nearest: alive | cells | coverage: alive | cells |")
    print("|---|---|---|---:|---:|---:|---:|")
    for name, title in BENCHMARKS.items():
        for kind in ANNOTATIONS:
            for split in ("train", "test") if kind in ("point", "scribble") else ("test",):
                marked = marks(name, kind, split)
                shown = f"{kind}, as in training" if split == "train" else kind
                for grid, side in GRIDS.items():
                    print(f"| {title} | {shown} | {grid} | {survival(marked, side)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
