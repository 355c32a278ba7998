"""The names that settings can have as values."""

import typing
from typing import Literal

SAMModel = Literal["vit_b", "vit_l", "vit_h", "shapes", "tiny"]
DType = Literal["float32", "bfloat16"]
Attention = Literal["auto", "plain", "cudnn"]
Backbone = Literal[
    "resnet50",
    "resnet101",
    "resnet50_torchvision",
    "resnet101_torchvision",
    "vgg16",
    "vgg16_bn",
    "dinov2_vits14",
    "dinov2_vitb14",
    "dinov2_vitl14",
    "dinov2_vitl14_reg",
    "efficientnet_lite0",
    "shapes",
    "tiny",
]
Distribution = Literal["vrp", "vrp_2linear", "gaussian", "student_t", "t3vae"]
Scale = Literal["absolute", "relative", "fixed"]
Objective = Literal["monte_carlo", "laplacian"]
Draws = Literal["independent", "antithetic", "stratified"]
Dataset = Literal["pascal", "coco", "fss", "shapes", "folder"]
Annotation = Literal["mask", "box", "scribble", "point"]
CacheDType = Literal["float32", "bfloat16", "int8"]

SAM_MODELS: tuple[str, ...] = typing.get_args(SAMModel)
DTYPES: tuple[str, ...] = typing.get_args(DType)
ATTENTIONS: tuple[str, ...] = typing.get_args(Attention)
BACKBONES: tuple[str, ...] = typing.get_args(Backbone)
DISTRIBUTIONS: tuple[str, ...] = typing.get_args(Distribution)
DRAWS: tuple[str, ...] = typing.get_args(Draws)
DATASETS: tuple[str, ...] = typing.get_args(Dataset)
ANNOTATIONS: tuple[str, ...] = typing.get_args(Annotation)
CACHE_DTYPES: tuple[str, ...] = typing.get_args(CacheDType)

RANDOM = "random"
"""Value of a `weights` setting: weights drawn from the seed."""

HUB = "hub"
"""Value of a `weights` setting: published weights of a hub, fetched when they are first needed."""

SAMS_ON_HUB: tuple[str, ...] = ("vit_b", "vit_l", "vit_h")
BACKBONES_ON_HUB: tuple[str, ...] = (
    "resnet50_torchvision",
    "resnet101_torchvision",
    "vgg16",
    "vgg16_bn",
    "dinov2_vits14",
    "dinov2_vitb14",
    "dinov2_vitl14",
    "dinov2_vitl14_reg",
)

PACKAGED = "packaged"
"""Value of a `weights` setting: the weight file that comes with the package."""
