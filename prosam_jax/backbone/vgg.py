"""VGG-16 as a frozen backbone (arXiv 1409.1556), cut as in PFENet and VRP-SAM.

Each of the five stages but the last ends with a max pool. Layer 2 has stride 8 and is resized to
stride 16, that of layers 3 and 4. VRP-SAM uses `vgg16_bn`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import layers, resize


class Conv(nnx.Module):
    """A 3x3 convolution with bias, its batch norm if there is one, and a ReLU."""

    def __init__(self, in_dim: int, out_dim: int, *, batch_norm: bool, rngs: nnx.Rngs):
        self.conv = layers.conv(
            in_dim,
            out_dim,
            3,
            padding=1,
            kernel_init=layers.kaiming_kernel,
            dtype=jnp.float32,
            rngs=rngs,
        )
        self.bn = nnx.data(layers.FrozenBatchNorm(out_dim) if batch_norm else None)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Convolves, normalises and applies the ReLU."""
        x = self.conv(x)
        return jax.nn.relu(x if self.bn is None else self.bn(x))


class Stage(nnx.Module):
    """Convolutions at one size, then a max pool that halves it, if `pool`."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        depth: int,
        *,
        pool: bool = True,
        batch_norm: bool,
        rngs: nnx.Rngs,
    ):
        dims = [in_dim] + [out_dim] * depth
        self.convs = nnx.List(
            [
                Conv(before, after, batch_norm=batch_norm, rngs=rngs)
                for before, after in itertools.pairwise(dims)
            ]
        )
        self.pool = pool

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        """Odd sizes are rounded up: the last row or column is pooled alone (torch's ceil mode)."""
        for conv in self.convs:
            x = conv(x)
        return nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME") if self.pool else x


class VGG(nnx.Module):
    """The convolutions of VGG-16.

    Attributes:
        merged_channels: Channels of layers 2 and 3 together.
    """

    merged_channels = 256 + 512

    def __init__(self, *, batch_norm: bool, rngs: nnx.Rngs):
        make = functools.partial(Stage, batch_norm=batch_norm, rngs=rngs)
        self.layer0 = make(3, 64, 2)
        self.layer1 = make(64, 128, 2)
        self.layer2 = make(128, 256, 3)
        self.layer3 = make(256, 512, 3)
        self.layer4 = make(512, 512, 3, pool=False)

    def trunk(
        self, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w d"]]:
        """Normalised images -> (layers 2 and 3 concatenated, input of `tail`), both stride 16."""
        layer2 = self.layer2(self.layer1(self.layer0(images)))
        layer3 = self.layer3(layer2)
        _, h, w, _ = layer3.shape
        resized = resize.bilinear(layer2, (h, w), align_corners=True)
        return jnp.concatenate([resized, layer3], axis=-1), layer3

    def tail(self, layer3: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Layer 4, the high-level features that make the pseudo mask."""
        return self.layer4(layer3)


def vgg16(*, rngs: nnx.Rngs) -> VGG:
    """VGG-16 without batch norm; 768 merged channels."""
    return VGG(batch_norm=False, rngs=rngs)


def vgg16_bn(*, rngs: nnx.Rngs) -> VGG:
    """VGG-16 with batch norm, VRP-SAM's; 768 merged channels."""
    return VGG(batch_norm=True, rngs=rngs)
