"""Several runs at a time, and all folds, annotations, methods and seeds: 144 runs and one table.

Each run is one of `comparison`, in a folder of its own, so that the whole goes on where it was.
"""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

import rich.progress
from absl import logging

from prosam_jax import console
from prosam_jax.comparison import methods
from prosam_jax.comparison.methods import Run
from prosam_jax.config import ANNOTATIONS, Config
from prosam_jax.errors import UserError
from prosam_jax.report import curves
from prosam_jax.training import signals

METHODS = ("vrp", "gaussian", "student_t")


FOLDS = (0, 1, 2, 3)


DOWNSAMPLE = {"point": "coverage"}
"""`data.downsample` by annotation where it is not the recipe's: "nearest" would lose the marks of
three references in four."""


SET = ("distribution.name", "data.annotation", "data.downsample", "data.fold", "eval.pictures")
"""Settings that every run of the grid is given, whatever those of its recipe are."""


def runs(
    base: Config, workdir: pathlib.Path, seeds: int, annotations: Sequence[str] = ANNOTATIONS
) -> list[Run]:
    """Every run; those of one seed together, so that what is done so far can be compared."""
    return [
        methods.run_of(
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
        UserError: A run cannot be done, said when all the others are, or a process was killed.
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
                rest = f", {console.clock(left)} left" if done < len(todo) else ""
                if isinstance(outcome, str):
                    failed.append(f"{run.workdir}: {outcome}")
                    told = f"failed: {outcome}"
                else:
                    told = f"mIoU {outcome['miou']:.2f}"
                bars.print(
                    f"{run.workdir.name}: {told} in {console.clock(seconds)}; "
                    f"{done} of {len(todo)}{rest}"
                )
        finally:
            for process in workers.values():
                process.terminate()
            for process in workers.values():
                process.join()
    if done < len(todo):
        raise UserError(
            f"{len(todo) - done} runs were not finished, because their processes ended before "
            "their time; the same command goes on from there"
        )
    if failed:
        more = f" ({len(failed) - 1} more failed, see above)" if len(failed) > 1 else ""
        raise UserError(failed[0] + more)


def cores() -> list[int]:
    """The cores that this process may use, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class _Bars:
    """A bar for each run under way, from the curves that it writes; none without a terminal."""

    def __init__(self) -> None:
        self._bars = console.training_bars(console.stderr())
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
        self._bars.console.print(line)

    def refresh(self) -> None:
        for run, task in self._tasks.items():
            with contextlib.suppress(FileNotFoundError):
                values = curves.newest(run.workdir)
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
    methods.share_compiled(shared)
    with contextlib.suppress(signals.Stopped, KeyboardInterrupt):
        while (run := _next(todo, counter)) is not None:
            sender.send((run, 0.0, None))
            start = time.monotonic()
            run.workdir.mkdir(parents=True, exist_ok=True)
            with (
                (run.workdir / "log.txt").open("a", buffering=1) as log,
                contextlib.redirect_stdout(log),
                contextlib.redirect_stderr(log),
            ):
                try:
                    outcome = methods.finish(run)
                except (ValueError, FloatingPointError, OSError) as error:
                    outcome = str(error)
            sender.send((run, time.monotonic() - start, outcome))


def _next(todo: Sequence[Run], counter: Any) -> Run | None:
    with counter.get_lock():
        taken = counter.value
        counter.value += 1
    return todo[taken] if taken < len(todo) else None
