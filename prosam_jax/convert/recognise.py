"""Tells from names and shapes what a checkpoint holds, for the messages about wrong files."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from prosam_jax.config import BACKBONES, SAM_MODELS, SAMConfig
from prosam_jax.errors import UserError
from prosam_jax.weights import registry

Tensors = Mapping[str, np.ndarray]
COMMANDS = {
    "sam": "prosam weights convert sam --model {}",
    "backbone": "prosam weights convert backbone --model {}",
    "prompt_encoder": "prosam weights convert vrp-sam",
}
UNPUBLISHED = {"prompt_encoder": "VRP-SAM or ProSAM"}
RESNET_BLOCKS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "ResNet-50",
    (3, 4, 23, 3): "ResNet-101",
    (3, 8, 36, 3): "ResNet-152",
}
VGG_CONVS = {8: "VGG-11", 10: "VGG-13", 13: "VGG-16", 16: "VGG-19"}
DINOV2_WIDTHS = {384: "vits14", 768: "vitb14", 1024: "vitl14", 1536: "vitg14"}


class Found(NamedTuple):
    """A network in a checkpoint.

    Attributes:
        words: What it is, for messages.
        kind: A key of `weights.files.SETTINGS`, or "" for a network that this library lacks.
        architecture: Value of that kind's setting, or "".
    """

    words: str
    kind: str = ""
    architecture: str = ""


def require(path: object, tensors: Tensors, kind: str, architecture: str) -> None:
    """Raises a one-line UserError that says what to do, unless the wanted network is there.

    Args:
        path: The checkpoint, for the message.
        tensors: Its tensors by torch name.
        kind: A key of `weights.files.SETTINGS`.
        architecture: Value of that kind's setting; "" for any.
    """
    held = recognise(tensors)
    if any(x.kind == kind and architecture in (x.architecture, "") for x in held):
        return
    wanted = f"{kind.replace('_', ' ')} {architecture}".rstrip()
    if not held:
        names = ", ".join(list(tensors)[:3])
        raise UserError(
            f"{path} holds no known network, but {names} ...; {wanted} is converted from "
            f"{_files(kind, architecture)}"
        )
    found = " and ".join(x.words for x in held)
    mend = f"pass {_files(kind, architecture)}"
    for x in held:
        if x.kind == kind:
            mend = f"pass --model {x.architecture}, or {_files(kind, architecture)}"
        elif x.kind:
            mend = f"convert it with {COMMANDS[x.kind].format(x.architecture)}, or {mend}"
    raise UserError(f"{path} is {found}, not {wanted}; {mend}")


def recognise(tensors: Tensors) -> list[Found]:
    """The networks in a checkpoint; VRP-SAM's also holds its backbone."""
    looks = (_sam, _resnet, _vgg, _dinov2, _efficientnet, _prompt_encoder)
    return [found for look in looks if (found := look(tensors))]


def _files(kind: str, architecture: str) -> str:
    files = [x.file for x in registry.PUBLISHED if (x.kind, x.architecture) == (kind, architecture)]
    return " or ".join(files) or f"a checkpoint of {UNPUBLISHED.get(kind, architecture)}"


def _sam(tensors: Tensors) -> Found | None:
    for layout, patches, blocks in (
        ("Meta's", "image_encoder.patch_embed.proj.weight", "image_encoder.blocks"),
        ("Hugging Face's", "vision_encoder.patch_embed.projection.weight", "vision_encoder.layers"),
    ):
        if patches not in tensors:
            continue
        if "mask_decoder.hf_token.weight" in tensors:
            return Found("SAM-HQ, whose mask decoder is another")
        size = len(tensors[patches]), _count(tensors, rf"{blocks}\.(\d+)\..*")
        for name in SAM_MODELS:
            cfg = SAMConfig.named(name)
            if size == (cfg.embed_dim, cfg.depth):
                return Found(f"SAM {name} in {layout} layout", "sam", name)
        return Found(f"a SAM of width {size[0]} and depth {size[1]}")
    for name, words in (
        ("image_encoder.trunk.patch_embed.proj.weight", "SAM 2"),
        ("image_encoder.patch_embed.seq.0.c.weight", "MobileSAM"),
    ):
        if name in tensors:
            return Found(f"{words}, which is another network than SAM")
    return None


