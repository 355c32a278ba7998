"""VGG-16 in plain PyTorch with torchvision's names, cut as in PFENet and VRP-SAM.

torchvision's last pool and its classifier are left out; its pools round sizes down, these round up.
"""

import torch
from torch import nn
from torch.nn import functional as F

from torch_models.random_weights import draw

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """The network; calling it gives the features of `prosam_jax.backbone.target_taps`, in NCHW."""

    def __init__(self, batch_norm: bool):
        super().__init__()
        modules: list[nn.Module] = []
        ends = []
        in_dim = 3
        for widths in STAGES:
            for width in widths:
                modules.append(nn.Conv2d(in_dim, width, 3, padding=1))
                if batch_norm:
                    modules.append(nn.BatchNorm2d(width))
                modules.append(nn.ReLU())
                in_dim = width
            modules.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            ends.append(len(modules))
        self.features = nn.Sequential(*modules[:-1])
        self.layer2_end, self.layer3_end = ends[2:4]

    def trunk(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images -> (layers 2 and 3 concatenated, layer 3)."""
        layer2 = self.features[: self.layer2_end](images)
        layer3 = self.features[self.layer2_end : self.layer3_end](layer2)
        resized = F.interpolate(layer2, layer3.shape[2:], mode="bilinear", align_corners=True)
        return torch.cat([resized, layer3], dim=1), layer3

    def tail(self, layer3: torch.Tensor) -> torch.Tensor:
        """Layer 4."""
        return self.features[self.layer3_end :](layer3)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images -> (layers 2 and 3 concatenated, layer 4)."""
        merged, layer3 = self.trunk(images)
        return merged, self.tail(layer3)


def vgg16(seed: int) -> VGG:
    """Without batch norm; random weights."""
    return draw(VGG(batch_norm=False), seed, gain=2.0)


def vgg16_bn(seed: int) -> VGG:
    """With batch norm; random weights."""
    return draw(VGG(batch_norm=True), seed, gain=2.0)
