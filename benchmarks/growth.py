"""Time and memory of this library's training step by samples, batch, mask size and devices.

    python -m benchmarks.growth [--device=gpu] [--plot=docs/growth.png]

One size changes at a time, from a base that the flags set; each value has its own process. A CPU's
devices are simulated: they share its cores, and show what splitting a batch costs.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import measure
from benchmarks.problem import Problem, random_weights
from benchmarks.train_step import make_jax, parser, platform, problem_of

OUT = pathlib.Path("runs/benchmarks/growth.json")
VALUES = {
    "cpu": {
        "samples": (1, 2, 5, 10, 20, 40),
        "batch": (1, 2, 4, 8, 16, 32, 64),
        "size": (128, 256, 512, 1024),
        "devices": (1, 2, 4),
    },
    "gpu": {
        "samples": (1, 2, 5, 10, 20, 40),
        "batch": (1, 2, 4, 8, 16, 32, 64),
        "size": (128, 256, 512, 1024),
    },
}
NAMES = {"samples": "K", "batch": "batch", "size": "side of the mask", "devices": "devices"}


def measured(problem: Problem, turns: int) -> dict[str, Any]:
    """Figures of one size of the problem."""
    side = measure.Alone(make_jax, problem, random_weights(problem), environment=platform(problem))
    with contextlib.closing(side):
        loss = side("first")["loss"]
        timings = [side("timing") for _ in range(turns)]
        return {
            "seconds": measure.spread([x.seconds for x in timings]).median,
            "CPU seconds": measure.spread([x.cpu_seconds for x in timings]).median,
            "peak GB": side("peak") / 1e9,
            "loss": loss,
        }


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path, time: str) -> None:
    """Plots `time` and memory against each size, with lines of proportional growth."""
    import matplotlib.pyplot as plt

    sizes = list(dict.fromkeys(row["size of"] for row in rows))
    figure, axes = plt.subplots(
        2, len(sizes), figsize=(3 * len(sizes), 5), sharey="row", squeeze=False, layout="tight"
    )
    for column, size in enumerate(sizes):
        points = [row for row in rows if row["size of"] == size]
        x = [row["value"] for row in points]
        for axis, name in zip(axes[:, column], (time, "peak GB"), strict=True):
            y = [row[name] for row in points]
            axis.loglog(x, y, "o-", base=2)
            axis.loglog(x, [y[-1] * value / x[-1] for value in x], ":", color="gray", base=2)
            axis.set_xticks(x, [str(value) for value in x])
            axis.set_ylabel(name if column == 0 else "")
        axes[1, column].set_xlabel(NAMES[size])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Measures, draws and writes."""
    flags = parser(__doc__, OUT)
    flags.add_argument("--sizes", nargs="+", choices=tuple(NAMES), help="all, if not given")
    flags.add_argument("--most", type=int, default=1 << 30, help="largest value of any size")
    flags.add_argument("--plot", type=pathlib.Path, default=OUT.with_suffix(".png"))
    args = flags.parse_args()
    rows = []
    for size, values in VALUES[args.device].items():
        if size not in (args.sizes or VALUES[args.device]):
            continue
        for value in (x for x in values if x <= args.most):
            problem = problem_of(args, "heads")
            if size == "devices":  # four simulated ones need a batch that they can share
                problem = dataclasses.replace(problem, batch=4)
            problem = dataclasses.replace(problem, **{size: value})
            rows.append({"size of": size, "value": value, **measured(problem, args.turns)})
            print(rows[-1], flush=True)
    print(measure.table(rows))
    draw(rows, args.plot, "CPU seconds" if args.device == "cpu" else "seconds")
    measure.write(args.out, {"settings": measure.settings(args), "rows": rows})


if __name__ == "__main__":
    main()
