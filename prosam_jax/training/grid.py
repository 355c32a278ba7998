"""Several runs at a time, and all folds, annotations, methods and seeds: 144 runs and one table.

Each run is one of `comparison`, in a folder of its own, so that the whole goes on where it was.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

import numpy as np
import rich.console
import rich.progress
from absl import logging

from prosam_jax.atomic import replacing
from prosam_jax.config import ANNOTATIONS, Config, replaced, to_dict
from prosam_jax.prompt import weight_file
from prosam_jax.training import comparison, controls, loop, report
from prosam_jax.training.comparison import OF_THE_METHOD, TITLES, Run

METHODS = ("vrp", "gaussian", "student_t")
FOLDS = (0, 1, 2, 3)
DOWNSAMPLE = {"point": "coverage"}
"""`data.downsample` by annotation where it is not the recipe's: "nearest" would lose the marks of
three references in four."""

SET = ("distribution.name", "data.annotation", "data.downsample", "data.fold", "eval.pictures")
"""Settings that every run of the grid is given, whatever those of its recipe are."""

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
"""What the last table compares: method and name of a score, and of the one below it."""

BEGIN, END = "<!-- demo-full: begin -->", "<!-- demo-full: end -->"


def runs(
    base: Config, workdir: pathlib.Path, seeds: int, annotations: Sequence[str] = ANNOTATIONS
) -> list[Run]:
    """Every run; those of one seed together, so that what is done so far can be compared."""
    return [
        comparison.run_of(
            base,
            workdir,
            f"{annotation}-fold{fold}-{method}-seed{seed}",
            {
                "distribution.name": method,
                "data.annotation": annotation,
                "data.downsample": DOWNSAMPLE.get(annotation, base.data.downsample),
                "data.fold": fold,
                "seed": seed,
                "eval.pictures": 0,
            },
        )
        for seed in range(base.seed, base.seed + seeds)
        for fold in FOLDS  # its pictures stay in memory
        for annotation in annotations
        for method in METHODS
    ]


def finish(todo: Sequence[Run], *, jobs: int, shared: pathlib.Path) -> None:
    """Finishes the runs, `jobs` at a time, each in a process with its share of the cores.

    Shows a bar for each run under way, and prints a line for each finished one. What a run prints
    goes to `log.txt` in its folder.

    Args:
        todo: The runs.
        jobs: How many at a time.
        shared: Folder of what they share (`comparison.share_compiled`).

    Raises:
        ValueError: A run cannot be done, said when all the others are, or a process was killed.
        SystemExit: SIGTERM came; runs under way are saved.
        KeyboardInterrupt: Ctrl-C came; likewise.
    """
    spawn = multiprocessing.get_context("spawn")
    counter = spawn.Value("i", 0)
    known = cores()
    began, done, failed, workers = time.monotonic(), 0, [], {}
    if jobs > 1:  # they share a GPU's memory, of which JAX would give the first one most
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with _terminable(), _Bars() as bars:
        try:
            for job in range(min(jobs, len(todo))):
                receiver, sender = spawn.Pipe(duplex=False)
                share = known[job::jobs] if jobs > 1 else []
                process = spawn.Process(target=_work, args=(todo, counter, sender, share, shared))
                process.start()
                sender.close()
                workers[receiver] = process
            for run, seconds, outcome in _messages(list(workers), bars.refresh):
                if outcome is None:
                    bars.begin(run)
                    continue
                bars.end(run)
                done += 1
                left = (time.monotonic() - began) / done * (len(todo) - done)
                rest = f", {report.clock(left)} left" if done < len(todo) else ""
                if isinstance(outcome, str):
                    failed.append(f"{run.workdir}: {outcome}")
                    told = f"failed: {outcome}"
                else:
                    told = f"mIoU {outcome['miou']:.2f}"
                bars.print(
                    f"{run.workdir.name}: {told} in {report.clock(seconds)}; "
                    f"{done} of {len(todo)}{rest}"
                )
        finally:
            for process in workers.values():
                process.terminate()
            for process in workers.values():
                process.join()
    if done < len(todo):
        raise ValueError(
            f"{len(todo) - done} runs were not finished, because their processes ended before "
            "their time; the same command goes on from there"
        )
    if failed:
        more = f" ({len(failed) - 1} more failed, see above)" if len(failed) > 1 else ""
        raise ValueError(failed[0] + more)


def cores() -> list[int]:
    """The cores that this process may use, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class _Bars:
    """A bar for each run under way, from the curves that it writes; none without a terminal."""

    def __init__(self) -> None:
        self._bars = report.training_bars(rich.console.Console(highlight=False))
        self._tasks: dict[Run, rich.progress.TaskID] = {}

    def __enter__(self) -> "_Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, run: Run) -> None:
        steps = run.cfg.train.steps or None
        self._tasks[run] = self._bars.add_task(run.workdir.name, total=steps, text="")

    def end(self, run: Run) -> None:
        self._bars.remove_task(self._tasks.pop(run))

    def print(self, line: str) -> None:
        self._bars.console.print(line, soft_wrap=True)

    def refresh(self) -> None:
        for run, task in self._tasks.items():
            with contextlib.suppress(FileNotFoundError):
                values = report.newest(run.workdir)
                if values:
                    text = f"loss {values['train/loss']:.4f}  mIoU {100 * values['train/miou']:.1f}"
                    text += ", scoring" if values["step"] == run.cfg.train.steps else ""
                    self._bars.update(task, completed=values["step"], text=text)


