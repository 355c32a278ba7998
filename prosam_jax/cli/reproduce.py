r"""Makes tables, the paper's among them: trains and scores what they need, and prints them.

    prosam reproduce --table 4
    prosam reproduce --table 1 --table 7 --preset paper --pascal VOC2012 --coco COCO2014 --dry-run
    prosam reproduce --table 8 --preset photos --pascal VOC2012
    prosam reproduce --table methods --seeds 3

Every value has an interval over test pictures and stands beside the paper's; methods are compared
on the same episodes; controls are scored with every run. A run is trained once for all tables that
show it. What is finished is not done again, and what was stopped goes on. Writes tableN.md, .csv,
.json and .html to the workdir.

Beyond the paper, "methods" is VRP-SAM, Gaussian and Student-t with every annotation, and "shown" is
what was trained with masks, shown other annotations.

Presets: "small" has generated pictures and the packaged networks, minutes for each run; "photos"
has photographs in VOC's form and the same small networks, whose figures are no results to quote;
"paper" has the paper's settings, which need the published weights and take hours (Table 8) to weeks
(Table 1) of a GPU. --dry-run shows the runs and about how long they take, and does nothing.
"""

import argparse
import dataclasses
import math
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prosam_jax.atomic import check_place
from prosam_jax.cli import settings
from prosam_jax.cli.arguments import as_path
from prosam_jax.config import Config, check_at_least, replaced
from prosam_jax.errors import UserError

if TYPE_CHECKING:
    from prosam_jax.comparison.methods import Run
    from prosam_jax.comparison.reproduce import Made

RECIPES = {
    "small": {"pascal": "shapes", "coco": "shapes"},
    "photos": {"pascal": "photos", "coco": "photos"},
    "paper": {"pascal": "pascal", "coco": "coco"},
}
"""The recipes that stand for the paper's benchmarks, by preset."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    parser.add_argument(
        "--table",
        action="append",
        required=True,
        metavar="N",
        help='number of a table of the paper, 1 to 9, or "methods", "shown", "noise" or "scale"; '
        "may be repeated",
    )
    parser.add_argument("--preset", choices=RECIPES, default="small", help="default: small")
    parser.add_argument(
        "--pascal", type=as_path, metavar="DIR", help="folder of Pascal VOC, or of photos like it"
    )
    parser.add_argument("--coco", type=as_path, metavar="DIR", help="folder of COCO")
    parser.add_argument(
        "--workdir", type=as_path, help="folder of the runs (default: runs/reproduce/PRESET)"
    )
    parser.add_argument(
        "--fold",
        action="append",
        type=int,
        choices=range(4),
        metavar="F",
        help="fold to make, may be repeated (default: all)",
    )
    parser.add_argument(
        "--row",
        action="append",
        default=[],
        metavar="LABEL",
        help="make only the rows with this label, and what they are compared with; may be repeated",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="runs of each kind (default: 1)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at a time (default: one on each GPU, or on each core of a CPU)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        metavar="TFLOPS",
        help="with --dry-run: what a device reaches, in 1e12 operations per second (default: "
        "measured here; an H200 reached 230 with SAM's encoder in bfloat16)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the runs, and do nothing")
    settings.add_arguments(parser, "not for this verb, which has --preset")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Makes the tables; returns the exit status."""
    import jax

    from prosam_jax import console
    from prosam_jax.comparison import costs, methods, reproduce, sweep

    for flag in ("jobs", "seeds"):
        if getattr(args, flag) is not None:
            check_at_least(f"--{flag}", getattr(args, flag), 1)
    if args.rate is not None and not 0 < args.rate < math.inf:
        raise UserError(f"--rate={args.rate} must be a number above 0")
    if args.config is not None:
        raise UserError(f"--config={args.config}: choose with --preset, and change single settings")
    preset = reproduce.Preset(args.preset, _bases(args), paper=args.preset == "paper")
    workdir = args.workdir or pathlib.Path("runs/reproduce", args.preset)
    folds = args.fold or reproduce.FOLDS
    tables = [
        reproduce.plan(name, preset, workdir, seeds=args.seeds, folds=folds, only=args.row)
        for name in dict.fromkeys(args.table)
    ]
    start = time.monotonic()
    runs = reproduce.together(tables)
    todo = [one for one in runs if not methods.is_finished(one)]
    jobs = args.jobs or sweep.default_jobs(todo)
    if args.dry_run:
        if args.rate is not None:
            _show(runs, args.jobs or 1, args.rate * 1e12)
            return 0
        # On a CPU the runs share the cores that the rate is measured with.
        alone = jax.default_backend() == "cpu"
        _show(runs, 1 if alone else jobs, costs.rate_reached(runs[0].cfg.sam.dtype))
        return 0
    _check_roots(todo)
    _check_files(todo)
    for made in tables:
        check_place(workdir / f"{made.table.stem}.json")
    console.note(f"{len(runs)} runs in {workdir}, {len(todo)} to do, {jobs} at a time")
    try:
        sweep.finish(todo, jobs=jobs)
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    command = shlex.join(["prosam", *sys.argv[1:]])
    for made in tables:
        _write(made, workdir, command)
    for made in tables:  # when all else is written, for it reads the dataset and predicts again
        _draw(made, workdir, command)
    print(console.clock(time.monotonic() - start))
    return 0


