"""Runs of single methods, trained as any other run and scored with controls.

A finished run, whose folder has a `results.json` of the same settings and frozen weights, is not
repeated; an unfinished one is resumed.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

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
"""Names of the methods, by `distribution.name`."""

OF_THE_METHOD = (controls.UNTRAINED, controls.WRONG)
"""Controls that differ between methods; all others are the same for all of them."""

SETTINGS = {"train.eval_every": -1, "eval.controls": True}
"""Settings of every run: with controls and without validation, so that no checkpoint is chosen by
its score on the test list and the last one counts."""


NEEDED = (
    "config", "step", "miou", "fb_iou", "per_class", "episodes", "episode_list_sha256", "seconds",
    "versions", "device", "controls", "prior_threshold",
)  # fmt: skip
"""What tables and reports read of `results.json`."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings of a run and its folder."""

    cfg: Config
    workdir: pathlib.Path

    @property
    def title(self) -> str:
        """The name of its method."""
        return TITLES[self.cfg.distribution.name]


def run_of(base: Config, folder: pathlib.Path, name: str, changes: Mapping[str, Any]) -> Run:
    """A run with the settings `base` in a folder of its own.

    All runs of `folder` share a cache of SAM's embeddings, which is exact (float32).

    Args:
        base: The settings.
        folder: Folder of all runs.
        name: Name of this run's folder in it.
        changes: Settings that differ from `base`, by dotted name.

    Raises:
        UserError: `base` sets `prompt.weights`, or a change is not valid.
    """
    if base.prompt.weights:
        raise UserError(
            f"prompt.weights={base.prompt.weights} must not be set: methods are compared from the "
            "start, without parameters of another training"
        )
    shared = {"cache.dir": str(folder / "features"), "cache.dtype": "float32"}
    shared = {} if base.cache.dir else shared
    return Run(replaced(base, {**changes, **shared, **SETTINGS}), folder / name)


def finish(run: Run) -> dict[str, Any]:
    """Trains and scores a run, unless that is done already.

    Returns:
        The contents of its `results.json`.

    Raises:
        UserError: The folder has a run with other settings or frozen weights, or a file that the
            settings name is not valid.
        FloatingPointError: A metric is no longer finite.
        training.signals.Stopped: A signal was received; the state is saved.
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
    """The contents of `results.json` if the run is finished with these settings, else None.

    Raises:
        UserError: A weight file is missing, or `frozen.json` of the run is damaged.
    """
    try:
        held = read_object(run.workdir / "results.json", NEEDED, "")
        cfg = recorded(held["config"])
        if changed(cfg, run.cfg, CHANGES_NO_NUMBER) or held["step"] != _last_step(run.cfg):
            return None
        if set(held["controls"]) | {controls.WRONG} != set(controls.MEANING):  # another version's
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
    """The versions and the device with which a `results.json` was made."""
    versions = [f"{name} {of}" for name, of in held["versions"].items()]
    told = ", ".join(x for x in versions if x not in held["device"])
    return f"{told}; {held['device']}"