def _resnet(tensors: Tensors) -> Found | None:
    if "layer1.0.conv1.weight" not in tensors:
        return None
    blocks = tuple(_count(tensors, rf"layer{i}\.(\d+)\..*") for i in range(1, 5))
    if "layer1.0.conv3.weight" not in tensors:
        return Found(f"a ResNet of {sum(blocks)} basic blocks")
    conv2 = tensors.get("layer1.0.conv2.weight")
    if conv2 is None or conv2.shape != (64, 64, 3, 3):
        return Found("a wide, grouped or other variant of ResNet")
    name = RESNET_BLOCKS.get(blocks)
    stem = tensors.get("conv1.weight", tensors.get("layer0.0.weight"))
    if name is None or stem is None:
        return Found(f"a ResNet of {blocks} blocks{' without a stem' if stem is None else ''}")
    architecture = name.replace("ResNet-", "resnet")
    if stem.shape[2:] == (7, 7):
        words = f"torchvision's {name} (one 7x7 convolution in its stem)"
        architecture += "_torchvision"
    else:
        words = f"the deep-stem {name} (three 3x3 convolutions in its stem)"
    return Found(words, "backbone", architecture) if architecture in BACKBONES else Found(words)


def _vgg(tensors: Tensors) -> Found | None:
    names = [
        name
        for name in tensors
        if re.fullmatch(r"(features|layer[0-4])\.\d+\.weight", name)
        and tensors[name].shape[2:] == (3, 3)
    ]
    name = VGG_CONVS.get(len(names))
    if name is None:
        return None
    norm = any(re.fullmatch(r"(features|layer[0-4])\.\d+\.running_var", x) for x in tensors)
    words = f"{name} {'with' if norm else 'without'} batch norm"
    if name != "VGG-16":
        return Found(words)
    return Found(words, "backbone", "vgg16_bn" if norm else "vgg16")


def _dinov2(tensors: Tensors) -> Found | None:
    scale, where, hugging_face = "blocks.0.ls1.gamma", "", ""
    if "encoder.layer.0.layer_scale1.lambda1" in tensors:
        scale, where = "encoder.layer.0.layer_scale1.lambda1", "embeddings."
        hugging_face = " in Hugging Face's layout"
    elif any(name.endswith("layer.0.layer_scale1.lambda1") for name in tensors):
        return Found("a network on top of DINOv2, or DINOv3, in Hugging Face's layout")
    elif "blocks.0.attn.qkv.weight" not in tensors:
        return None
    elif scale not in tensors:
        return Found("a ViT without layer scale, such as DINO's or MAE's")
    width = len(tensors[scale])
    name = words = f"dinov2_{DINOV2_WIDTHS.get(width, f'of width {width}')}"
    if f"{where}register_tokens" in tensors:
        name, words = f"{name}_reg", f"{words} with registers"
    words += hugging_face
    return Found(words, "backbone", name) if name in BACKBONES else Found(words)


def _efficientnet(tensors: Tensors) -> Found | None:
    if "_blocks.0._depthwise_conv.weight" not in tensors:
        if "blocks.0.0.conv_dw.weight" in tensors:
            return Found("an EfficientNet in timm's layout")
        return None
    blocks = _count(tensors, r"_blocks\.(\d+)\..*")
    if any("._se_reduce." in name for name in tensors):
        return Found(f"an EfficientNet of {blocks} blocks with squeeze and excitation, not Lite")
    stem = tensors.get("_conv_stem.weight", ())
    if (blocks, len(stem)) != (16, 32):
        return Found(f"an EfficientNet-Lite of {blocks} blocks")
    return Found("EfficientNet-Lite0", "backbone", "efficientnet_lite0")


def _prompt_encoder(tensors: Tensors) -> Found | None:
    if "transformer_decoder.supp_q_feat.weight" not in tensors:
        return None
    return Found("VRP-SAM's prompt encoder", "prompt_encoder")


def _count(tensors: Tensors, pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.fullmatch(pattern, name))})
