"""What differs between processors, in one place: nothing else asks which one there is."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
from jax.typing import DTypeLike

T = TypeVar("T")

SCORES = {"cpu": 2**20, "default": 2**28}
"""Attention scores held at a time: 4 MiB, to stay in a CPU's caches; elsewhere 1 GiB, so that all
windows of a batch of 16, or all heads of a whole map, are one call."""

SAMPLES = 2
"""Samples of Eq. 10 decoded at a time on a CPU, where more are slower. Elsewhere it is all."""


def by_platform(function: Callable[..., T], *arrays: object, **values: Mapping[str, object]) -> T:
    """Calls `function` with keyword values that depend on where it will run.

    The choice is made when the call is lowered, so it is also right in a function that is exported
    for another processor.

    Args:
        function: Arrays -> arrays.
        arrays: Its positional arguments, pytrees.
        values: For each keyword, the value on a "cpu" and by "default".
    """
    cpu, default = ({name: x[key] for name, x in values.items()} for key in ("cpu", "default"))
    return jax.lax.platform_dependent(
        *arrays,
        cpu=lambda *x: function(*x, **cpu),
        default=lambda *x: function(*x, **default),
    )


def samples_at_once(samples: int) -> int:
    """How many of `samples` are decoded together if no setting says so."""
    return min(SAMPLES, samples) if jax.default_backend() == "cpu" else samples


def has_fused_attention(dtype: DTypeLike) -> bool:
    """Whether cuDNN's attention runs here with 208 channels, those of SAM's ViT-H.

    It needs half precision, and for more than 128 channels Hopper or a newer GPU
    (`jax.nn.dot_product_attention`).
    """
    if jax.numpy.dtype(dtype).itemsize != 2 or jax.default_backend() != "gpu":
        return False
    capability = getattr(jax.local_devices()[0], "compute_capability", "0")
    return "." in capability and float(capability) >= 9.0  # AMD's are names


def matmul(
    dtype: str, size: int = 4096, count: int = 1, precision: str | None = None
) -> Callable[[], float]:
    """What measures the operations per second of products of square matrices, a practical peak.

    Args:
        dtype: Type of the matrices and of the result.
        size: Their side.
        count: Products in a row; more than one if launching takes long compared with a product.
        precision: As of `jax.numpy.matmul`; None is the default, which is TF32 for float32 on an
            NVIDIA GPU.
    """

    @jax.jit
    def products(a, b):
        return functools.reduce(
            lambda x, _: jax.numpy.matmul(x, b, precision=precision), range(count), a
        )

    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    b = a / size**0.5  # keeps the scale of the products

    def rate() -> float:
        start = time.perf_counter()
        jax.block_until_ready(products(a, b))
        return 2 * count * size**3 / (time.perf_counter() - start)

    rate()  # compiles
    return rate
