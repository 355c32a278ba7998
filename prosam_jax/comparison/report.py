"""Writes `report.html` of a comparison: scores, pictures, curves and how they were made.

The layout is in `report/comparison.html.jinja`.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from prosam_jax import console
from prosam_jax.atomic import replacing
from prosam_jax.comparison import methods, tables
from prosam_jax.data import datasets
from prosam_jax.data.folds import SPLITS
from prosam_jax.evaluation import controls, results
from prosam_jax.evaluation.results import Example
from prosam_jax.report import figures, html, pictures, scores
from prosam_jax.report.curves import read as read_curves
from prosam_jax.report.curves import seconds

WRONG = (1.0, 0.3, 0.3)
"""Colour of what is predicted from a reference of a wrong class."""

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
"""Lines of `metrics.jsonl`, by the method's title."""


def write(path: pathlib.Path, runs: Sequence[methods.Run], command: str) -> None:
    """Writes the report as a self-contained file.

    Args:
        path: The `.html` file.
        runs: Finished runs that have an `examples.npz`, all with the same episodes.
        command: The command that made them.

    Raises:
        UserError: The dataset is missing or no longer valid, or a `metrics.jsonl` is damaged.
    """
    held, curves, examples = {}, {}, {}
    for run in runs:
        held[run.title] = json.loads((run.workdir / "results.json").read_text())
        curves[run.title] = read_curves(run.workdir)
        examples[run.title] = results.load_examples(run.workdir / "examples.npz")
    cfg = runs[0].cfg
    one = next(iter(held.values()))
    base, novel = (datasets.episodes(cfg.data, x, seed=cfg.seed).fold for x in SPLITS)
    heads, pictured = _pictures(examples)
    text = html.render(
        "comparison.html.jinja",
        fold=cfg.data.fold,
        trained_on=base.rule.name,
        base_classes=len(base.classes),
        tested_on=novel.rule.name,
        episodes=one["episodes"],
        class_names=list(one["per_class"]),
        rows=tables.rows(held),
        meanings=controls.MEANING,
        threshold=one["prior_threshold"],
        heads=heads,
        pictured=pictured,
        charted=figures.training({title: [lines] for title, lines in curves.items()}),
        facts={"this comparison": command} | _facts(runs, held, curves),
    )
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _facts(
    runs: Sequence[methods.Run], held: Mapping[str, Mapping[str, Any]], curves: Curves
) -> dict[str, str]:
    cfg = runs[0].cfg
    steps = held[runs[0].title]["step"]
    facts = {
        "made by": "; or ".join(dict.fromkeys(map(methods.made_by, held.values()))),
        "frozen": scores.frozen_line(cfg),
        "training": f"{steps:,} steps of {cfg.train.batch_size} episodes, seed "
        f"{cfg.seed}; the last checkpoint is scored, none is chosen by its score",
        "episodes": f"list of seed {cfg.eval.seed}, sha256 "
        f"{held[runs[0].title]['episode_list_sha256']}",
    }
    for run in runs:
        scored = held[run.title]["seconds"]
        trained = seconds(curves[run.title], cfg.train.batch_size)
        facts[f"time of {run.title}"] = (
            f"{console.clock(trained)} of training, {console.clock(scored)} of evaluation with "
            "controls, including compilation"
        )
    for run in runs:
        facts[f"{run.title} again"] = f"prosam evaluate --workdir {run.workdir} --checkpoint latest"
    return facts


def _pictures(
    examples: Mapping[str, Sequence[Example]],
) -> tuple[list[str], list[list[html.Panel]]]:
    """Column heads and a row of pictures per episode, with the methods side by side."""
    *_, last = examples
    heads = ["reference", "target", "truth", *examples]
    heads += [f"uncertainty of {x}" for x, of in examples.items() if of[0].uncertainty is not None]
    if controls.WRONG in examples[last][0].controls:  # not if only one class is tested
        heads += ["wrong reference", f"{last} with that reference"]
    return heads, [_row(of) for of in zip(*examples.values(), strict=True)]


def _row(several: Sequence[Example]) -> list[html.Panel]:
    """The pictures of one episode, with the predictions of all methods."""
    first, at_last = several[0], several[-1]
    episode = first.episode

    def reference(i: int) -> html.Panel:
        image, mask = episode.reference_image[i], episode.reference_mask[i]
        return html.panel(pictures.annotated(image, mask), first.class_name * (i == 0))

    wrong = at_last.controls.get(controls.WRONG)
    truth = pictures.overlay(episode.target_image, episode.target_mask, pictures.TRUTH)
    inferno = matplotlib.colormaps["inferno"]
    return [
        reference(0),
        html.panel(episode.target_image / 255),
        html.panel(truth),
        *(_prediction(x, x.prediction, pictures.PREDICTED) for x in several),
        *(
            html.panel(inferno(x.uncertainty)[..., :3])
            for x in several
            if x.uncertainty is not None
        ),
        *(
            ()
            if wrong is None
            else (
                reference(len(episode.reference_image) // 2),
                _prediction(at_last, wrong, WRONG),
            )
        ),
    ]


def _prediction(
    example: Example, mask: np.ndarray, colour: tuple[float, float, float]
) -> html.Panel:
    iou = results.iou_of(example.episode, mask)
    image = pictures.overlay(example.episode.target_image, mask, colour)
    return html.panel(image, f"IoU {100 * iou:.0f}")
