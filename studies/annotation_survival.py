"""How many annotations survive the reduction to the size of the features, as a Markdown table.

    python -m studies.annotation_survival --root=VOCdevkit/VOC2012

A reference whose annotation vanishes tells the model nothing. This study measures references of
test episodes of Pascal-5i and Shapes-5i at 512 pixels, at the strides of the backbones.
"""

import argparse

import numpy as np
from jaxtyping import Bool

from prosam_jax.config import DataConfig
from prosam_jax.data import datasets
from prosam_jax.data.annotation import drawn_annotation
from prosam_jax.data.rng import Rng

GRIDS = {"1/8": 64, "1/14 (DINOv2)": 36, "1/16": 32}
BENCHMARKS = {"pascal": "Pascal-5i", "shapes": "Shapes-5i"}
# Title, kind of annotation, and whether it is drawn as in training.
KINDS = (
    ("mask", "mask", False),
    ("box", "box", False),
    ("scribble, testing", "scribble", False),
    ("scribble, training", "scribble", True),
    ("20 points, testing", "point", False),
    ("1-20 points, training", "point", True),
)


def references(name: str, root: str, folds: list[int], episodes: int) -> Bool[np.ndarray, "n h w"]:
    """Masks of the references of the first test episodes of every fold."""
    found = []
    for fold in folds:
        cfg = DataConfig.of(name=name, root=root, fold=fold)
        source = datasets.episodes(cfg, "test", seed=321, length=episodes)
        found += [source[i].reference_mask[0] for i in range(len(source))]
    return np.stack(found)


def nearest(marked: Bool[np.ndarray, "n h w"], side: int) -> Bool[np.ndarray, "n i j"]:
    """Cells for which `resize.nearest` picks an annotated pixel."""
    starts = np.arange(side) * marked.shape[1] // side
    return marked[:, starts[:, None], starts]


def coverage(marked: Bool[np.ndarray, "n h w"], side: int) -> Bool[np.ndarray, "n i j"]:
    """Cells to which `resize.coverage` gives weight: those that an annotated pixel touches."""
    size = marked.shape[1]
    cells = [slice(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
    rows = np.stack([marked[:, cell].any(1) for cell in cells], axis=1)
    return np.stack([rows[:, :, cell].any(2) for cell in cells], axis=2)


def survival(marked: Bool[np.ndarray, "n h w"]) -> str:
    """Percentage of annotations that keep a cell, and mean number of cells, by rule and grid."""
    counts = [rule(marked, n).sum((1, 2)) for rule in (nearest, coverage) for n in GRIDS.values()]
    return " | ".join(f"{100 * (n > 0).mean():.1f} % ({n.mean():.1f})" for n in counts)


def main() -> None:
    """Prints a row per benchmark and annotation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="Folder of VOC 2012.")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--episodes", type=int, default=100, help="Episodes of each fold.")
    args = parser.parse_args()
    columns = [f"{rule}, {grid}" for rule in ("nearest", "coverage") for grid in GRIDS]
    print(f"| pictures | annotation | {' | '.join(columns)} |")
    print(f"|---|---{'|---:' * len(columns)}|")
    for name, benchmark_title in BENCHMARKS.items():
        masks = references(name, args.root, args.folds, args.episodes)
        for title, kind, training in KINDS:
            marked = np.stack(
                [
                    drawn_annotation(kind, x, Rng(0, i), training=training)
                    for i, x in enumerate(masks)
                ]
            )
            print(f"| {benchmark_title} | {title} | {survival(marked)} |", flush=True)
        print(f"{len(masks)} references of {benchmark_title}")


if __name__ == "__main__":
    main()
