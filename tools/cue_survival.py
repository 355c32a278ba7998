"""How many annotations survive on the way to the size of the features, as a table in Markdown.

    python -m tools.cue_survival --root=VOCdevkit/VOC2012

A reference whose marks are all lost tells the model nothing. Measured are references of test
episodes of Pascal-5i and Shapes-5i at 512 pixels, at the strides of the backbones.
"""

import argparse

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from prosam_jax import resize
from prosam_jax.config import DataConfig
from prosam_jax.data import benchmark
from prosam_jax.data.annotation import annotate
from prosam_jax.data.draws import Draws

GRIDS = {"1/8": 64, "1/14 (DINOv2)": 36, "1/16": 32}
BENCHMARKS = {"pascal": "Pascal-5i", "shapes": "Shapes-5i"}
# A title, a kind of annotation, and whether it is drawn as in training.
KINDS = (
    ("mask", "mask", False),
    ("box", "box", False),
    ("scribble, testing", "scribble", False),
    ("scribble, training", "scribble", True),
    ("20 points, testing", "point", False),
    ("1-20 points, training", "point", True),
)


def references(name: str, root: str, folds: list[int], episodes: int) -> Bool[np.ndarray, "n h w"]:
    """Masks of the references of every fold's first test episodes."""
    found = []
    for fold in folds:
        cfg = DataConfig(name=name, root=root, fold=fold)
        source = benchmark.episodes(cfg, "test", seed=321, length=episodes)
        found += [source[i].support_mask[0] for i in range(len(source))]
    return np.stack(found)


def survival(marked: Bool[np.ndarray, "n h w"], side: int) -> str:
    """For both rules the share of annotations with a cell left, and their mean number of cells."""
    columns = []
    for rule in (_nearest, resize.coverage):
        parts = np.array_split(marked, -(-len(marked) // 50))
        weights = [np.asarray(rule(jnp.asarray(x, jnp.float32), (side, side))) for x in parts]
        cells = (np.concatenate(weights) > 0).sum((1, 2))
        columns += [f"{100 * (cells > 0).mean():.1f} %", f"{cells.mean():.1f}"]
    return " | ".join(columns)


def _nearest(x, size):
    return resize.nearest(x[..., None], size)[..., 0]


def main() -> None:
    """Prints one row per benchmark, annotation and size of the features."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="Folder of VOC 2012.")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--episodes", type=int, default=100, help="Episodes of each fold.")
    args = parser.parse_args()
    print("| pictures | annotation | features | nearest: alive | cells | coverage: alive | cells |")
    print("|---|---|---|---:|---:|---:|---:|")
    for name, benchmark_title in BENCHMARKS.items():
        masks = references(name, args.root, args.folds, args.episodes)
        for title, kind, training in KINDS:
            marked = np.stack(
                [annotate(kind, x, Draws(0, i), training=training) for i, x in enumerate(masks)]
            )
            for grid, side in GRIDS.items():
                row = f"| {benchmark_title} | {title} | {grid} | {survival(marked, side)} |"
                print(row, flush=True)
        print(f"{len(masks)} references of {benchmark_title}")


if __name__ == "__main__":
    main()
