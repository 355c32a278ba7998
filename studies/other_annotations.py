"""Scores models that were trained with masks on references with other annotations.

    python -m studies.other_annotations [--workdir=runs/full] [--numbers=docs/results.json]

Evaluates every finished run of `prosam demo --full` that was trained with masks again, with boxes,
scribbles and points. Prints the mIoU (mean over the folds and standard deviation over the seeds)
and how far it lies above the same method trained with such annotations and above a click at the
prior's peak (mean over the runs ± its standard error).
"""

import argparse
import json
import pathlib

from flax import nnx

from prosam_jax import model, sharding
from prosam_jax.comparison import sweep, tables
from prosam_jax.comparison.methods import TITLES
from prosam_jax.comparison.sweep import METHODS
from prosam_jax.comparison.tables import Score
from prosam_jax.config import Config, read_config, replaced
from prosam_jax.evaluation import controls, evaluate, prediction
from prosam_jax.feature_cache.cache import opened

SHOWN = ("box", "scribble", "point")
MASKED = "trained with masks"


def scored(cfg: Config, workdir: pathlib.Path, predict: dict[str, controls.Predict]) -> Score:
    """Scores a run with these settings; `predict` keeps the compiled steps for later calls."""
    method, mesh = cfg.distribution.name, sharding.make_mesh(cfg.eval.batch_size)
    parts, _ = model.restored(cfg, workdir, "latest")
    kind = f"{method}, {cfg.data.downsample}"  # what the structure of the model depends on
    compiled = predict.setdefault(kind, prediction.make_predict_step(parts.graph))
    params, frozen = sharding.replicate((parts.params, parts.frozen), mesh)
    sam = nnx.merge(parts.graph, params, frozen).sam
    found = evaluate.evaluate(
        compiled,
        params,
        frozen,
        evaluate.test_episodes(cfg),
        batch_size=cfg.eval.batch_size,
        mesh=mesh,
        cache=opened(cfg.cache, sam, lambda x: sharding.split_batch(x, mesh)),
    ).scores
    run = cfg.data.annotation, cfg.data.fold, method, cfg.seed
    return Score(*run, MASKED, 100 * found.miou, 100 * found.fb_iou)


def table(found: list[Score]) -> str:
    """The Markdown table, from the scores of the sweep and those of `scored`."""
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
    found, predict = [], {}
    for file in sorted(args.workdir.glob("mask-*/results.json")):
        trained = read_config(file.parent / "config.json")
        for kind in SHOWN:
            rule = sweep.DOWNSAMPLE.get(kind, trained.data.downsample)
            cfg = replaced(trained, {"data.annotation": kind, "data.downsample": rule})
            found.append(scored(cfg, file.parent, predict))
            print(f"{file.parent.name}, {kind}: {found[-1].miou:.2f}", flush=True)
    if not found:
        parser.error(f"{args.workdir} has no finished run with masks: run prosam demo --full first")
    known = json.loads(args.numbers.read_text())["scores"]
    print(table(found + [Score(**x) for x in known]))


if __name__ == "__main__":
    main()
