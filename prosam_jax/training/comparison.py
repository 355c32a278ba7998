"""Methods side by side: each a run of its own, as train.py's, scored with controls and kept.

A finished run is not done again: its folder holds `results.json` of just these settings and
frozen weights. An unfinished one goes on where it was.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import rich.console
import rich.table

from prosam_jax.config import Config, changed, replaced
from prosam_jax.data import benchmark
from prosam_jax.prompt import weight_file
from prosam_jax.training import controls, loop, report, score, state

TITLES = {
    "vrp": "VRP-SAM",
    "vrp_2linear": "VRP-SAM with two more layers",
    "gaussian": "ProSAM, Gaussian",
    "student_t": "ProSAM, Student-t",
    "t3vae": "ProSAM, t3-VAE",
}
"""What the methods are called, by `distribution.name`."""

OF_THE_METHOD = (controls.UNTRAINED, controls.WRONG)
"""Controls that each method has for itself; all others are the same for all."""

SETTINGS = {"train.eval_every": -1, "eval.controls": True}
"""No checkpoint is chosen by its score on the test list: the last one counts."""

MOVED = ("cache.dir",)
"""Settings that may have changed since a run was finished."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One method under one set of settings, and where it lies."""

    cfg: Config
    workdir: pathlib.Path

    @property
    def title(self) -> str:
        """What its method is called."""
        return TITLES[self.cfg.distribution.name]


def run_of(base: Config, folder: pathlib.Path, name: str, changes: Mapping[str, Any]) -> Run:
    """A run of `base` in a folder of its own, with changed settings by dotted name.

    All runs of `folder` share SAM's embeddings, exactly as they are.

    Raises:
        ValueError: `base` begins with trained parameters.
    """
    if base.prompt.weights:
        raise ValueError(
            f"prompt.weights={base.prompt.weights}: methods are compared from the start, with no "
            "parameters of another training"
        )
    shared = {"cache.dir": str(folder / "features"), "cache.dtype": "float32"}
    shared = {} if base.cache.dir else shared
    return Run(replaced(base, {**changes, **shared, **SETTINGS}), folder / name)


def share_compiled(folder: pathlib.Path) -> None:
    """Keeps compiled functions in a folder of `folder`, unless the user keeps them elsewhere.

    Runs of one comparison compile much the same, and a run that goes on compiles it again. They
    lie beside the runs, and go with them when those are deleted.
    """
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(folder.resolve() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def finish(run: Run) -> dict[str, Any]:
    """Trains and scores what is not yet trained and scored.

    Returns:
        `results.json` of the run.

    Raises:
        ValueError: The folder holds a run of other settings or frozen weights, or something that
            the settings name is not as it must be.
        loop.Stopped: SIGTERM or SIGINT came; the state is saved.
    """
    if (held := results(run)) is not None:
        return held
    loop.train(run.cfg, run.workdir)
    scored = score.score(run.cfg, run.workdir, "latest")
    if run.cfg.eval.pictures:
        report.save_examples(run.workdir / "examples.npz", scored.examples)
    held = results(run)
    assert held is not None, run.workdir
    return held


def results(run: Run) -> dict[str, Any] | None:
    """`results.json` of a finished run, None if it is not finished or is another one."""
    try:
        held = json.loads((run.workdir / "results.json").read_text())
        cfg, step, _ = Config.from_dict(held["config"]), held["step"], held["device"]
    except (OSError, KeyError, ValueError):
        return None
    if changed(cfg, run.cfg, MOVED) or step != _last_step(run.cfg):
        return None
    pictured = not run.cfg.eval.pictures or (run.workdir / "examples.npz").is_file()
    frozen = weight_file.frozen_weights(run.cfg)
    return held if pictured and weight_file.read_frozen(run.workdir) == frozen else None


def _last_step(cfg: Config) -> int:
    if cfg.train.steps:
        return cfg.train.steps
    images = len(benchmark.episodes(cfg.data, "train", seed=cfg.seed).fold.images)
    return state.total_steps(cfg.train, images)


def made_by(held: Mapping[str, Any]) -> str:
    """The versions and the device that made a `results.json`."""
    versions = [f"{name} {of}" for name, of in held["versions"].items()]
    told = ", ".join(x for x in versions if x not in held["device"])
    return f"{told}; {held['device']}"


class Row(NamedTuple):
    """A line of a table; scores in percent.

    Attributes:
        name: Of a method, or of a control.
        method: The title of the method that it belongs to, "" for what belongs to all.
        miou: Mean over the classes.
        fb_iou: Of foreground and background.
    """

    name: str
    method: str
    miou: float
    fb_iou: float


def rows(held: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Each method with its own controls, then the controls and baselines of all of them.

    Args:
        held: `results.json` by the method's title.
    """
    lines, common = [], {}
    for title, found in held.items():
        lines.append(Row(title, title, found["miou"], found["fb_iou"]))
        common = found["controls"]
        lines += [Row(name, title, **common[name]) for name in OF_THE_METHOD]
    return lines + [Row(name, "", **x) for name, x in common.items() if name not in OF_THE_METHOD]


def print_table(lines: Sequence[Row], title: str) -> None:
    """Prints the lines, a section for each method."""
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
    rich.console.Console().print(table)
