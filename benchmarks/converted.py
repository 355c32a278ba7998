"""Writes PyTorch's weights to a file that this library's process reads without PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from prosam_jax.convert import engine
from prosam_jax.weights import files


def write(
    twin: torch.nn.Module,
    build: Callable[..., Any],
    rules: Sequence[engine.Rule],
    ignored: Sequence[engine.Ignored],
    file: str,
) -> None:
    """Converts the arrays of the module that `build` makes, and writes them."""
    source = {name: tensor.numpy() for name, tensor in twin.state_dict().items()}
    specs = files.leaves(files.abstract(build))
    arrays = engine.convert(source, rules, ignored, specs)
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, file)
