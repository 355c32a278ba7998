"""Layers that behave like torch's; every default that differs from flax's is set here."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's start of linear and convolution kernels.
torch_kernel = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# torchvision's initialisation of convolutions before a ReLU; it keeps the size of features.
kaiming_kernel = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_bias(fan_in: int) -> nnx.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's start of linear and convolution biases."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(
    in_dim: int,
    out_dim: int,
    *,
    use_bias: bool = True,
    kernel_init: nnx.Initializer = torch_kernel,
    bias_init: nnx.Initializer | None = None,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """`torch.nn.Linear`, kernel (in, out)."""
    return nnx.Linear(
        in_dim,
        out_dim,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init or torch_bias(in_dim),
        dtype=dtype,
        rngs=rngs,
    )


def conv(
    in_dim: int,
    out_dim: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    use_bias: bool = True,
    kernel_init: nnx.Initializer = torch_kernel,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """`torch.nn.Conv2d`, kernel (h, w, in, out): torch's symmetric padding, or XLA's "SAME"."""
    pointwise = kernel_size == 1 and padding in (0, "SAME")
    return nnx.Conv(
        in_dim,
        out_dim,
        (kernel_size, kernel_size),
        strides=stride,
        padding=padding if isinstance(padding, str) else ((padding, padding), (padding, padding)),
        kernel_dilation=dilation,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=torch_bias(in_dim * kernel_size**2),
        conv_general_dilated=_pointwise if pointwise else jax.lax.conv_general_dilated,
        dtype=dtype,
        rngs=rngs,
    )


def _pointwise(
    x: Array, kernel: Array, strides: tuple[int, int], padding: object, *, precision: Any, **_: Any
) -> Array:
    """A 1 x 1 convolution as a product of matrices: on a CPU, half the time of a convolution."""
    x = x[:, :: strides[0], :: strides[1]]
    return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0], precision=precision)


def layer_norm(dim: int, eps: float, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """`torch.nn.LayerNorm`; on NHWC maps also SAM's `LayerNorm2d`.

    torch computes the variance in two passes; flax's fast variance is inaccurate when it is small.
    """
    return nnx.LayerNorm(dim, epsilon=eps, use_fast_variance=False, dtype=dtype, rngs=rngs)


class FrozenBatchNorm(nnx.Module):
    """`torch.nn.BatchNorm2d` in eval mode: an affine map of each channel."""

    def __init__(self, channels: int, eps: float = 1e-5):
        self.weight = nnx.Param(jnp.ones((channels,)))
        self.bias = nnx.Param(jnp.zeros((channels,)))
        self.running_mean = nnx.BatchStat(jnp.zeros((channels,)))
        self.running_var = nnx.BatchStat(jnp.ones((channels,)))
        self.eps = eps

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalises with the stored statistics; keeps the type."""
        gain = self.weight[...] * jax.lax.rsqrt(self.running_var[...] + self.eps)
        shift = self.bias[...] - self.running_mean[...] * gain
        return (x * gain.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)).astype(x.dtype)


def gelu(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """The exact GELU, torch's default.

    Written with `erf`, as in torch: `jax.nn.gelu`'s `erfc` took twice the time on a CPU with its
    gradient.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


class ConvTranspose2x2(nnx.Module):
    """`torch.nn.ConvTranspose2d(in, out, kernel_size=2, stride=2)`.

    Kernel size equals stride, so every input pixel makes its own 2 x 2 output pixels, and the
    layer is one matrix product. The kernel is (2, 2, out, in).
    """

    def __init__(self, in_dim: int, out_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        # torch counts the output's channels and pixels as fan-in here.
        init = torch_bias(4 * out_dim)
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, out_dim, in_dim)))
        self.bias = nnx.Param(init(rngs.params(), (out_dim,)))
        self.dtype = dtype

    def cells(self, x: Float[Array, "*b c"]) -> Float[Array, "*b 2 2 d"]:
        """The 2 x 2 output pixels of each input pixel, (row, column)."""
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.einsum("...c,ijdc->...ijd", x.astype(self.dtype), kernel)
        return y + self.bias[...].astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        """Doubles height and width."""
        b, h, w, _ = x.shape
        return jnp.moveaxis(self.cells(x), 3, 2).reshape(b, 2 * h, 2 * w, -1)


def attend(
    q: Float[Array, "b n c"],
    k: Float[Array, "b m c"],
    v: Float[Array, "b m d"],
    num_heads: int,
    key_mask: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b n d"]:
    """Multi-head softmax attention; scores and softmax in float32.

    Keys are left out where `key_mask` is False; at least one must remain.
    """
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1) for x in (q, k, v))
    q = q * q.shape[-1] ** -0.5
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    if key_mask is not None:
        scores = jnp.where(key_mask[:, None, None, :], scores, -jnp.inf)
    # The softmax's division comes after the product, where there is less to divide.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = jnp.swapaxes(weights.sum(-1), 1, 2)[..., None]
    out = jnp.einsum("bhnm,bmhd->bnhd", weights.astype(v.dtype), v) / total
    return out.astype(v.dtype).reshape(*out.shape[:2], -1)


class Attention(nnx.Module):
    """Attention with projections of queries, keys, values and output.

    With `internal_dim` equal to `embed_dim` it is `torch.nn.MultiheadAttention`, with a smaller
    one the downsampled attention of SAM's decoder.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        internal_dim: int | None = None,
        *,
        kernel_init: nnx.Initializer = torch_kernel,
        bias_init: nnx.Initializer | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        internal_dim = internal_dim or embed_dim
        make = functools.partial(
            linear, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs
        )
        self.q_proj = make(embed_dim, internal_dim)
        self.k_proj = make(embed_dim, internal_dim)
        self.v_proj = make(embed_dim, internal_dim)
        self.out_proj = make(internal_dim, embed_dim)
        self.num_heads = num_heads

    def __call__(
        self,
        q: Float[Array, "b n c"],
        k: Float[Array, "b m c"],
        v: Float[Array, "b m c"],
        key_mask: Bool[Array, "b m"] | None = None,
    ) -> Float[Array, "b n c"]:
        """Attends from `q` to `k` (those in `key_mask`) and returns the projected mix of `v`."""
        out = attend(self.q_proj(q), self.k_proj(k), self.v_proj(v), self.num_heads, key_mask)
        return self.out_proj(out)


def channel_dropout(
    x: Float[Array, "b h w c"], rate: float, key: PRNGKeyArray
) -> Float[Array, "b h w c"]:
    """`torch.nn.Dropout2d` in training: whole channels of an image are zeroed or scaled up."""
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1, x.shape[3]))
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def sine_positions(height: int, width: int, dim: int) -> Float[np.ndarray, "h w c"]:
    """Sine positions of DETR as VRP-SAM uses them: `dim / 2` features of y, then of x.

    Pixels are numbered from 1, divided by (size + 1e-6) and scaled to 2 pi; sine and cosine
    interleave over frequencies of temperature 10,000.
    """
    frequency = 10000.0 ** (2 * (np.arange(dim // 2) // 2) / (dim // 2))

    def encode(size: int) -> np.ndarray:
        angle = np.arange(1, size + 1)[:, None] / (size + 1e-6) * 2 * np.pi / frequency
        return np.stack([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=2).reshape(size, -1)

    y = np.broadcast_to(encode(height)[:, None], (height, width, dim // 2))
    x = np.broadcast_to(encode(width)[None], (height, width, dim // 2))
    return np.concatenate([y, x], axis=2).astype(np.float32)
