"""A trained model by its name, its file, or the folder of its training."""

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from prosam_jax.config import (
    Config,
    changed,
    check_choice,
    check_setting,
    packaged,
    read_config,
    replaced,
)
from prosam_jax.errors import UserError
from prosam_jax.model import ProSAM, build
from prosam_jax.weights import prompt_encoder

DEFAULT = "prosam-shapes"
# They come with the package. This one knows generated shapes: on photos it is a toy.
MODELS = {DEFAULT: packaged("prompt_encoder", "shapes")}
# Settings with which a trained model may be used otherwise; weight files may always have moved.
FREE = ("data.downsample", "sam.attention", "sam.dtype")


def load(model: str | os.PathLike[str], overrides: Mapping[str, Any]) -> tuple[ProSAM, Config]:
    """A trained model and the settings that it is used with.

    Args:
        model: A name of `MODELS`; a file of a trained prompt encoder (`python -m
            prosam_jax.prompt_file`); or the folder of a training run, of which the best
            checkpoint is taken, the latest if none was validated.
        overrides: Settings that differ from the training's, by dotted name: those of `FREE`,
            "sam.weights" and "backbone.weights".

    Raises:
        ValueError: There is no such model, its frozen weights are missing or others than it was
            trained on, or a setting is unknown or belongs to the training.
    """
    path = pathlib.Path(MODELS.get(os.fspath(model), model))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is not the folder of a run: it has no config.json")
        cfg = _settings(read_config(path / "config.json"), overrides, "")
        return _of_run(cfg, path), cfg
    if not (path.is_file() or path.suffix or len(path.parts) > 1):
        check_choice("model", str(model), tuple(MODELS))
    cfg = _settings(prompt_encoder.read(path).config, overrides, str(path))
    return build(cfg), cfg


def _settings(trained: Config, overrides: Mapping[str, Any], file: str) -> Config:
    for name in overrides:
        check_setting(name)
    cfg = replaced(trained, overrides)
    if differences := changed(trained, cfg, FREE):
        raise UserError(
            f"these settings belong to the training and cannot be changed: "
            f"{'; '.join(differences)}; free are {', '.join(FREE)}, and where the files of "
            "sam.weights and backbone.weights lie"
        )
    return replaced(cfg, {"prompt.weights": file})


def _of_run(cfg: Config, workdir: pathlib.Path) -> ProSAM:
    # These take seconds to import, and files do without.
    from prosam_jax import runs
    from prosam_jax.weights.checkpoint import Checkpoints

    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        which = "latest" if checkpoints.best is None else "best"
    parts, _ = runs.restored(cfg, workdir, which)
    # Restored to the devices of an evaluation; one is enough here.
    params = jax.tree.map(jnp.asarray, jax.device_get(parts.params))
    return nnx.merge(*parts._replace(params=params))
