"""Writes `tableN.html`: a table that was made again, with figures and pictures.

The layout is in `report/table.html.jinja`.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from prosam_jax import console
from prosam_jax.atomic import replacing
from prosam_jax.comparison import pairs, reproduce, table_files
from prosam_jax.comparison.extremes import Extremes
from prosam_jax.comparison.reproduce import MEAN, Line, Made
from prosam_jax.comparison.table_files import Grid
from prosam_jax.errors import printable
from prosam_jax.evaluation.intervals import LEVEL
from prosam_jax.report import curves, figures, html, pictures, scores
from prosam_jax.report.figures import Dot


def write(path: pathlib.Path, made: Made, extremes: Extremes, command: str) -> None:
    """Writes the page as a self-contained file.

    Args:
        path: The `.html` file.
        made: The table, whose runs are finished.
        extremes: Its best and worst episodes.
        command: The command that made it.

    Raises:
        UserError: A `metrics.jsonl` is damaged.
    """
    held = list(reproduce.facts(made))
    controls = table_files.control_grid(made)
    text = html.render(
        "table.html.jinja",
        title=table_files.title(made),
        note=table_files.note(made),
        overview=_overview(made),
        values=table_files.value_grid(made),
        differences=table_files.difference_grid(made),
        apart=table_files.APART,
        controls=controls,
        of_controls=table_files.CONTROLS,
        meanings=table_files.meanings(controls),
        classes=_classes(made),
        about_episodes=_about(made, extremes),
        heads=["reference", "target", "truth", *extremes.group.names],
        kinds={kind: _rows(extremes, of) for kind, of in extremes.kinds.items()},
        several=any(len(of) > 1 for of in made.runs.values()) or len(made.folds) > 1,
        training=_training(made),
        facts={"command": command, "made by": table_files.made_by(made)} | _facts(made, held),
        runs=_runs(made, held),
    )
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _overview(made: Made) -> dict[str, Markup]:
    """The values of all rows, and their differences."""
    several = len(made.folds) > 1
    over = (
        f"mean of folds {', '.join(map(str, made.folds))}" if several else (f"fold {made.folds[0]}")
    )
    interval = f"with the {100 * LEVEL:.0f} % interval"
    paper = "; a diamond is the paper's" if made.preset.paper else ""
    found = {
        f"{made.table.unit}, {over}, {interval}{paper}": figures.dots(
            _dots(made, reproduce.lines(made))
        )
    }
    if apart := reproduce.differences(made):
        unit = f"difference in percentage points, {over}, {interval}"
        found[f"{unit}, grey where it includes zero{paper}"] = figures.dots(
            _dots(made, apart, differences=True), differences=True
        )
    return found


def _dots(made: Made, lines: Sequence[Line], *, differences: bool = False) -> list[Dot]:
    found = []
    for row, values in lines:
        value = values.get(MEAN, values[str(made.folds[0])])
        label = pairs.compared(made, row).title if differences else ", ".join(row.labels)
        paper = value.paper if made.preset.paper else None
        found.append(Dot(label, value.ours, value.interval, paper))
    return found


def _classes(made: Made) -> dict[str, Markup]:
    found = {}
    for group in pairs.pairs(made):
        one, other = group.names
        found[group.title] = figures.scatter(pairs.classes(made, group), (one, other))
    return found


def _about(made: Made, extremes: Extremes) -> str:
    row = extremes.group.rows[0]
    run = made.runs[row.labels, extremes.fold][0]
    shared = f" of {extremes.group.shared}" if extremes.group.shared else ""
    return (
        f"Selected among the {len(extremes.iou[0]):,} episodes of fold {extremes.fold}{shared} by "
        f"their IoU with seed {run.cfg.seed}, so that they show extremes and no average."
    )


def _rows(extremes: Extremes, indices: Sequence[int]) -> list[list[html.Panel]]:
    """The pictures of some episodes, with the predictions side by side."""
    rows = []
    for i in indices:
        several = [shown[i] for shown in extremes.shown]
        episode, target = several[0].episode, several[0].episode.target_image
        reference = pictures.annotated(episode.reference_image[0], episode.reference_mask[0])
        row = [
            html.panel(reference, printable(several[0].class_name)),
            html.panel(target / 255, f"episode {i}"),
            html.panel(pictures.overlay(target, episode.target_mask, pictures.TRUTH)),
        ]
        for example, iou in zip(several, extremes.iou, strict=True):
            image = pictures.overlay(target, example.prediction, pictures.PREDICTED)
            row.append(html.panel(image, f"IoU {100 * iou[i]:.1f}"))
        rows.append(row)
    return rows


def _training(made: Made) -> dict[str, Markup]:
    """Curves of all runs, those that are compared in one figure."""
    found = {}
    for group in pairs.families(made):
        runs = {
            name: [
                curves.read(run.workdir)
                for fold in made.folds
                for run in made.runs[row.labels, fold]
            ]
            for name, row in zip(group.names, group.rows, strict=True)
        }
        shared = f", {group.shared}" if group.shared else ""
        found |= {f"{name}{shared}": svg for name, svg in figures.training(runs).items()}
    return found


def _facts(made: Made, held: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The frozen weights, and the episodes of each fold."""
    runs = reproduce.together([made])
    frozen = dict.fromkeys(scores.frozen_line(run.cfg) for run in runs)
    facts = {"frozen": "; or ".join(frozen)}
    for one in held:
        scoring = f", {one['scoring']}" if one["scoring"] else ""
        lists = one.get("lists") or [one]
        data = one["config"]["data"]
        name = f"episodes of {data['name']}, fold {data['fold']}{scoring}"
        facts[name] = ", ".join(f"sha256 {x['episode_list_sha256']}" for x in lists)
    return facts


def _runs(made: Made, held: Sequence[dict[str, Any]]) -> Grid:
    """What was done, and how long it took."""
    by_name = {run.workdir.name: run for run in reproduce.together([made])}
    rows = []
    for one in held:
        run = by_name[one["run"]]
        trained = curves.seconds(curves.read(run.workdir), run.cfg.train.batch_size)
        rows.append(
            [
                one["run"],
                one["scoring"],
                f"{one['miou']:.2f}",
                f"{one['step']:,}",
                "" if one["scoring"] else console.clock(trained),
                console.clock(one["seconds"]),
                one["device"],
            ]
        )
    return Grid(
        2, ["run", "scored as", "mIoU %", "steps", "training", "evaluation", "device"], rows
    )
