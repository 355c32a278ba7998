"""Tables of trained runs, the paper's among them: which runs a table needs, and what they gave.

A run is trained once, whatever tables show it. Every value has an interval over the test pictures
(`evaluation.intervals`), and every comparison of two methods is made on the same episodes.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from prosam_jax.comparison import beyond, methods, paper
from prosam_jax.comparison.methods import OWN, Run, Scoring
from prosam_jax.comparison.paper import BENCHMARKS, FOLDS, Benchmark, Row, Table
from prosam_jax.config import Config, replaced
from prosam_jax.errors import UserError
from prosam_jax.evaluation import intervals, results
from prosam_jax.evaluation.intervals import Interval
from prosam_jax.evaluation.results import Counted
from prosam_jax.weights import prompt_encoder

TABLES = paper.TABLES | beyond.TABLES

DOWNSAMPLE = {"point": "coverage"}
"""`data.downsample` by annotation, except with the paper's settings: with "nearest", three of four
references would lose all their points."""

MEAN = "mean"
"""Name of the column after the folds."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """With what the tables are made.

    Attributes:
        name: Its name on the command line.
        bases: The settings that the rows of each of the paper's benchmarks change. Where both are
            the same, one stands for both.
        paper: Whether the paper's values are of the same data and networks, so that a difference
            to them means something.
    """

    name: str
    bases: Mapping[Benchmark, Config]
    paper: bool

    @property
    def single(self) -> bool:
        """Whether one benchmark stands for both of the paper's."""
        return self.bases["coco"] == self.bases["pascal"]

    def data(self, benchmark: Benchmark) -> str:
        """The name of what stands for a benchmark."""
        name = self.bases[benchmark].data.name
        return {"shapes": "Shapes-5i", **BENCHMARKS}.get(name, name)


@dataclasses.dataclass(frozen=True)
class Made:
    """A table as it is made: its rows, and the runs of each.

    Attributes:
        table: The table.
        preset: With what it is made.
        folds: The folds that are made.
        rows: The rows that are made, with the labels that they have here.
        runs: By the labels of a row and the fold its runs, one for each seed.
    """

    table: Table
    preset: Preset
    folds: tuple[int, ...]
    rows: tuple[Row, ...]
    runs: Mapping[tuple[tuple[str, ...], int], tuple[Run, ...]]

    @property
    def by_label(self) -> dict[tuple[str, ...], Row]:
        """The rows by their labels."""
        return {row.labels: row for row in self.rows}


def plan(
    name: str,
    preset: Preset,
    workdir: pathlib.Path,
    *,
    seeds: int = 1,
    folds: Collection[int] = FOLDS,
    only: Collection[str] = (),
) -> Made:
    """The rows and runs of a table.

    Args:
        name: Its name in `TABLES`.
        preset: With what it is made.
        workdir: Folder of all runs.
        seeds: Number of runs of each kind; the first has the seed of the preset's settings.
        folds: The folds to make.
        only: Labels, of which a row must have one, or be compared with such a row; none for all.

    Raises:
        UserError: There is no such table or row, it cannot be made with this preset, or settings
            are not valid.
    """
    if name not in TABLES:
        raise UserError(f"--table={name}: there are {', '.join(TABLES)}")
    table = TABLES[name]
    rows = table.rows
    if preset.single and any(row.benchmark == "pascal" for row in rows):
        rows = tuple(row for row in rows if row.benchmark == "pascal")
    rows = _chosen(tuple(_relabelled(row, preset) for row in rows), only)
    runs = {}
    for row in rows:
        for fold in folds:
            if fold in row.values:
                of = [_run(row, fold, preset, workdir, seed) for seed in range(seeds)]
                runs[row.labels, fold] = tuple(of)
    if not runs:
        shown = sorted({fold for row in rows for fold in row.values})
        raise UserError(
            f"--fold={', '.join(map(str, sorted(folds)))}: table {name} has only fold "
            f"{', '.join(map(str, shown))}"
        )
    kept = tuple(fold for fold in FOLDS if any((row.labels, fold) in runs for row in rows))
    return Made(table, preset, kept, rows, runs)


def _chosen(rows: tuple[Row, ...], only: Collection[str]) -> tuple[Row, ...]:
    """The rows with one of these labels and those that they are compared with."""
    if not only:
        return rows
    if unknown := set(only) - {label for row in rows for label in row.labels}:
        of_rows = dict.fromkeys(label for row in rows for label in row.labels)
        raise UserError(
            f"--row={unknown.pop()} is not in this table; its rows: {', '.join(of_rows)}"
        )
    kept = {row.labels for row in rows if set(row.labels) & set(only)}
    below = {row.below for row in rows if row.labels in kept}
    while not below - {None} <= kept:
        kept |= below - {None}
        below = {row.below for row in rows if row.labels in kept}
    return tuple(row for row in rows if row.labels in kept)


