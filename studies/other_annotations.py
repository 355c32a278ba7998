"""Scores models that were trained with masks on references with other annotations.

    python -m studies.other_annotations [--workdir=runs/full] [--numbers=docs/results.json]

Scores every finished run of `prosam demo --full` that was trained with masks again, with boxes,
scribbles and points; what is scored already is not done twice. Prints the mIoU (mean over the folds
and standard deviation over the seeds) and how far it lies above the same method trained with such
annotations and above a click at the prior's peak (mean over the runs ± its standard error).
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

from prosam_jax.comparison import methods, sweep, tables
from prosam_jax.comparison.methods import TITLES, Run, Scoring
from prosam_jax.comparison.sweep import METHODS
from prosam_jax.comparison.tables import Score
from prosam_jax.config import Config, read_config
from prosam_jax.evaluation import controls

SHOWN = ("box", "scribble", "point")
MASKED = "trained with masks"


def scoring(kind: str, trained: Config) -> Scoring:
    """How a run is scored with this annotation."""
    rule = sweep.DOWNSAMPLE.get(kind, trained.data.downsample)
    changes = {"data.annotation": kind, "data.downsample": rule, "eval.controls": False}
    return Scoring(f"with_{kind}", tuple(changes.items()))


def trained(workdir: pathlib.Path) -> list[Run]:
    """The finished runs with masks of a sweep."""
    found = []
    for file in sorted(workdir.glob("mask-*/results.json")):
        cfg = read_config(file.parent / "config.json")
        found.append(Run(cfg, file.parent, tuple(scoring(kind, cfg) for kind in SHOWN)))
    return found


def scores(runs: Sequence[Run]) -> list[Score]:
    """The scores of finished runs with each annotation."""
    found = []
    for run in runs:
        cfg = run.cfg
        for kind, how in zip(SHOWN, run.scorings, strict=True):
            held = methods.results(run, how)
            assert held is not None, run.workdir
            of = kind, cfg.data.fold, cfg.distribution.name, cfg.seed
            found.append(Score(*of, MASKED, held["miou"], held["fb_iou"]))
    return found


def table(found: list[Score]) -> str:
    """The Markdown table, from the scores of the sweep and `scores`."""
    lines = [f"| | {' | '.join(SHOWN)} |", "|---|" + "---|" * len(SHOWN)]
    for method in METHODS:
        title = TITLES[method]
        cells = [tables.over_seeds(found, kind, method, MASKED)[-2] for kind in SHOWN]
        lines.append(f"| **{title}, {MASKED}** | {' | '.join(cells)} |")
        for name, below in (
            (title, "trained with such annotations"),
            (controls.CLICK, controls.CLICK),
        ):
            one, other = (method, MASKED), (method, name)
            cells = [tables.difference(found, kind, one, other) for kind in SHOWN]
            lines.append(f"| more than {below} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Scores all runs and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/full")
    parser.add_argument("--numbers", type=pathlib.Path, default="docs/results.json")
    args = parser.parse_args()
    runs = trained(args.workdir)
    if not runs:
        parser.error(f"{args.workdir} has no finished run with masks: run prosam demo --full first")
    todo = [run for run in runs if not methods.is_finished(run)]
    sweep.finish(todo, jobs=sweep.default_jobs(todo))
    found = scores(runs)
    known = json.loads(args.numbers.read_text())["scores"]
    print(table(found + [Score(**x) for x in known]))


if __name__ == "__main__":
    main()