def _bases(args: argparse.Namespace) -> dict[Any, Config]:
    """The settings that stand for each of the paper's benchmarks.

    Raises:
        UserError: A setting is not valid, or a folder is given that nothing is read from.
    """
    recipes, roots = RECIPES[args.preset], {"pascal": args.pascal, "coco": args.coco}
    read = {name for name in recipes.values() if name in roots}
    read |= {"pascal"} if args.preset == "photos" else set()
    for name, root in roots.items():
        if root is not None and name not in read:
            raise UserError(f"--{name}={root}: --preset {args.preset} reads nothing from it")
    found = {}
    for benchmark, name in recipes.items():
        root = roots["pascal" if name == "photos" else benchmark]
        place = {} if root is None else {"data.root": str(root)}
        values = settings.recipe(name) | args.overrides | place
        found[benchmark] = replaced(Config(), values)
    return found


def _check_roots(runs: "Sequence[Run]") -> None:
    """Raises UserError if a run needs a folder that was not given."""
    from prosam_jax.comparison import methods

    for run in runs:
        scored = [run.cfg, *(methods.scored_with(run, x) for x in run.scorings)]
        needed = [(run.cfg.data.name, run.cfg.data.root)]
        needed += [("pascal", x.data.test_root) for x in scored if x.data.test != "own"]
        for name, root in needed:
            if name in ("pascal", "coco") and not root:
                raise UserError(
                    f"{run.workdir.name} needs the pictures of {name}: pass --{name} DIR"
                )


def _check_files(runs: "Sequence[Run]") -> None:
    """Opens every dataset and looks for every weight file once, so that no run begins in vain.

    Raises:
        UserError: A dataset or a weight file is missing or not valid, or the file is of another
            network.
    """
    from prosam_jax import model
    from prosam_jax.comparison import methods
    from prosam_jax.data import datasets
    from prosam_jax.evaluation import evaluate
    from prosam_jax.weights import prompt_encoder

    opened, found = set[Any](), set[Any]()
    for run in runs:
        for cfg in (run.cfg, *(methods.scored_with(run, x) for x in run.scorings)):
            place = dataclasses.replace(cfg.data, annotation="mask", downsample="nearest")
            if place not in opened:
                opened.add(place)
                datasets.episodes(cfg.data, "train", seed=cfg.seed)
                evaluate.test_episodes(cfg)
        frozen = run.cfg.sam, run.cfg.backbone
        if frozen not in found:
            found.add(frozen)
            model.fetch(run.cfg)
            prompt_encoder.frozen_weights(run.cfg)


def _show(runs: "Sequence[Run]", jobs: int, rate: float) -> None:
    """Prints the runs, what is done of them, and about how long the rest takes."""
    from prosam_jax.comparison import costs, methods
    from prosam_jax.report import curves

    lines, whole = [("run", "scored", "steps", "done", "hours left")], 0.0
    cached: set[tuple[Any, ...]] = set()
    for run in runs:
        steps = costs.steps(run.cfg)
        left, done = 0.0, steps
        if not methods.is_finished(run):
            there = (run.workdir / curves.METRICS).exists()
            done = curves.newest(run.workdir).get("step", 0) if there else 0
            left = costs.remaining(run.cfg, run.workdir, rate)
            for scoring in run.scorings:
                left += costs.work(methods.scored_with(run, scoring)).scoring / rate / 3600
            # Runs of a fold share what a cache holds.
            kind = run.cfg.cache.dir, run.cfg.sam, run.cfg.data.name, run.cfg.data.fold
            if kind in cached:
                left -= costs.work(run.cfg).embeddings / rate / 3600
            elif run.cfg.cache.dir:
                cached.add(kind)
        ways = ", ".join(["as trained", *(x.name for x in run.scorings)])
        lines.append((run.workdir.name, ways, f"{steps:,}", f"{done:,}", _hours(left)))
        whole += left
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, ways, *numbers in lines:
        right = "  ".join(x.rjust(w) for x, w in zip(numbers, widths[2:], strict=True))
        print(f"{name.ljust(widths[0])}  {ways.ljust(widths[1])}  {right}")
    several = f", {_hours(whole / jobs)} with {jobs} at a time" if jobs > 1 else ""
    print(
        f"{len(runs)} run{'s' * (len(runs) > 1)}, about {_hours(whole)} hours{several}: computed "
        f"from the operations at {rate / 1e12:.3g} TFLOP/s, or from the log of a run that has "
        "begun. Compilation and reading are not counted."
    )


def _hours(x: float) -> str:
    return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"


def _write(made: "Made", workdir: pathlib.Path, command: str) -> None:
    from prosam_jax.atomic import replacing
    from prosam_jax.comparison import table_files
    from prosam_jax.json_files import write_object

    stem = made.table.stem
    text = table_files.markdown(made)
    for suffix, content in ((".md", text), (".csv", table_files.as_csv(made))):
        with replacing(workdir / f"{stem}{suffix}") as part:
            part.write_text(content, encoding="utf-8")
    write_object(workdir / f"{stem}.json", table_files.as_json(made, command))
    print(text)


def _draw(made: "Made", workdir: pathlib.Path, command: str) -> None:
    from prosam_jax.comparison import extremes, table_page

    page = workdir / f"{made.table.stem}.html"
    table_page.write(page, made, extremes.found(made), command)
    print(f"with figures and pictures, for a browser: {page.resolve()}")
