"""Reproducible random weights."""

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def draw(module: Module, seed: int, *, gain: float = 1.0) -> Module:
    """Fills a module with random weights and sets it to eval mode, without gradients.

    Args:
        module: The module, changed in place.
        seed: The same seed gives the same numbers.
        gain: Kernels are N(0, gain / fan_in). 1 keeps features from growing along shortcuts; 2
            makes up for ReLUs in networks without shortcuts.

    Returns:
        The module itself.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.copy_(noise * (gain / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.copy_(1 + 0.1 * noise.abs())
        elif name.endswith("weight"):
            tensor.copy_(1 + 0.1 * noise)
        else:
            tensor.copy_(0.1 * noise)
    return module.eval().requires_grad_(False)
