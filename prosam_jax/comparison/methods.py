"""A run of one method: trained as any other, scored with controls, and kept.

A finished run is not done again: its folder holds `results.json` of just these settings and
frozen weights. An unfinished one goes on where it was.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from prosam_jax import runs
from prosam_jax.config import CHANGES_NO_NUMBER, Config, changed, recorded, replaced
from prosam_jax.data import datasets
from prosam_jax.errors import UserError
from prosam_jax.evaluation import controls
from prosam_jax.evaluation.results import load_examples, save_examples
from prosam_jax.json_files import read_object
from prosam_jax.training import loop, state
from prosam_jax.weights import prompt_encoder

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
"""What every run is given: no checkpoint is chosen by its score on the test list, the last one
counts."""


NEEDED = (
    "config", "step", "miou", "fb_iou", "per_class", "episodes", "episode_list_sha256", "seconds",
    "versions", "device", "controls", "prior_threshold",
)  # fmt: skip
"""What tables and reports read of `results.json`."""


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
        UserError: `base` begins with trained parameters.
    """
    if base.prompt.weights:
        raise UserError(
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
        UserError: The folder holds a run of other settings or frozen weights, or something that
            the settings name is not as it must be.
        loop.Stopped: SIGTERM or SIGINT came; the state is saved.
    """
    if (held := results(run)) is not None:
        return held
    loop.train(run.cfg, run.workdir)
    scored = runs.score(run.cfg, run.workdir, "latest")
    if run.cfg.eval.pictures:
        save_examples(run.workdir / "examples.npz", scored.examples)
    held = results(run)
    assert held is not None, run.workdir
    return held


def results(run: Run) -> dict[str, Any] | None:
    """`results.json` of a finished run, None if it is not finished or is another one."""
    try:
        held = read_object(run.workdir / "results.json", NEEDED, "")
        cfg = recorded(held["config"])
        if changed(cfg, run.cfg, CHANGES_NO_NUMBER) or held["step"] != _last_step(run.cfg):
            return None
        if set(held["controls"]) != set(controls.MEANING):  # of another version
            return None
        if run.cfg.eval.pictures:
            load_examples(run.workdir / "examples.npz")
    except (OSError, UserError):  # scored again, these files are as they must be
        return None
    frozen = prompt_encoder.frozen_weights(run.cfg)
    return held if prompt_encoder.read_frozen(run.workdir) == frozen else None


def _last_step(cfg: Config) -> int:
    if cfg.train.steps:
        return cfg.train.steps
    images = len(datasets.episodes(cfg.data, "train", seed=cfg.seed).fold.images)
    return state.total_steps(cfg.train, images)


def made_by(held: Mapping[str, Any]) -> str:
    """The versions and the device that made a `results.json`."""
    versions = [f"{name} {of}" for name, of in held["versions"].items()]
    told = ", ".join(x for x in versions if x not in held["device"])
    return f"{told}; {held['device']}"
