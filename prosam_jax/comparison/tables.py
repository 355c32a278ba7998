"""Tables of scores: of a few runs for a terminal, and of a sweep for a document.

The numbers of a sweep are also saved, so that later runs can be added.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.table

from prosam_jax import console
from prosam_jax.atomic import replacing
from prosam_jax.comparison import methods
from prosam_jax.comparison.methods import OF_THE_METHOD, TITLES, Run
from prosam_jax.comparison.sweep import DOWNSAMPLE, comparable
from prosam_jax.config import ANNOTATIONS, Config, recorded
from prosam_jax.errors import UserError
from prosam_jax.evaluation import controls
from prosam_jax.json_files import read_object
from prosam_jax.weights import prompt_encoder


class Row(NamedTuple):
    """A line of a table; scores in percent.

    Attributes:
        name: Title of a method, or name of a control.
        method: Title of the method that the row belongs to, "" if it belongs to all.
        miou: Mean IoU over the classes.
        fb_iou: Mean IoU of foreground and background.
    """

    name: str
    method: str
    miou: float
    fb_iou: float


def rows(held: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rows of each method with its own controls, then of the controls common to all methods.

    Args:
        held: Contents of `results.json`, by the method's title.
    """
    lines, common = [], {}
    for title, found in held.items():
        lines.append(Row(title, title, found["miou"], found["fb_iou"]))
        common = found["controls"]
        lines += [_row(name, title, common[name]) for name in OF_THE_METHOD if name in common]
    return lines + [_row(name, "", x) for name, x in common.items() if name not in OF_THE_METHOD]


def _row(name: str, method: str, scores: Mapping[str, float]) -> Row:
    return Row(name, method, scores["miou"], scores["fb_iou"])


def print_table(lines: Sequence[Row], title: str) -> None:
    """Prints the rows, with a section for each method."""
    table = rich.table.Table(title=title)
    table.add_column("")
    table.add_column("mIoU %", justify="right")
    table.add_column("FB-IoU %", justify="right")
    method = lines[0].method
    for line in lines:
        if line.method != method:
            table.add_section()
            method = line.method
        name = line.name if line.name == line.method else f"  {line.name}"
        style = "bold" if line.name == line.method else None
        table.add_row(name, f"{line.miou:.2f}", f"{line.fb_iou:.2f}", style=style)
    console.Console().print(table)


COMPARED = tuple(
    ((method, TITLES[method]), (other, name))
    for method, other, name in (
        ("gaussian", "vrp", TITLES["vrp"]),
        ("student_t", "vrp", TITLES["vrp"]),
        ("student_t", "gaussian", TITLES["gaussian"]),
        ("vrp", "vrp", controls.CLICK),
        ("student_t", "student_t", controls.CLICK),
    )
)
"""What the last table compares: method and name of a score, and of the one it should exceed."""


BEGIN, END = "<!-- demo-full: begin -->", "<!-- demo-full: end -->"


@dataclasses.dataclass(frozen=True)
class Score:
    """mIoU and FB-IoU in percent of a method, control or baseline (`name`) in one run."""

    annotation: str
    fold: int
    method: str
    seed: int
    name: str
    miou: float
    fb_iou: float

    @property
    def run(self) -> tuple[str, int, str, int]:
        """Identifies the run."""
        return self.annotation, self.fold, self.method, self.seed


@dataclasses.dataclass(frozen=True)
class Numbers:
    """All numbers of a sweep.

    Attributes:
        settings: Settings of its recipe, from `sweep.comparable`.
        frozen: Its frozen weights, from `prompt_encoder.frozen_weights`.
        made_by: Versions and devices with which the scores were made, each once.
        scores: Scores of the methods, named by their titles, and of their controls.
    """

    settings: dict[str, Any]
    frozen: dict[str, Any]
    made_by: list[str]
    scores: list[Score]


