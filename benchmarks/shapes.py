"""Pictures of Shapes-5i that one core renders per second.

    python -m benchmarks.shapes [--size=128] [--pictures=100] [--turns=10]

The same pictures are rendered in every turn. Rates of the turns are by CPU time. "best" uses
each picture's shortest wall time, which other programs affect the least.
"""

import argparse
import functools
import pathlib

import numpy as np

from benchmarks import measure
from prosam_jax.data.datasets.shapes import KINDS, SCENE_SEED, Shapes, scene
from prosam_jax.data.folds import SPLITS

OUT = pathlib.Path("runs/benchmarks/shapes.json")


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    pictures = Shapes(args.size)  # rendering below does not use its cache
    kinds = [
        [KINDS[c - 1] for c in pictures.objects(f"f0-train-{i:06d}")] for i in range(args.pictures)
    ]
    timings = np.empty((args.turns, args.pictures, 2))
    for turn in range(args.turns):
        for i, shown in enumerate(kinds):
            draw = functools.partial(
                scene, (SCENE_SEED, 0, SPLITS.index("train"), i), shown, args.size
            )
            timings[turn, i] = measure.timed(draw)
    wall, cpu = np.moveaxis(timings, -1, 0)
    rate = measure.spread(args.pictures / cpu.sum(axis=1))
    best = args.pictures / wall.min(axis=0).sum()
    print(f"{rate} pictures per CPU second, at best {best:.3g}")
    figures = {"pictures per CPU second": rate._asdict(), "best": best}
    measure.write(args.out, {"settings": measure.settings(args), **figures})


if __name__ == "__main__":
    main()
