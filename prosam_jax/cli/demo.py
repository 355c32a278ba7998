"""Trains VRP-SAM and ProSAM on generated pictures and compares them on novel classes.

    prosam demo

Takes a few minutes, prints a table and writes report.html to the workdir. Start it again to resume
it. On a CPU each run gets one core and there are as many runs at a time as cores, because a second
core hardly speeds up a small run. For every fold, annotation and method there is
`prosam reproduce --table methods`.
"""

import argparse
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from prosam_jax.cli import settings
from prosam_jax.cli.arguments import as_path
from prosam_jax.config import Config, check_at_least
from prosam_jax.config.fields import flat, unread
from prosam_jax.errors import UserError

METHODS = ("vrp", "student_t")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    parser.add_argument(
        "--workdir",
        type=as_path,
        default=pathlib.Path("runs/demo"),
        help="folder of the runs (default: runs/demo)",
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="how many runs at a time")
    settings.add_arguments(parser, "default: shapes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the demo; returns the exit status."""
    if args.jobs is not None:
        check_at_least("--jobs", args.jobs, 1)
    base = settings.config(args, "shapes")
    try:
        demo(base, args)
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    return 0


def demo(base: Config, args: argparse.Namespace) -> None:
    """Trains and scores two methods, prints a table and writes a report."""
    from prosam_jax import console
    from prosam_jax.comparison import methods, report, sweep, tables

    check_at_least("eval.pictures", base.eval.pictures, 1)
    start = time.monotonic()
    runs = [
        methods.run_of(base, args.workdir, method, {"distribution.name": method})
        for method in METHODS
    ]
    _check_heeded(args, runs)
    todo = [run for run in runs if not methods.is_finished(run)]
    jobs = args.jobs or sweep.default_jobs(runs)
    if todo and jobs > 1:
        titles = " and ".join(run.title for run in todo)
        console.note(f"training {titles}, {jobs} at a time")
        sweep.finish(todo, jobs=jobs)
    held: dict[str, Any] = {}
    for run in runs:
        if jobs == 1 and run in todo:
            console.note(f"\n{run.title}")
        held[run.title] = methods.finish(run)
    print()
    tables.print_table(tables.rows(held), f"novel classes of fold {base.data.fold}")
    path = args.workdir / "report.html"
    report.write(path, runs, shlex.join(["prosam", *sys.argv[1:]]))
    took = console.clock(time.monotonic() - start)
    print(f"{took}; open the report in a browser: {path.resolve()}")


def _check_heeded(args: argparse.Namespace, runs: Sequence[Any]) -> None:
    """Raises UserError if the comparison overrides a setting that the command line gives."""
    ignored = set()
    for run in runs:
        held = flat(run.cfg)
        for name, value in args.overrides.items():
            is_read = name not in unread(Config, held | {name: value})
            if name != "seed" and is_read and held[name] != value:
                ignored.add(name)
    if ignored:
        raise UserError(
            f"{', '.join(sorted(ignored))}: the comparison sets this itself; for a single run with "
            "your own settings use prosam train"
        )