def _relabelled(row: Row, preset: Preset) -> Row:
    """The row with the names of what stands for the paper's data and backbone."""
    names = {title: preset.data(benchmark) for benchmark, title in BENCHMARKS.items()}
    if not row.backbone:
        own = preset.bases[row.benchmark].backbone.name
        names["ResNet-50"] = "ResNet-50" if own == "resnet50" else own
    labels, below = row.labels, row.below
    return dataclasses.replace(
        row,
        labels=tuple(names.get(x, x) for x in labels),
        below=below and tuple(names.get(x, x) for x in below),
    )


def _run(row: Row, fold: int, preset: Preset, workdir: pathlib.Path, seed: int) -> Run:
    base = preset.bases[row.benchmark]
    changes: dict[str, Any] = {
        "seed": base.seed + seed,
        "data.fold": fold,
        "data.annotation": row.annotation,
        "distribution.name": row.method,
        "eval.pictures": 0,
    }
    name = f"{base.data.name}-fold{fold}-{row.annotation}-{row.method}"
    changes |= _downsample(row.annotation, preset)
    if row.backbone:
        name += f"-{row.backbone}"
        weights = Config().backbone.weights
        changes |= {"backbone.name": row.backbone, "backbone.weights": weights}
    if row.variant:
        name += f"-{row.variant}"
        changes |= dict(row.settings)
    run = methods.run_of(
        base, workdir, f"{name}-seed{base.seed + seed}", changes, cached=not preset.paper
    )
    return dataclasses.replace(run, scorings=_scorings(row, run, preset))


def _downsample(annotation: str, preset: Preset) -> dict[str, Any]:
    """The setting that `DOWNSAMPLE` asks for with this annotation, if any."""
    rule = None if preset.paper else DOWNSAMPLE.get(annotation)
    return {} if rule is None else {"data.downsample": rule}


def _scorings(row: Row, run: Run, preset: Preset) -> tuple[Scoring, ...]:
    if row.scoring == OWN:
        return ()
    changes = dict(row.scoring.changes)
    changes |= _downsample(changes.get("data.annotation", ""), preset)
    if "data.test" in changes:
        if preset.bases["coco"].data.name != "coco":
            raise UserError(
                "table 3 is trained on COCO and tested on Pascal, and there is no other benchmark "
                f"to go to from {preset.data('coco')}: use --preset paper"
            )
        changes["data.test_root"] = preset.bases["pascal"].data.root
    scoring = Scoring(row.scoring.name, tuple(changes.items()))
    replaced(run.cfg, changes)  # so that what is not valid is told before anything is done
    return (scoring,)


def together(tables: Sequence[Made]) -> list[Run]:
    """All runs of some tables, each once, with all its ways to be scored; fold by fold."""
    found: dict[pathlib.Path, Run] = {}
    order: dict[pathlib.Path, tuple[int, str]] = {}
    for made in tables:
        for (_, fold), runs in made.runs.items():
            for run in runs:
                held = found.get(run.workdir, run)
                scorings = dict.fromkeys((*held.scorings, *run.scorings))
                found[run.workdir] = dataclasses.replace(held, scorings=tuple(scorings))
                order.setdefault(run.workdir, (fold, run.cfg.data.name))
    return [found[x] for x in sorted(found, key=lambda x: order[x])]


class Value(NamedTuple):
    """A cell, in the unit of the table (percent).

    Attributes:
        paper: The paper's value; None if it has none.
        ours: The mean over the seeds.
        interval: Over episodes.
        seeds: The value of each seed.
        over_seeds: The interval over episodes and seeds; None if there is one seed.
    """

    paper: float | None
    ours: float
    interval: Interval
    seeds: tuple[float, ...]
    over_seeds: Interval | None


class Drawn(NamedTuple):
    """A value by seed, and the mean over the seeds in each draw of the bootstrap."""

    seeds: Float[np.ndarray, " s"]
    draws: Float[np.ndarray, " k"]


class Line(NamedTuple):
    """A row that is made, or the difference of two, by fold (as text) and `MEAN`."""

    row: Row
    values: dict[str, Value]


def lines(made: Made) -> list[Line]:
    """The values of all rows, whose runs are finished."""
    found = []
    for row in made.rows:
        drawn = {str(fold): _drawn(made, row, fold) for fold in made.folds}
        printed = {str(fold): row.values.get(fold) for fold in made.folds}
        found.append(Line(row, _values(made, drawn, printed, row.mean)))
    return found


def differences(made: Made) -> list[Line]:
    """How far each row lies above the row that it is compared with, on the same episodes.

    Raises:
        UserError: They were scored on different episodes.
    """
    found = []
    for row in made.rows:
        if row.below is None:
            continue
        other = made.by_label[row.below]
        drawn, printed = {}, {}
        for fold in made.folds:
            _check_same_episodes(made, row, other, fold)
            one, two = _drawn(made, row, fold), _drawn(made, other, fold)
            drawn[str(fold)] = Drawn(one.seeds - two.seeds, one.draws - two.draws)
            printed[str(fold)] = _less(row.values.get(fold), other.values.get(fold))
        found.append(Line(row, _values(made, drawn, printed, _less(row.mean, other.mean))))
    return found


