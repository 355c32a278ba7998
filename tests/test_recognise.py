import functools

import numpy as np
import pytest
import torch
from conftest import told
from sam_pairs import published_shapes

from prosam_jax.convert.recognise import recognise, require
from prosam_jax.errors import UserError
from torch_models import dinov2, resnet, vgg


def _tensors(shapes):
    """Names and shapes are all that is looked at: one number stands for each tensor."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@functools.cache
def _shapes(build):
    with torch.device("meta"):
        module = build()
    return {name: tuple(x.shape) for name, x in module.state_dict().items()}


def _resnet(blocks=(3, 4, 6, 3), deep_stem=True):
    return _shapes(lambda: resnet.ResNet(blocks, deep_stem))


VRP_STEM = {"conv1": "layer0.0", "conv2": "layer0.3", "conv3": "layer0.6"}
VRP_SAM = {
    **{VRP_STEM.get(n.split(".")[0], n.split(".")[0]) + n[n.index(".") :]: s
       for n, s in _resnet().items()},
    "transformer_decoder.supp_q_feat.weight": (50, 256),
}  # fmt: skip
HEADS = {"mask_decoder.hf_token.weight": (1, 256)}
SAM_B = published_shapes("vit_b")
VITB = _shapes(lambda: dinov2.DINOv2(768, 12, 12))
VITL = _shapes(lambda: dinov2.DINOv2(1024, 24, 16))
LITE = {"_conv_stem.weight": (32, 3, 3, 3)} | {
    f"_blocks.{i}._depthwise_conv.weight": (32, 1, 3, 3) for i in range(16)
}

KNOWN = [
    ("SAM vit_b in Meta's layout", SAM_B, "sam", "vit_b"),
    (
        "SAM vit_b in Hugging Face's layout",
        {"vision_encoder.patch_embed.projection.weight": (768, 3, 16, 16)}
        | {f"vision_encoder.layers.{i}.layer_norm1.weight": (768,) for i in range(12)},
        "sam",
        "vit_b",
    ),
    (
        "the deep-stem ResNet-50 (three 3x3 convolutions in its stem)",
        _resnet(),
        "backbone",
        "resnet50",
    ),
    (
        "torchvision's ResNet-101 (one 7x7 convolution in its stem)",
        _resnet((3, 4, 23, 3), deep_stem=False),
        "backbone",
        "resnet101_torchvision",
    ),
    ("VGG-16 without batch norm", _shapes(lambda: vgg.VGG(False)), "backbone", "vgg16"),
    ("VGG-16 with batch norm", _shapes(lambda: vgg.VGG(True)), "backbone", "vgg16_bn"),
    ("dinov2_vits14", _shapes(lambda: dinov2.DINOv2(384, 12, 6)), "backbone", "dinov2_vits14"),
    ("dinov2_vitb14", VITB, "backbone", "dinov2_vitb14"),
    ("dinov2_vitl14", VITL, "backbone", "dinov2_vitl14"),
    (
        "dinov2_vitl14 with registers",
        VITL | {"register_tokens": (1, 4, 1024)},
        "backbone",
        "dinov2_vitl14_reg",
    ),
    (
        "dinov2_vitb14 in Hugging Face's layout",
        {"encoder.layer.0.layer_scale1.lambda1": (768,)},
        "backbone",
        "dinov2_vitb14",
    ),
    (
        "dinov2_vitl14 with registers in Hugging Face's layout",
        {
            "encoder.layer.0.layer_scale1.lambda1": (1024,),
            "embeddings.register_tokens": (1, 4, 1024),
        },
        "backbone",
        "dinov2_vitl14_reg",
    ),
    ("EfficientNet-Lite0", LITE, "backbone", "efficientnet_lite0"),
]
UNKNOWN = [
    ("SAM-HQ, whose mask decoder is another", SAM_B | HEADS),
    ("SAM 2, which is another network than SAM",
     {"image_encoder.trunk.patch_embed.proj.weight": (112, 3, 7, 7)}),
    ("MobileSAM, which is another network than SAM",
     {"image_encoder.patch_embed.seq.0.c.weight": (32, 3, 3, 3)}),
    ("a SAM of width 768 and depth 2", {
        n: s for n, s in SAM_B.items()
        if not n.startswith("image_encoder.blocks") or n.split(".")[2] in "01"
    }),
    ("the deep-stem ResNet-152 (three 3x3 convolutions in its stem)", _resnet((3, 8, 36, 3))),
    ("a ResNet of (3, 4, 5, 3) blocks", _resnet((3, 4, 5, 3))),
    ("a ResNet of 8 basic blocks",
     {f"layer{i}.{j}.conv1.weight": (64, 64, 3, 3) for i in range(1, 5) for j in range(2)}),
    ("a wide, grouped or other variant of ResNet",
     _resnet() | {"layer1.0.conv2.weight": (128, 128, 3, 3)}),
    ("VGG-19 without batch norm", {f"features.{i}.weight": (64, 64, 3, 3) for i in range(16)}),
    ("dinov2_vitb14 with registers", VITB | {"register_tokens": (1, 4, 768)}),
    ("dinov2_vitg14", VITB | {"blocks.0.ls1.gamma": (1536,)}),
    ("a network on top of DINOv2, or DINOv3, in Hugging Face's layout",
     {"layer.0.layer_scale1.lambda1": (768,)}),
    ("a ViT without layer scale, such as DINO's or MAE's",
     {"blocks.0.attn.qkv.weight": (2304, 768)}),
    ("an EfficientNet-Lite of 18 blocks",
     LITE | {f"_blocks.{i}._bn1.bias": (32,) for i in (16, 17)}),
    ("an EfficientNet of 16 blocks with squeeze and excitation, not Lite",
     LITE | {"_blocks.0._se_reduce.weight": (8, 32, 1, 1)}),
    ("a wide, grouped or other variant of ResNet", {
        f"layer{i}.0.conv{j}.weight": (64, 64, 3, 3) for i in range(1, 5) for j in (1, 3)
    }),
    ("an EfficientNet in timm's layout", {"blocks.0.0.conv_dw.weight": (32, 1, 3, 3)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "shapes", "kind", "architecture"), KNOWN, ids=[x[3] + " " + x[0][:12] for x in KNOWN]
)
def test_networks_of_the_library_are_recognised(words, shapes, kind, architecture):
    tensors = _tensors(shapes)
    assert recognise(tensors) == [(words, kind, architecture)]
    require("a.pth", tensors, kind, architecture)
    require("a.pth", tensors, kind, "")


def _refused(shapes, kind, architecture, *words):
    with pytest.raises(UserError) as error:
        require("a.pth", _tensors(shapes), kind, architecture)
    told(error, "a.pth", architecture, *words)


@pytest.mark.parametrize(
    ("words", "shapes"), UNKNOWN, ids=[f"{i} {x[0][:40]}" for i, x in enumerate(UNKNOWN)]
)
def test_relatives_are_named_and_refused(words, shapes):
    assert recognise(_tensors(shapes)) == [(words, "", "")]
    _refused(shapes, "backbone", "vgg16", words, "vgg16-397923af.pth")


def test_vrp_sam_holds_two_networks():
    tensors = _tensors(VRP_SAM)
    assert [(x.kind, x.architecture) for x in recognise(tensors)] == [
        ("backbone", "resnet50"),
        ("prompt_encoder", ""),
    ]
    require("vrp.pt", tensors, "backbone", "resnet50")
    require("vrp.pt", tensors, "prompt_encoder", "")


def test_the_other_stem_is_explained_both_ways():
    words = "torchvision", "7x7", "--model resnet50_torchvision", "resnet50_v2.pth"
    _refused(_resnet(deep_stem=False), "backbone", "resnet50", *words)
    words = "3x3", "--model resnet50,", "resnet50-0676ba61.pth"
    _refused(_resnet(), "backbone", "resnet50_torchvision", *words)


def test_another_kind_gets_its_command():
    command = "prosam weights convert sam --model vit_b"
    _refused(SAM_B, "backbone", "vgg16", command, "vgg16-397923af.pth")
    command = "prosam weights convert backbone --model resnet50"
    _refused(_resnet(), "sam", "vit_b", command, "sam_vit_b_01ec64.pth")


def test_nothing_known_shows_some_names():
    shapes = {f"head.{i}.weight": (3,) for i in range(9)}
    _refused(shapes, "backbone", "vgg16", "head.0.weight, head.1.weight", "vgg16-397923af.pth")
