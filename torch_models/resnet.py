"""ResNet in plain PyTorch, dilated to stride 8, with the published checkpoints' names.

`resnet50` and `resnet101` name their tensors as in semseg's resnet50_v2.pth and resnet101_v2.pth,
the other two as in torchvision's files. The classifier is left out.
"""

import torch
from torch import nn

from torch_models.random_weights import draw


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; stride and dilation are the 3x3's."""

    def __init__(self, in_dim: int, width: int, stride: int, dilation: int):
        super().__init__()
        out_dim = 4 * width
        self.conv1 = nn.Conv2d(in_dim, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_dim, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_dim)
        self.downsample = None
        if in_dim != out_dim or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_dim, out_dim, 1, stride, bias=False), nn.BatchNorm2d(out_dim)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds the residual branch to the shortcut."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return (y + shortcut).relu()


class ResNet(nn.Module):
    """The network; calling it gives the features of `prosam_jax.backbone.target_taps`, in NCHW."""

    def __init__(self, blocks: tuple[int, int, int, int], deep_stem: bool):
        super().__init__()
        self.deep_stem = deep_stem
        if deep_stem:
            self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.conv2 = nn.Conv2d(64, 64, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(64)
            self.conv3 = nn.Conv2d(64, 128, 3, 1, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(128)
        else:
            self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(128 if deep_stem else 64, 64, blocks[0])
        self.layer2 = _stage(256, 128, blocks[1], stride=2)
        self.layer3 = _stage(512, 256, blocks[2], dilations=(1, 2))
        self.layer4 = _stage(1024, 512, blocks[3], dilations=(2, 4))

    def trunk(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images -> (layers 2 and 3 concatenated, layer 3)."""
        x = self.bn1(self.conv1(images)).relu()
        if self.deep_stem:
            x = self.bn2(self.conv2(x)).relu()
            x = self.bn3(self.conv3(x)).relu()
        layer2 = self.layer2(self.layer1(self.maxpool(x)))
        layer3 = self.layer3(layer2)
        return torch.cat([layer2, layer3], dim=1), layer3

    def tail(self, layer3: torch.Tensor) -> torch.Tensor:
        """Layer 4."""
        return self.layer4(layer3)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images -> (layers 2 and 3 concatenated, layer 4)."""
        merged, layer3 = self.trunk(images)
        return merged, self.tail(layer3)


def resnet50(seed: int) -> ResNet:
    """With the deep stem; random weights, as in the three below."""
    return draw(ResNet((3, 4, 6, 3), deep_stem=True), seed)


def resnet101(seed: int) -> ResNet:
    """With the deep stem."""
    return draw(ResNet((3, 4, 23, 3), deep_stem=True), seed)


def resnet50_torchvision(seed: int) -> ResNet:
    """With torchvision's stem."""
    return draw(ResNet((3, 4, 6, 3), deep_stem=False), seed)


def resnet101_torchvision(seed: int) -> ResNet:
    """With torchvision's stem."""
    return draw(ResNet((3, 4, 23, 3), deep_stem=False), seed)


def _stage(
    in_dim: int, width: int, blocks: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)
) -> nn.Sequential:
    first = Bottleneck(in_dim, width, stride, dilations[0])
    rest = [Bottleneck(4 * width, width, 1, dilations[1]) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
