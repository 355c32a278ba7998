"""Trains VRP-SAM and ProSAM on generated pictures and compares them on classes never seen.

    python demo.py [--jobs=N] [--workdir=runs/demo] [--config.NAME=VALUE ...]
    python demo.py --full [--jobs=N] [--seeds=N] [--annotation=mask ...] [--workdir=runs/full]
                   [--results=docs/results.md]

The first form takes a few minutes, ends with a table and writes `report.html` into the workdir.
The second does all folds, annotations, methods and seeds, which takes hours, and writes a table
into a document and every number, as JSON, into a file beside it; numbers of other runs that are
there stay, so that --config.seed=324 adds seeds. Either goes on where it was when it is started
again. On a CPU a run gets one core and as many go on at a time as there are cores: two cores do
not make one small run much faster.
"""

import pathlib
import shlex
import sys
import time
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import config_flags

from prosam_jax import cli, console
from prosam_jax.comparison import methods, report, sweep, tables
from prosam_jax.config import ANNOTATIONS, Config, check_at_least
from prosam_jax.training import signals

RECIPE = pathlib.Path(__file__).parent / "configs" / "shapes.py"
METHODS = ("vrp", "student_t")

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, shapes.py if none.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs: runs/demo or runs/full.")
FULL = flags.DEFINE_bool("full", False, "Every fold, annotation, method and seed.")
JOBS = flags.DEFINE_integer("jobs", None, "Runs at a time.", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 3, "With --full: seeds of each run.", lower_bound=1)
ANNOTATION = flags.DEFINE_multi_enum(
    "annotation", ANNOTATIONS, ANNOTATIONS, "With --full: an annotation; may be repeated."
)
RESULTS = flags.DEFINE_string("results", "docs/results.md", "With --full: where the table goes.")


def demo(base: Config, workdir: pathlib.Path) -> None:
    """Two runs, a table and a report."""
    check_at_least("eval.pictures", base.eval.pictures, 1)
    start = time.monotonic()
    methods.share_compiled(workdir)
    runs = [
        methods.run_of(base, workdir, method, {"distribution.name": method}) for method in METHODS
    ]
    todo = [run for run in runs if methods.results(run) is None]
    jobs = _jobs(runs)
    if todo and jobs > 1:
        titles = " and ".join(run.title for run in todo)
        print(f"training {titles}, {jobs} at a time", flush=True)
        sweep.finish(todo, jobs=jobs, shared=workdir)
    held = {}
    for run in runs:
        if jobs == 1 and run in todo:
            print(f"\n{run.title}", flush=True)
        held[run.title] = methods.finish(run)
    print()
    tables.print_table(tables.rows(held), f"novel classes of fold {base.data.fold}")
    path = workdir / "report.html"
    report.write(path, runs, shlex.join(["python", *sys.argv]))
    print(
        f"{console.clock(time.monotonic() - start)}; the report, for any browser: {path.resolve()}"
    )


def _jobs(runs: Sequence[methods.Run]) -> int:
    """How many runs go on at a time."""
    if JOBS.value:
        return JOBS.value
    return min(len(runs), len(sweep.cores()) or 1) if jax.default_backend() == "cpu" else 1


def full(base: Config, workdir: pathlib.Path) -> None:
    """All runs and one table."""
    start = time.monotonic()
    runs = sweep.runs(base, workdir, SEEDS.value, ANNOTATION.value)
    todo = [run for run in runs if methods.results(run) is None]
    jobs = _jobs(runs)
    print(f"{len(runs)} runs in {workdir}, {len(todo)} to do, {jobs} at a time", flush=True)
    sweep.finish(todo, jobs=jobs, shared=workdir)
    path = pathlib.Path(RESULTS.value)
    numbers = path.with_suffix(".json")
    found = tables.together(tables.numbers(base, runs), numbers)
    table = tables.markdown(found.scores, tables.note(found))
    tables.write_markdown(path, table)
    tables.write_numbers(numbers, found)
    print(f"{table}\n\n{console.clock(time.monotonic() - start)}; wrote {path} and {numbers}")


def main() -> None:
    """Runs the demo, or all of it."""
    compare, name = (full, "runs/full") if FULL.value else (demo, "runs/demo")
    fixed = {*methods.SETTINGS, *(sweep.SET if FULL.value else ("distribution.name",))}
    if given := fixed & config_flags.get_override_values(flags.FLAGS["config"]).keys():
        raise ValueError(f"{', '.join(sorted(given))}: set by the comparison itself")
    base = Config.from_dict(CONFIG.value)
    if base.data.name != "shapes":
        raise ValueError(
            f"data.name={base.data.name}: the comparison is of generated pictures (shapes); for "
            "others run train.py, and evaluate.py with --config.eval.controls=True"
        )
    try:
        compare(base, pathlib.Path(WORKDIR.value or name).expanduser())
    except signals.Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(128 + stopped.signum)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", flush=True)
        sys.exit(130)


if __name__ == "__main__":
    cli.run(main, RECIPE)