def _check_same_episodes(made: Made, row: Row, other: Row, fold: int) -> None:
    """Else a dataset was changed between two runs, or is another one on another machine."""
    digests = {}
    for of in (row, other):
        for run in made.runs[of.labels, fold]:
            scoring = scoring_of(run, of)
            folder = run.workdir / scoring.name
            digests[folder] = tuple(x.digest for x in counted(run, scoring))
    first, *rest = digests
    for folder in rest:
        if digests[folder] != digests[first]:
            raise UserError(
                f"{folder}/results.json is of other episodes than {first}/results.json: the "
                "dataset was another one; delete the file that was scored on the wrong one, and "
                "run the same command again"
            )


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _values(
    made: Made,
    drawn: Mapping[str, Drawn],
    printed: Mapping[str, float | None],
    mean: float | None,
) -> dict[str, Value]:
    """The values of a line, with a mean if there are several folds."""
    found = {name: _value(printed[name], of, [of.seeds]) for name, of in drawn.items()}
    if len(drawn) > 1:
        over = Drawn(*(np.mean(x, axis=0) for x in zip(*drawn.values(), strict=True)))
        of_folds = [x.seeds for x in drawn.values()]
        found[MEAN] = _value(mean if made.folds == FOLDS else None, over, of_folds)
    return found


def _value(paper: float | None, drawn: Drawn, folds: Sequence[Float[np.ndarray, " s"]]) -> Value:
    pictures = intervals.interval(drawn.draws)
    return Value(
        paper,
        float(drawn.seeds.mean()),
        pictures,
        tuple(drawn.seeds.tolist()),
        intervals.over_seeds(pictures, folds),
    )


def _drawn(made: Made, row: Row, fold: int) -> Drawn:
    several = [_of_run(run, row) for run in made.runs[row.labels, fold]]
    seeds, draws = zip(*several, strict=True)
    return Drawn(np.array(seeds), np.mean(draws, axis=0))


def _of_run(run: Run, row: Row) -> tuple[float, Float[np.ndarray, " k"]]:
    """A run's value in percent, and each draw's."""
    return _percent(run, scoring_of(run, row), row.scored, row.share)


@functools.lru_cache(maxsize=4096)
def _percent(
    run: Run, scoring: Scoring, name: str, share: int | None
) -> tuple[float, Float[np.ndarray, " k"]]:
    lists = counted(run, scoring)
    absent = methods.scored_with(run, scoring).eval.absent == "zero"
    scores = results.scores(lists, name, absent)
    drawn = results.draws(lists, name, absent)
    if share is None:
        return 100 * scores.miou, 100 * drawn.miou
    return 100 * scores.shares[share], 100 * drawn.shares[:, share]


def scoring_of(run: Run, row: Row) -> Scoring:
    """How a run is scored for a row."""
    return next((x for x in run.scorings if x.name == row.scoring.name), OWN)


@functools.lru_cache(maxsize=1024)
def held(run: Run, scoring: Scoring = OWN) -> Mapping[str, Any]:
    """The contents of the `results.json` of a finished run, checked once in a process."""
    found = methods.results(run, scoring)
    assert found is not None, run.workdir
    return found


@functools.lru_cache(maxsize=64)
def counted(run: Run, scoring: Scoring) -> list[Counted]:
    """The episodes of a finished run."""
    return methods.counted(run.workdir / scoring.name, held(run, scoring))


def controls_of(made: Made) -> list[tuple[Row, dict[str, float]]]:
    """Means over folds and seeds of the controls, in mIoU percent, of each kind of run once.

    Without a control that a run does not have, as that of a wrong class in a fold of one class.
    """
    found, seen = [], set()
    for row in made.rows:
        runs = [run for fold in made.folds for run in made.runs[row.labels, fold]]
        if row.scoring != OWN or runs[0].workdir in seen:
            continue
        seen.add(runs[0].workdir)
        of_runs = [held(run)["controls"] for run in runs]
        kept = [x for x in of_runs[0] if all(x in one for one in of_runs)]
        mean = {x: float(np.mean([one[x]["miou"] for one in of_runs])) for x in kept}
        found.append((row, mean))
    return found


def facts(made: Made) -> Iterator[dict[str, Any]]:
    """For each run what its values rest on: settings, weights, versions, device and episodes."""
    for run in together([made]):
        for scoring in (OWN, *run.scorings):
            yield {
                "run": run.workdir.name,
                "scoring": scoring.name,
                "frozen": prompt_encoder.read_frozen(run.workdir),
                **held(run, scoring),
            }