def numbers(base: Config, done: Sequence[Run]) -> Numbers:
    """The numbers of finished runs of a recipe."""
    found, made_by = [], []
    for run in done:
        held = methods.results(run)
        assert held is not None, run.workdir
        cfg = run.cfg
        made_by.append(methods.made_by(held))
        for name, x in {run.title: held, **held["controls"]}.items():
            found.append(
                Score(
                    cfg.data.annotation, cfg.data.fold, cfg.distribution.name, cfg.seed, name,
                    x["miou"], x["fb_iou"],
                )
            )  # fmt: skip
    frozen = prompt_encoder.frozen_weights(base)
    return Numbers(comparable(base), frozen, list(dict.fromkeys(made_by)), found)


def together(new: Numbers, path: pathlib.Path) -> Numbers:
    """Adds the numbers of other runs from a file that `write_numbers` wrote.

    If the file has other settings or frozen weights, a note is printed and `new` is returned alone.
    """
    if not path.is_file():
        return new
    mend = "restore it, or delete it and lose its numbers"
    held = read_object(path, ("settings", "frozen", "scores", "made_by"), mend)
    settings = comparable(recorded(held["settings"]))
    if (settings, held["frozen"]) != (new.settings, new.frozen):
        console.note(f"{path} has other settings or frozen weights: its numbers are replaced")
        return new
    done = {x.run for x in new.scores}
    try:
        old = [x for x in (Score(**x) for x in held["scores"]) if x.run not in done]
    except TypeError as error:
        raise UserError(f"{path} is damaged ({error}); {mend}") from error
    made_by = [*(held["made_by"] if old else []), *new.made_by]
    scores = sorted([*old, *new.scores], key=lambda x: x.seed)
    return dataclasses.replace(new, made_by=list(dict.fromkeys(made_by)), scores=scores)


def write_numbers(path: pathlib.Path, found: Numbers) -> None:
    """Writes all numbers as JSON, with one `Score` per line."""
    lines = ",\n".join(json.dumps(dataclasses.asdict(x)) for x in found.scores)
    rest = {k: v for k, v in dataclasses.asdict(found).items() if k != "scores"}
    head = json.dumps(rest, indent=1).removesuffix("\n}")
    with replacing(path) as part:
        part.write_text(f'{head},\n "scores": [\n{lines}\n]}}\n')


def note(found: Numbers) -> str:
    """How the numbers were made, as a paragraph above their tables."""
    runs = {x.run for x in found.scores}
    kinds = collections.defaultdict(list)
    for annotation in ANNOTATIONS:
        seeds = sorted({seed for of, *_, seed in runs if of == annotation})
        kinds[", ".join(map(str, seeds))].append(annotation)
    seeds = "; ".join(f"seeds {seeds} of {', '.join(of)}" for seeds, of in kinds.items() if seeds)
    train, test = found.settings["train"], found.settings["eval"]
    given = {a: rule for a, rule in DOWNSAMPLE.items() if any(a == of for of, *_ in runs)}
    rules = "".join(f"; with {a} data.downsample={rule}" for a, rule in given.items())
    epochs = f"{train['epochs']:,} epochs in steps"
    length = f"{train['steps']:,} steps" if train["steps"] else epochs
    return (
        f"{len(runs)} runs of {length} of {train['batch_size']} episodes, "
        f"{test['episodes']:,} test episodes each, the last checkpoint{rules}; {seeds}; "
        f"{'; or '.join(found.made_by)}."
    )


