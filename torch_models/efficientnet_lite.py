"""EfficientNet-Lite0 of `efficientnet-lite-pytorch`, and the same dilated to stride 8."""

from typing import Any

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

from torch_models.random_weights import draw

NAME = "efficientnet-lite0"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Blocks that lose their stride, with the dilation of the first one and of the rest.
DILATIONS = ((5, 8, 1, 2), (8, 11, 2, 2), (11, 15, 2, 4), (15, 16, 4, 4))


def lite0() -> EfficientNet:
    """The classifier; it pads for the input's size, as TensorFlow's does."""
    return EfficientNet.from_name(NAME, image_size=None).eval().requires_grad_(False)


def normalized(pixels: np.ndarray) -> torch.Tensor:
    """RGB of 0-255, (b, h, w, 3), normalised as in TensorFlow's code, (b, 3, h, w)."""
    return (torch.tensor(pixels).permute(0, 3, 1, 2) - 127.0) / 128


def tensorflow_normalized(images: torch.Tensor) -> torch.Tensor:
    """ImageNet's normalisation to TensorFlow's, (b, 3, h, w)."""
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return ((images * std + mean) * 255 - 127) / 128


class DilatedLite0(EfficientNet):
    """The network; calling it gives the features of `prosam_jax.backbone.target_taps`, in NCHW."""

    def forward(self, inputs: torch.Tensor) -> Any:
        """Images in ImageNet's normalisation -> (stages 3 and 5 concatenated, stage 7)."""
        x = self._swish(self._bn0(self._conv_stem(tensorflow_normalized(inputs))))
        outputs: list[Any] = []
        for block in self._blocks:
            x = block(x)
            outputs.append(x)
        return torch.cat([outputs[4], outputs[10]], dim=1), outputs[15]


def dilated_lite0(seed: int) -> DilatedLite0:
    """The backbone with random weights, large enough for ReLU6 to clip on both sides."""
    network = draw(DilatedLite0.from_name(NAME, image_size=None), seed, gain=2.0)
    for start, end, first, rest in DILATIONS:
        for i in range(start, end):
            conv: Any = network._blocks[i]._depthwise_conv
            conv.stride = (1, 1)
            conv.dilation = (first, first) if i == start else (rest, rest)
    return network
