"""This library's side of the benchmarks; it does not import PyTorch."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from benchmarks import measure
from benchmarks.measure import CALLS
from prosam_jax.weights import files


def load(build: Callable[[nnx.Rngs], Any], path: str) -> Any:
    """The module that `build` makes, with the arrays that `converted.write` wrote."""
    with safetensors.safe_open(path, "np") as file:
        return files.fill(files.abstract(build), file.get_tensor)


def peak() -> int:
    """Peak bytes so far, of the process or on the GPU."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else measure.process_peak()


def planned(compiled: Any) -> int:
    """Bytes that a compiled function takes: arguments, results and all in between."""
    plan = compiled.memory_analysis()
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return held + plan.temp_size_in_bytes


class Forward:
    """A compiled forward pass on fixed images.

    Args:
        function: Takes the module and images (b, H, W, 3), returns one map or several.
        module: The module.
        images: The images.
        dtype: Type of the activations. float32 products have full precision, as in PyTorch.
    """

    def __init__(
        self, function: Callable[..., Any], module: nnx.Module, images: np.ndarray, dtype: str
    ):
        if dtype == "float32":
            jax.config.update("jax_default_matmul_precision", "highest")
        self.arguments = module, jnp.asarray(images)
        start = time.perf_counter()
        self.function = jax.jit(function).lower(*self.arguments).compile()
        self.compile_seconds = time.perf_counter() - start
        self.device = jax.default_backend()

    def outputs(self) -> list[np.ndarray]:
        """The maps in float32."""
        return [np.asarray(x, np.float32) for x in jax.tree.leaves(self.function(*self.arguments))]

    def timing(self) -> measure.Timing:
        """Time of a forward pass."""
        return measure.timed(
            lambda: jax.block_until_ready(self.function(*self.arguments)), CALLS[self.device]
        )

    def peak(self) -> int:
        """Peak bytes, of the process, or of parameters and a pass on the GPU."""
        return peak() if self.device == "cpu" else planned(self.function)

    def compiling(self) -> float:
        """Seconds that tracing and compiling took."""
        return self.compile_seconds