def markdown(found: Sequence[Score], note: str) -> str:
    """Markdown tables of scores with all controls, of scores by fold, and of differences.

    They include all annotations, methods and folds of `found`; the first two tables show mean and
    standard deviation over the seeds.

    Args:
        found: Scores of all runs.
        note: How they were made.
    """
    kinds = [a for a in ANNOTATIONS if any(x.annotation == a for x in found)]
    trained = [m for m in TITLES if any(x.method == m for x in found)]
    folds = _folds(found)
    scored = {x.name for x in found}
    of_each = [name for name in OF_THE_METHOD if name in scored]
    own = [(method, name) for method in trained for name in (TITLES[method], *of_each)]
    common = [(trained[0], name) for name in controls.MEANING if name not in OF_THE_METHOD]
    scores = [
        [_label(method, name), *(over_seeds(found, a, method, name)[-2] for a in kinds)]
        for method, name in own + common
    ]
    by_fold = [
        [annotation, TITLES[method], *over_seeds(found, annotation, method, TITLES[method])]
        for annotation, method in itertools.product(kinds, trained)
    ]
    differences = [
        [f"{name} than {below}"]
        + [difference(found, a, (method, name), (other, below)) for a in kinds]
        for (method, name), (other, below) in COMPARED
        if {method, other} <= set(trained)
    ]
    over = f"mean of {len(folds)} folds" if len(folds) > 1 else f"fold {folds[0]}"
    columns = ["", "", *(f"fold {fold}" for fold in folds), "mean", "FB-IoU"]
    more = "Differences in mIoU, paired by fold and seed, mean ± standard error:"
    return "\n\n".join(
        [
            note,
            *(f"mIoU in percent, {over}:", _table(["", *kinds], scores)),
            *("By fold, mIoU in percent; the last column is FB-IoU:", _table(columns, by_fold)),
            *(more, _table(["", *kinds], differences)),
        ]
    )


def _label(method: str, name: str) -> str:
    if name == TITLES[method]:
        return f"**{name}**"
    return f"{TITLES[method]}: {name}" if name in OF_THE_METHOD else name


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table from a head and rows of cells."""
    rule = "|---" * len(head) + "|"
    rows = ["|" + "".join(f" {x} |" if x else " |" for x in cells) for cells in (head, *lines)]
    return "\n".join([rows[0], rule, *rows[1:]])


def difference(
    found: Sequence[Score], annotation: str, one: tuple[str, str], other: tuple[str, str]
) -> str:
    """Difference in mIoU between two scores, each given by method and name: mean ± standard error.

    The mean is over the folds and seeds that both have; "-" if there are none.
    """
    more, less = (_by_run(found, annotation, *which) for which in (one, other))
    values = np.array([more[run].miou - less[run].miou for run in more if run in less])
    if not values.size:
        return "-"
    error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{values.mean():+.1f}{error}"


def over_seeds(found: Sequence[Score], annotation: str, method: str, name: str) -> list[str]:
    """The mIoU of each fold, their mean, and the mean FB-IoU, each as mean ± deviation over seeds.

    Only seeds with all folds of `found` count; without one, every cell is "-".
    """
    of, folds = _by_run(found, annotation, method, name), _folds(found)
    complete = [s for s in sorted({s for s, _ in of}) if all((s, fold) in of for fold in folds)]
    if not complete:
        return ["-"] * (len(folds) + 2)
    miou = np.array([[of[seed, fold].miou for fold in folds] for seed in complete])
    fb_iou = np.array([[of[seed, fold].fb_iou for fold in folds] for seed in complete])
    columns = [*miou.T, miou.mean(1), fb_iou.mean(1)]
    return [_mean_and_deviation(column) for column in columns]


def _folds(found: Sequence[Score]) -> list[int]:
    return sorted({x.fold for x in found})


def _by_run(
    found: Sequence[Score], annotation: str, method: str, name: str
) -> dict[tuple[int, int], Score]:
    """The scores of a method and name for an annotation, by seed and fold."""
    wanted = annotation, method, name
    return {(x.seed, x.fold): x for x in found if (x.annotation, x.method, x.name) == wanted}


def _mean_and_deviation(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.2f}" if np.ptp(values) > 0 else ""
    return f"{values.mean():.2f}{spread}"


def write_markdown(path: pathlib.Path, table: str) -> None:
    """Writes the table between `BEGIN` and `END` in a document, or at its end if they lack."""
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = f"{text.rstrip()}\n\n", "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
