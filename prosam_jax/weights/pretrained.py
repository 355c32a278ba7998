"""What the name of a trained prompt encoder stands for: a file, a run's folder, or one on a hub."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from prosam_jax.config import (
    HUB,
    OF_AN_EVALUATION,
    BackboneConfig,
    Config,
    SAMSettings,
    changed,
    flat_mapping,
    packaged,
    read_config,
    replaced,
)
from prosam_jax.errors import UserError
from prosam_jax.weights import hub, prompt_encoder

Group = TypeVar("Group", SAMSettings, BackboneConfig)

DEFAULT = "prosam-shapes"
# These come with the package. This one was trained on generated shapes; on photos it is a toy.
PACKAGED_ENCODERS = {DEFAULT: pathlib.Path(packaged("prompt_encoder", "shapes"))}


def find(name: str | os.PathLike[str]) -> pathlib.Path:
    """The file, or the folder of a run, that a name stands for.

    Args:
        name: A name from `PACKAGED_ENCODERS`; a path; or "user/name", a hub repository, whose file
            is downloaded to the hub client's cache.

    Raises:
        UserError: There is nothing of that name.
    """
    if (text := os.fspath(name)) in PACKAGED_ENCODERS:
        return PACKAGED_ENCODERS[text]
    path = pathlib.Path(os.path.expanduser(text))
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{path} is not the folder of a run: it has no config.json; pass another")
    if path.exists() or path.suffix:
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not path.parent.is_dir():
        try:
            return hub.download(text)
        except UserError as error:
            raise UserError(
                f"{text}: there is no such file or folder, and as a repository of a hub: {error}"
            ) from error
    if len(path.parts) > 1:
        raise UserError(f"{path}: there is no such file or folder; pass a run's folder or a file")
    known = ", ".join(PACKAGED_ENCODERS)
    raise UserError(
        f"there is no prompt encoder {text!r}: pass a file, a run's folder, USER/NAME on a hub, or "
        f"{known}"
    )


def find_file(name: str | os.PathLike[str]) -> pathlib.Path:
    """`find`, but of a file.

    Raises:
        UserError: There is nothing of that name, or it is the folder of a run.
    """
    path = find(name)
    if path.is_dir():
        raise UserError(
            f"{path} is the folder of a run: make a file of it with: prosam export "
            f"--workdir={path} --out=FILE"
        )
    return path


def settings_of(path: pathlib.Path) -> Config:
    """The settings of a run's folder, or of a file, with `prompt.weights` set to the file.

    Raises:
        UserError: It is missing, damaged or something else.
    """
    if path.is_dir():
        return replaced(read_config(path / "config.json"), {"prompt.weights": ""})
    return replaced(prompt_encoder.read(path).config, {"prompt.weights": str(path)})


def usable(trained: Config, overrides: Mapping[str, Any]) -> Config:
    """The settings of a training, changed for using the trained model.

    Frozen weights whose file is not where the defaults have it come from the hub, if it has them.

    Args:
        trained: Settings of the training.
        overrides: New values, by dotted name or nested in groups: `data.downsample`, and settings
            of SAM and the backbone that do not change the architecture.

    Raises:
        UserError: A setting is unknown, not valid, or not one of these.
    """
    changes = flat_mapping(overrides)
    cfg = replaced(trained, changes)
    unused = [
        name
        for name in changes
        if name.partition(".")[0] not in ("sam", "backbone") and name != "data.downsample"
    ]
    if differences := changed(trained, cfg, OF_AN_EVALUATION):
        raise UserError(
            f"these settings belong to the training and cannot be changed: {'; '.join(differences)}"
        )
    if unused:
        raise UserError(
            f"{', '.join(unused)}: a trained model does not read this: leave it out; it reads "
            "data.downsample and the settings of sam and backbone"
        )
    found = {"sam": or_hub(cfg.sam), "backbone": or_hub(cfg.backbone)}
    return replaced(cfg, {f"{kind}.weights": group.weights for kind, group in found.items()})


def or_hub(group: Group) -> Group:
    """The settings of a frozen network, with weights of the hub if no others are named or there.

    They are those of the hub if `weights` is the default, there is no such file, and the hub has
    the network.
    """
    is_missing = (
        group.weights == type(group)().weights and not pathlib.Path(group.weight_file()).exists()
    )
    return dataclasses.replace(group, weights=HUB) if is_missing and group.on_hub else group
