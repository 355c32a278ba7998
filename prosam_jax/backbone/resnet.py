"""ResNet dilated to stride 8, as a frozen backbone.

`resnet50` and `resnet101` are the networks of semseg's and PFENet's `resnet50_v2` and
`resnet101_v2` checkpoints, which VRP-SAM uses: the stem is deep, three 3x3 convolutions.
`resnet50_torchvision` and `resnet101_torchvision` have torchvision's stem, a single 7x7.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import layers


class ConvBN(nnx.Module):
    """A convolution without bias and its batch norm."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        rngs: nnx.Rngs,
    ):
        self.conv = layers.conv(
            in_dim,
            out_dim,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            use_bias=False,
            kernel_init=layers.kaiming_kernel,
            dtype=jnp.float32,
            rngs=rngs,
        )
        self.bn = layers.FrozenBatchNorm(out_dim)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        """Convolves and normalises."""
        return self.bn(self.conv(x))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 with a shortcut; stride and dilation are the 3x3's."""

    def __init__(
        self, in_dim: int, width: int, *, stride: int = 1, dilation: int = 1, rngs: nnx.Rngs
    ):
        self.conv1 = ConvBN(in_dim, width, 1, rngs=rngs)
        self.conv2 = ConvBN(width, width, 3, stride=stride, dilation=dilation, rngs=rngs)
        self.conv3 = ConvBN(width, 4 * width, 1, rngs=rngs)
        changes_shape = in_dim != 4 * width or stride != 1
        self.downsample = nnx.data(
            ConvBN(in_dim, 4 * width, 1, stride=stride, rngs=rngs) if changes_shape else None
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        """Adds the residual branch to the shortcut."""
        y = jax.nn.relu(self.conv1(x))
        y = jax.nn.relu(self.conv2(y))
        y = self.conv3(y)
        shortcut = x if self.downsample is None else self.downsample(x)
        return jax.nn.relu(y + shortcut)


class ResNet(nnx.Module):
    """ResNet of bottlenecks whose layers 2, 3 and 4 all have stride 8.

    Stages 3 and 4 are dilated as in torchvision: the first block keeps the previous stage's
    dilation, the others double it.

    Attributes:
        merged_channels: Channels of layers 2 and 3 together.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        width: int,
        *,
        deep_stem: bool = True,
        rngs: nnx.Rngs,
    ):
        w = width
        if deep_stem:
            stem = [
                ConvBN(3, w, 3, stride=2, rngs=rngs),
                ConvBN(w, w, 3, rngs=rngs),
                ConvBN(w, 2 * w, 3, rngs=rngs),
            ]
        else:
            stem = [ConvBN(3, w, 7, stride=2, rngs=rngs)]
        self.stem = nnx.List(stem)
        self.layer1 = _stage(2 * w if deep_stem else w, w, blocks[0], rngs=rngs)
        self.layer2 = _stage(4 * w, 2 * w, blocks[1], stride=2, rngs=rngs)
        self.layer3 = _stage(8 * w, 4 * w, blocks[2], dilations=(1, 2), rngs=rngs)
        self.layer4 = _stage(16 * w, 8 * w, blocks[3], dilations=(2, 4), rngs=rngs)
        self.merged_channels = 24 * w

    def trunk(
        self, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w d"]]:
        """Normalised images -> (layers 2 and 3 concatenated, input of `tail`)."""
        x = self.layer0(images)
        x = _run(self.layer1, x)
        layer2 = _run(self.layer2, x)
        layer3 = _run(self.layer3, layer2)
        return jnp.concatenate([layer2, layer3], axis=-1), layer3

    def tail(self, layer3: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        """Layer 4, the high-level features that make the pseudo mask."""
        return _run(self.layer4, layer3)

    def layer0(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """The stem and its max pool, stride 4."""
        x = images
        for block in self.stem:
            x = jax.nn.relu(block(x))
        # Padding with 0 does not change the maximum: values after a ReLU are at least 0.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nnx.max_pool(x, (3, 3), strides=(2, 2))


def resnet50(*, rngs: nnx.Rngs) -> ResNet:
    """The paper's backbone; 1,536 merged channels, like the three below."""
    return ResNet((3, 4, 6, 3), 64, rngs=rngs)


def resnet101(*, rngs: nnx.Rngs) -> ResNet:
    """`resnet50` with 17 more blocks in stage 3."""
    return ResNet((3, 4, 23, 3), 64, rngs=rngs)


def resnet50_torchvision(*, rngs: nnx.Rngs) -> ResNet:
    """ResNet-50 of torchvision with `replace_stride_with_dilation=[False, True, True]`."""
    return ResNet((3, 4, 6, 3), 64, deep_stem=False, rngs=rngs)


def resnet101_torchvision(*, rngs: nnx.Rngs) -> ResNet:
    """ResNet-101 of torchvision with `replace_stride_with_dilation=[False, True, True]`."""
    return ResNet((3, 4, 23, 3), 64, deep_stem=False, rngs=rngs)


def shapes(*, rngs: nnx.Rngs) -> ResNet:
    """A narrow ResNet for pictures like those of Shapes-5i; 384 merged channels."""
    return ResNet((1, 1, 2, 1), 16, rngs=rngs)


def tiny(*, rngs: nnx.Rngs) -> ResNet:
    """One narrow block per stage, for tests and trials."""
    return ResNet((1, 1, 1, 1), 8, rngs=rngs)


def _stage(
    in_dim: int,
    width: int,
    blocks: int,
    *,
    stride: int = 1,
    dilations: tuple[int, int] = (1, 1),
    rngs: nnx.Rngs,
) -> nnx.List:
    first = Bottleneck(in_dim, width, stride=stride, dilation=dilations[0], rngs=rngs)
    rest = [
        Bottleneck(4 * width, width, dilation=dilations[1], rngs=rngs) for _ in range(blocks - 1)
    ]
    return nnx.List([first, *rest])


def _run(stage: nnx.List, x: Array) -> Array:
    for block in stage:
        x = block(x)
    return x
