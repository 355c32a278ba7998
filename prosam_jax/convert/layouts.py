"""Which table of rules converts a checkpoint of SAM or of a backbone."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from prosam_jax.convert import recognise
from prosam_jax.convert.engine import Ignored, Rule
from prosam_jax.convert.rules import dinov2, efficientnet_lite, resnet, sam, vgg
from prosam_jax.errors import UserError


class Table(NamedTuple):
    """How a checkpoint's names map to those of a network."""

    rules: Sequence[Rule]
    ignored: Sequence[Ignored] = ()


RESNET = Table(resnet.RULES, resnet.IGNORED)
DINOV2 = Table(dinov2.RULES, dinov2.IGNORED)
BACKBONES = {
    "resnet50": RESNET,
    "resnet101": RESNET,
    "resnet50_torchvision": RESNET,
    "resnet101_torchvision": RESNET,
    "vgg16": Table(vgg.RULES["vgg16"], vgg.IGNORED),
    "vgg16_bn": Table(vgg.RULES["vgg16_bn"], vgg.IGNORED),
    "dinov2_vits14": DINOV2,
    "dinov2_vitb14": DINOV2,
    "dinov2_vitl14": DINOV2,
    "dinov2_vitl14_reg": DINOV2,
    "efficientnet_lite0": Table(efficientnet_lite.RULES, efficientnet_lite.IGNORED),
}
"""Tables of the publishers' own layouts, by `backbone.name`."""


def table(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], kind: str, architecture: str
) -> Table:
    """The table for the layout that a checkpoint's names show.

    Args:
        path: The checkpoint, for messages.
        tensors: Its tensors by torch name.
        kind: "sam" or "backbone".
        architecture: Value of `sam.model` or `backbone.name`.

    Raises:
        UserError: The checkpoint holds another network, or is damaged.
    """
    recognise.require(path, tensors, kind, architecture)
    if kind == "sam":
        if not any(name.startswith("vision_encoder.") for name in tensors):
            return Table(sam.META_RULES)
        return Table(sam.HF_RULES, _copies(path, tensors))
    if "embeddings.cls_token" in tensors:
        return Table(dinov2.HF_RULES, dinov2.IGNORED)
    return BACKBONES[architecture]


def _copies(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> list[Ignored]:
    """The second of two names under which transformers may save the position matrix."""
    one, other = sam.HF_POSITIONS
    if one not in tensors or other not in tensors:
        return []
    if not np.array_equal(tensors[one], tensors[other]):
        raise UserError(
            f"{path} is damaged: {one} and {other} differ, but SAM has one matrix; download it "
            "again"
        )
    return [Ignored(re.escape(other), f"the same numbers as {one}")]
