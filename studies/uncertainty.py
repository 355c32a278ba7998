"""Which number tells best where a mask is wrong, and which mask.

    python -m studies.uncertainty --runs=runs/small --keep=runs/uncertainty [--out=docs]

`--runs` holds the runs of `prosam reproduce --table 4 --table 7 --seeds 3`, whose models are asked
about the novel classes of their folds. Every score of a pixel or of a mask is judged by the errors
of the same masks, those of the mean prompts. Temperatures are fitted on base classes in pictures
that no run was trained on. Writes docs/studies/uncertainty.json and the figures
docs/images/uncertainty_*.png. What a run predicted stays in `--keep` for the next call.
"""

import argparse
import json
import pathlib
from typing import Any

from prosam_jax.errors import UserError
from studies.uncertainty_figures import draw_calibration, draw_coverage, draw_examples
from studies.uncertainty_measures import Drawn, Folds, averaged, mean_iou, measured, shown
from studies.uncertainty_runs import ENTROPY, EXPECTED, SAMPLES, ensemble, kept, with_seeds

METHODS = {"student_t": "Student-t", "gaussian": "Gaussian", "vrp": "VRP-SAM"}


def area_table(found: dict[str, Any], kind: str) -> str:
    """Excess AURC by score and method, with the interval of the difference to the simplest."""
    lines = [_head(kind, [METHODS[method] for method in found])]
    for name in _names(found, kind):
        cells = []
        for one in found.values():
            if name in one[kind]:
                value, _, _ = one[kind][name]["excess AURC"]
                _, low, high = one[kind][name]["difference"]
                cells.append(f"{value:.3f} ({low:+.3f} ... {high:+.3f})")
            else:
                cells.append("")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def calibration_table(found: dict[str, Any], kind: str, measures: tuple[str, ...]) -> str:
    """Measures of calibration by what predicts, one method under the other."""
    lines = [_head(kind, list(measures))]
    for method, one in found.items():
        for name, of in one[kind].items():
            cells = [
                f"{value:.3f} ({low:.3f} ... {high:.3f})"
                for value, low, high in map(of.get, measures)
            ]
            lines.append(f"| {METHODS[method]}: {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _head(first: str, columns: list[str]) -> str:
    return f"| {first} | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|"


def _names(found: dict[str, Any], kind: str) -> list[str]:
    return list(dict.fromkeys(name for one in found.values() for name in one[kind]))


def main() -> None:
    """Measures, writes numbers and figures, and prints tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", type=pathlib.Path, required=True, help="folder with the runs")
    add("--keep", type=pathlib.Path, required=True, help="folder for what they predict")
    add("--out", type=pathlib.Path, default=pathlib.Path("docs"))
    add("--episodes", type=int, default=250, help="test episodes of each fold")
    add("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    add("--seeds", type=int, nargs="+", default=[321, 322, 323])
    args = parser.parse_args()
    numbers, ensembles, student = {}, {}, None
    for method in METHODS:
        folds: Folds = []
        for fold in args.folds:
            runs = [args.runs / f"shapes-fold{fold}-mask-{method}-seed{s}" for s in args.seeds]
            if missing := [str(run) for run in runs if not run.is_dir()]:
                raise UserError(
                    f"{missing[0]} is missing: make it with prosam reproduce --table 4 --table 7 "
                    f"--seeds {len(args.seeds)}, or pass other --folds and --seeds"
                )
            models = [kept(run, args.episodes, args.keep) for run in runs]
            with_seeds(models)
            folds.append((Drawn.of(models[0].target, len(models), fold), models))
        grouped: Folds = [(drawn.only(), [ensemble(models)]) for drawn, models in folds]
        one = folds[0][1][0]
        numbers[method] = measured(folds, list(one.levels), list(one.masks))
        ensembles[method] = measured(grouped, [ENTROPY], [EXPECTED])
        gain = averaged(grouped, mean_iou) - averaged(folds, mean_iou)
        ensembles[method]["gain in mean IoU"] = shown(gain)
        if method == "student_t":
            student = folds, grouped
    images, studies = args.out / "images", args.out / "studies"
    images.mkdir(parents=True, exist_ok=True)
    studies.mkdir(parents=True, exist_ok=True)
    assert student is not None
    listed = [", ".join(map(str, x)) for x in (args.folds, args.seeds)]
    title = "ProSAM, Student-t, novel classes of folds {}; seeds {}".format(*listed)
    draw_coverage(student[0], images / "uncertainty_coverage.png", title)
    draw_calibration(*student, images / "uncertainty_calibration.png", title)
    first = args.runs / f"shapes-fold{args.folds[0]}-mask-student_t-seed{args.seeds[0]}"
    draw_examples(first, images / "uncertainty_examples.png")
    whole = {
        "episodes of each fold": args.episodes,
        "folds": args.folds,
        "seeds": args.seeds,
        "samples": SAMPLES,
        "value": "result, and the bounds of a 95 % interval over test pictures and seeds",
        "methods": numbers,
        "ensembles": ensembles,
    }
    (studies / "uncertainty.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(
        area_table(numbers, "pixels"),
        area_table(numbers, "masks"),
        calibration_table(numbers, "calibration of pixels", ("ECE", "bias", "log loss")),
        calibration_table(numbers, "calibration of masks", ("bias", "ECE", "mean absolute error")),
        sep="\n\n",
    )


if __name__ == "__main__":
    main()
