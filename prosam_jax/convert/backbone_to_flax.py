"""Converts a semantic backbone's checkpoint to a weight file of `prosam_jax.backbone`."""

import pathlib
from typing import cast

from flax import nnx

from prosam_jax import backbone
from prosam_jax.config import BackboneConfig, check_choice
from prosam_jax.convert import layouts, torch_files
from prosam_jax.convert.weight_file import write

TABLES = layouts.BACKBONES
MODELS = tuple(TABLES)


def convert(model: str, checkpoint: pathlib.Path, out: pathlib.Path) -> None:
    """Writes `out`, the weight file of the backbone called `model`.

    Raises:
        UserError: The checkpoint cannot be read or is not one of that backbone.
    """
    check_choice("--model", model, MODELS)
    source = torch_files.read(checkpoint)
    table = layouts.table(checkpoint, source.tensors, "backbone", model)
    write(
        source,
        out,
        kind="backbone",
        architecture=model,
        build=lambda rngs: cast(
            nnx.Module, backbone.build(BackboneConfig.of(name=model), rngs=rngs)
        ),
        rules=table.rules,
        ignored=table.ignored,
    )
