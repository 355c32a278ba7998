"""Converts a semantic backbone's checkpoint to a weight file of `prosam_jax.backbone`."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple, cast

from flax import nnx

from prosam_jax import backbone
from prosam_jax.config import BackboneConfig, check_choice
from prosam_jax.convert import recognise, torch_files
from prosam_jax.convert.engine import Ignored, Rule
from prosam_jax.convert.rules import dinov2, efficientnet_lite, resnet, vgg
from prosam_jax.convert.weight_file import write


class Table(NamedTuple):
    """How a checkpoint's names map to those of a backbone."""

    rules: Sequence[Rule]
    ignored: Sequence[Ignored]


RESNET = Table(resnet.RULES, resnet.IGNORED)
DINOV2 = Table(dinov2.RULES, dinov2.IGNORED)
TABLES = {
    "resnet50": RESNET,
    "resnet101": RESNET,
    "resnet50_torchvision": RESNET,
    "resnet101_torchvision": RESNET,
    "vgg16": Table(vgg.RULES["vgg16"], vgg.IGNORED),
    "vgg16_bn": Table(vgg.RULES["vgg16_bn"], vgg.IGNORED),
    "dinov2_vits14": DINOV2,
    "dinov2_vitb14": DINOV2,
    "dinov2_vitl14": DINOV2,
    "efficientnet_lite0": Table(efficientnet_lite.RULES, efficientnet_lite.IGNORED),
}
MODELS = tuple(TABLES)


def convert(model: str, checkpoint: pathlib.Path, out: pathlib.Path) -> None:
    """Writes `out`, the weight file of the backbone called `model`.

    Raises:
        UserError: The checkpoint cannot be read or is not one of that backbone.
    """
    check_choice("--model", model, MODELS)
    source = torch_files.read(checkpoint)
    recognise.require(checkpoint, source.tensors, "backbone", model)
    table = TABLES[model]
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
