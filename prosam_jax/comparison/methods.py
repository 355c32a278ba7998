"""Runs of single methods, trained as any other run and scored with controls.

A finished run, whose folder has a `results.json` of the same settings and frozen weights, is not
repeated; an unfinished one is resumed.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prosam_jax import model, runs
from prosam_jax.config import CHANGES_NO_NUMBER, Config, changed, recorded, replaced
from prosam_jax.data import datasets
from prosam_jax.errors import UserError
from prosam_jax.evaluation import controls, strategies
from prosam_jax.evaluation.prediction import RESULT
from prosam_jax.evaluation.results import (
    Counted,
    load_examples,
    read_episodes,
    save_examples,
    scores,
)
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
    "config", "step", "miou", "fb_iou", "per_class", "classes", "episodes", "episode_list_sha256",
    "seconds", "versions", "device",
)  # fmt: skip
"""What tables and reports read of `results.json`."""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """One way to score a trained run.

    Attributes:
        name: Folder of its results in that of the run; "" for the run's own, which is always done.
        changes: Settings that differ from the run's, by dotted name.
    """

    name: str
    changes: tuple[tuple[str, Any], ...] = ()


OWN = Scoring("")


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings of a run, its folder, and how it is scored beside its own settings."""

    cfg: Config
    workdir: pathlib.Path
    scorings: tuple[Scoring, ...] = ()

    @property
    def title(self) -> str:
        """The name of its method."""
        return TITLES[self.cfg.distribution.name]


def run_of(
    base: Config,
    folder: pathlib.Path,
    name: str,
    changes: Mapping[str, Any],
    *,
    cached: bool = True,
) -> Run:
    """A run with the settings `base` in a folder of its own.

    Args:
        base: The settings.
        folder: Folder of all runs.
        name: Name of this run's folder in it.
        changes: Settings that differ from `base`, by dotted name.
        cached: Whether all runs of `folder` share a cache of SAM's embeddings there, which is exact
            (float32), unless `base` names one.

    Raises:
        UserError: `base` sets `prompt.weights`, or a change is not valid.
    """
    if base.prompt.weights:
        raise UserError(
            f"prompt.weights={base.prompt.weights} must not be set: methods are compared from the "
            "start, without parameters of another training"
        )
    shared = {"cache.dir": str(folder / "features"), "cache.dtype": "float32"}
    shared = shared if cached and not base.cache.dir else {}
    return Run(replaced(base, {**changes, **shared, **SETTINGS}), folder / name)


def is_finished(run: Run) -> bool:
    """Whether the run is trained and scored in every way."""
    return all(results(run, scoring) is not None for scoring in (OWN, *run.scorings))


def finish(run: Run) -> dict[str, Any]:
    """Trains a run and scores it in every way, unless that is done already.

    Returns:
        The contents of its own `results.json`.

    Raises:
        UserError: The folder has a run with other settings or frozen weights, or a file that the
            settings name is not valid.
        FloatingPointError: A metric is no longer finite.
        training.signals.Stopped: A signal was received; the state is saved.
    """
    todo = [scoring for scoring in (OWN, *run.scorings) if results(run, scoring) is None]
    if OWN in todo:
        loop.train(run.cfg, run.workdir)
    for scoring in todo:
        cfg, folder = scored_with(run, scoring), run.workdir / scoring.name
        scored = runs.score(cfg, run.workdir, "latest", folder)
        if cfg.eval.pictures:
            save_examples(folder / "examples.npz", scored.examples)
    held = results(run)
    assert held is not None, run.workdir
    return held


def scored_with(run: Run, scoring: Scoring) -> Config:
    """The settings with which a run is scored in this way."""
    return replaced(run.cfg, dict(scoring.changes))


def results(run: Run, scoring: Scoring = OWN) -> dict[str, Any] | None:
    """The contents of `results.json` if the run is scored with these settings, else None.

    Raises:
        UserError: A weight file is missing, or `frozen.json` of the run is damaged.
    """
    wanted, folder = scored_with(run, scoring), run.workdir / scoring.name
    try:
        held = read_object(folder / "results.json", NEEDED, "")
        cfg = recorded(held["config"])
        if changed(cfg, wanted, CHANGES_NO_NUMBER) or held["step"] != _last_step(run.cfg):
            return None
        if wanted.eval.controls and (
            # The wrong reference cannot be had of one class alone; else, of another version.
            set(held.get("controls", ())) | {controls.WRONG} != set(controls.MEANING)
            or "prior_threshold" not in held
        ):
            return None
        if wanted.eval.samples and cfg.eval.samples != wanted.eval.samples:
            return None
        _check_whole(counted(folder, held), held, cfg)
        if wanted.eval.pictures:
            load_examples(folder / "examples.npz")
    except (OSError, UserError, TypeError, ValueError, KeyError, AttributeError):
        return None  # not whole, or of another version: it is scored again
    model.fetch(run.cfg)
    frozen = prompt_encoder.frozen_weights(run.cfg)
    return held if prompt_encoder.read_frozen(run.workdir) == frozen else None


def _check_whole(lists: Sequence[Counted], held: Mapping[str, Any], cfg: Config) -> None:
    """Checks that `results.json` is whole and has the scores of the episodes.

    Raises:
        UserError, TypeError, KeyError, AttributeError: It is not.
    """
    of_names = {RESULT: held, **held.get("strategies", {})}
    needed = {RESULT, *(strategies.NAMES if cfg.eval.samples else ())}
    numbers = [held["seconds"], *(x["miou"] for x in held.get("controls", {}).values())]
    whole = (
        needed <= of_names.keys()
        and held["episodes"] == sum(len(x.class_id) for x in lists)
        and all(isinstance(x, float | int) for x in numbers)
        and all(re.fullmatch("[0-9a-f]+", x.digest) for x in lists)
    )
    made_by(held)
    for name, of in of_names.items():
        found = scores(lists, name, cfg.eval.absent == "zero")
        apart = abs(100 * found.miou - of["miou"]), abs(100 * found.fb_iou - of["fb_iou"])
        whole = whole and all(x < 1e-6 for x in apart)
    if not whole:
        raise UserError("results.json and episodes.csv do not belong together")


def counted(folder: pathlib.Path, held: Mapping[str, Any]) -> list[Counted]:
    """The episodes of a scoring, from the folder with its `results.json`, whose contents are given.

    Raises:
        UserError: `episodes.csv` is damaged, or of other lists.
        OSError: It cannot be read.
    """
    digests = [x["episode_list_sha256"] for x in held.get("lists") or [held]]
    return read_episodes(folder / "episodes.csv", digests, held["classes"])


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