def _messages(
    receivers: list[connection.Connection], idle: Callable[[], None]
) -> Iterator[tuple[Run, float, Any]]:
    """What the processes send, until all have ended; calls `idle` twice a second."""
    while receivers:
        idle()
        for receiver in connection.wait(receivers, timeout=0.5):
            assert isinstance(receiver, connection.Connection)
            try:
                yield receiver.recv()
            except EOFError:  # that process has ended
                receivers.remove(receiver)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """While entered, SIGTERM is raised as `SystemExit`, so that the workers can be told."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    old = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _work(
    todo: Sequence[Run],
    counter: Any,
    sender: connection.Connection,
    cores: Sequence[int],
    shared: pathlib.Path,
) -> None:
    """One process: takes run after run until none is left or a signal comes."""
    if cores:
        os.sched_setaffinity(0, cores)
    logging.set_verbosity(logging.ERROR)  # as `cli.run` does
    comparison.share_compiled(shared)
    with contextlib.suppress(loop.Stopped, KeyboardInterrupt):
        while (run := _next(todo, counter)) is not None:
            sender.send((run, 0.0, None))
            start = time.monotonic()
            run.workdir.mkdir(parents=True, exist_ok=True)
            with (
                (run.workdir / "log.txt").open("a", buffering=1) as log,
                contextlib.redirect_stdout(log),
            ):
                try:
                    outcome = comparison.finish(run)
                except (ValueError, FloatingPointError, OSError) as error:
                    outcome = str(error)
            sender.send((run, time.monotonic() - start, outcome))


def _next(todo: Sequence[Run], counter: Any) -> Run | None:
    with counter.get_lock():
        taken = counter.value
        counter.value += 1
    return todo[taken] if taken < len(todo) else None


@dataclasses.dataclass(frozen=True)
class Score:
    """mIoU and FB-IoU in percent of one thing in one run."""

    annotation: str
    fold: int
    method: str
    seed: int
    name: str
    miou: float
    fb_iou: float

    @property
    def run(self) -> tuple[str, int, str, int]:
        """What tells runs apart."""
        return self.annotation, self.fold, self.method, self.seed


@dataclasses.dataclass(frozen=True)
class Numbers:
    """All that a grid has found.

    Attributes:
        settings: Of its recipe, but for what differs from run to run and where files lie.
        frozen: Its frozen weights, as `weight_file.frozen_weights`.
        made_by: Versions and devices that made the scores, each once.
        scores: Of the methods, named as such, and of their controls.
    """

    settings: dict[str, Any]
    frozen: dict[str, Any]
    made_by: list[str]
    scores: list[Score]


def numbers(base: Config, done: Sequence[Run]) -> Numbers:
    """Every number of finished runs of a recipe."""
    found, made_by = [], []
    for run in done:
        held = comparison.results(run)
        assert held is not None, run.workdir
        cfg = run.cfg
        made_by.append(comparison.made_by(held))
        for name, x in {run.title: held, **held["controls"]}.items():
            found.append(
                Score(
                    cfg.data.annotation, cfg.data.fold, cfg.distribution.name, cfg.seed, name,
                    x["miou"], x["fb_iou"],
                )
            )  # fmt: skip
    varied = {"seed": 0, "data.fold": 0, "data.annotation": "mask", "distribution.name": "vrp"}
    given = {"eval.pictures": 0, **dict.fromkeys(comparison.MOVED, ""), **comparison.SETTINGS}
    settings = to_dict(replaced(base, varied | given))
    frozen = weight_file.frozen_weights(base)
    return Numbers(settings, frozen, list(dict.fromkeys(made_by)), found)


def together(new: Numbers, path: pathlib.Path) -> Numbers:
    """The numbers, and those of other runs that a file of `write_numbers` holds.

    If it is of other settings or frozen weights they are left out, and this is said.
    """
    if not path.is_file():
        return new
    held = json.loads(path.read_text())
    if (held["settings"], held["frozen"]) != (new.settings, new.frozen):
        print(f"{path} is of other settings or frozen weights: its numbers are replaced")
        return new
    done = {x.run for x in new.scores}
    old = [x for x in (Score(**x) for x in held["scores"]) if x.run not in done]
    made_by = [*(held["made_by"] if old else []), *new.made_by]
    scores = sorted([*old, *new.scores], key=lambda x: x.seed)
    return dataclasses.replace(new, made_by=list(dict.fromkeys(made_by)), scores=scores)


def write_numbers(path: pathlib.Path, found: Numbers) -> None:
    """Keeps every single number as JSON, one `Score` a line."""
    lines = ",\n".join(json.dumps(dataclasses.asdict(x)) for x in found.scores)
    rest = {k: v for k, v in dataclasses.asdict(found).items() if k != "scores"}
    head = json.dumps(rest, indent=1).removesuffix("\n}")
    with replacing(path) as part:
        part.write_text(f'{head},\n "scores": [\n{lines}\n]}}\n')


def note(found: Numbers) -> str:
    """How the numbers were made, for the head of their table."""
    runs = {x.run for x in found.scores}
    kinds = collections.defaultdict(list)
    for annotation in ANNOTATIONS:
        seeds = sorted({seed for of, *_, seed in runs if of == annotation})
        kinds[", ".join(map(str, seeds))].append(annotation)
    seeds = "; ".join(f"seeds {seeds} of {', '.join(of)}" for seeds, of in kinds.items() if seeds)
    train, test = found.settings["train"], found.settings["eval"]
    rules = "".join(f"; with {a} data.downsample={rule}" for a, rule in DOWNSAMPLE.items())
    return (
        f"{len(runs)} runs of {train['steps']:,} steps of {train['batch_size']} episodes, "
        f"{test['episodes']:,} test episodes each, the last checkpoint{rules}; {seeds}; "
        f"{'; or '.join(found.made_by)}."
    )


def markdown(found: Sequence[Score], note: str) -> str:
    """Tables of the scores: with all controls, by fold, and of their differences.

    The first two have mean and standard deviation over the seeds.

    Args:
        found: Numbers of all runs.
        note: How they were made.
    """
    kinds = [a for a in ANNOTATIONS if any(x.annotation == a for x in found)]
    head = ["| |" + "".join(f" {a} |" for a in kinds), "|---|" + "---|" * len(kinds)]
    lines = [note, "", "mIoU in percent, mean of the four folds:", "", *head]
    named = [(m, name) for m in METHODS for name in (TITLES[m], *OF_THE_METHOD)]
    named += [(METHODS[0], name) for name in controls.MEANING if name not in OF_THE_METHOD]
    for method, name in named:
        cells = [over_seeds(found, a, method, name)[-2] for a in kinds]
        bold = f"**{name}**" if name == TITLES[method] else name
        label = f"{TITLES[method]}: {name}" if name in OF_THE_METHOD else bold
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "By fold, mIoU in percent and at last FB-IoU:", ""]
    lines += ["| | | fold 0 | fold 1 | fold 2 | fold 3 | mean | FB-IoU |", "|---|---|" + "---|" * 6]
    for annotation, method in itertools.product(kinds, METHODS):
        cells = over_seeds(found, annotation, method, TITLES[method])
        lines.append(f"| {annotation} | {TITLES[method]} | {' | '.join(cells)} |")
    title = "How much more mIoU, fold by fold and seed by seed, mean ± its standard error:"
    lines += ["", title, "", *head]
    for (method, name), (other, below) in COMPARED:
        cells = [difference(found, a, (method, name), (other, below)) for a in kinds]
        lines.append(f"| {name} than {below} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(
    found: Sequence[Score], annotation: str, one: tuple[str, str], other: tuple[str, str]
) -> str:
    """How much more mIoU one method and name has than the other: mean ± standard error.

    The mean is over the runs, folds and seeds, of `one`; `other` must have all of them.
    """
    miou = [
        {
            (x.seed, x.fold): x.miou
            for x in found
            if (x.annotation, x.method, x.name) == (annotation, *which)
        }
        for which in (one, other)
    ]
    values = np.array([value - miou[1][key] for key, value in miou[0].items()])
    return f"{values.mean():+.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"


def over_seeds(found: Sequence[Score], annotation: str, method: str, name: str) -> list[str]:
    """Fold by fold the mIoU, their mean, and the mean FB-IoU: means ± deviations over seeds."""
    wanted = (annotation, method, name)
    of = {(x.seed, x.fold): x for x in found if (x.annotation, x.method, x.name) == wanted}
    seeds = sorted({seed for seed, _ in of})
    miou = np.array([[of[seed, fold].miou for fold in FOLDS] for seed in seeds])
    fb_iou = np.array([[of[seed, fold].fb_iou for fold in FOLDS] for seed in seeds])
    columns = [*miou.T, miou.mean(1), fb_iou.mean(1)]
    return [_mean_and_deviation(column) for column in columns]


def _mean_and_deviation(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.2f}" if np.ptp(values) > 0 else ""
    return f"{values.mean():.2f}{spread}"


def write_markdown(path: pathlib.Path, table: str) -> None:
    """Puts the table between its two marks in a document, or at its end if it has none."""
    text = path.read_text() if path.is_file() else "# Results\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = f"{text.rstrip()}\n\n", "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
