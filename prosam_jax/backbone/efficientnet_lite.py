"""EfficientNet-Lite0 (tensorflow/tpu, models/official/efficientnet/lite) as a frozen backbone.

EfficientNet (arXiv 1905.11946) for mobile processors: no squeeze-and-excitation, and ReLU6. The
attribute names are those of the package efficientnet-lite-pytorch without leading underscores. Its
weights come from TensorFlow, so TensorFlow's rules apply: SAME padding, which XLA has, too, and an
epsilon of 1e-3 in the batch norms.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import layers, resize

NORM_EPS = 1e-3


class Stage(NamedTuple):
    """Consecutive blocks; the stride is that of the first one."""

    kernel_size: int
    stride: int
    expansion: int
    channels: int
    repeats: int


STEM, HEAD, CLASSES = 32, 1280, 1000
STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
# Number of blocks up to the ends of stages 3 and 5.
STAGE3, STAGE5 = 5, 11
# Of the dilated network's features.
STRIDE = 8


class DepthwiseConv(nnx.Module):
    """A convolution of each channel by itself, without bias and with SAME padding.

    Stride and dilation are chosen at the call, because `nnx.Conv` fixes them.
    """

    def __init__(self, channels: int, kernel_size: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (kernel_size, kernel_size, 1, channels)))

    def __call__(
        self, x: Float[Array, "b h w c"], stride: int, dilation: int
    ) -> Float[Array, "b H W c"]:
        """Convolves."""
        return jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (stride, stride),
            "SAME",
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )


class MBConv(nnx.Module):
    """Expansion, depthwise convolution, projection; a shortcut where the channels stay."""

    def __init__(
        self, in_dim: int, out_dim: int, kernel_size: int, expansion: int, *, rngs: nnx.Rngs
    ):
        dim = expansion * in_dim
        if expansion > 1:
            self.expand_conv = _conv(in_dim, dim, 1, rngs=rngs)
            self.bn0 = layers.FrozenBatchNorm(dim, NORM_EPS)
        self.depthwise_conv = DepthwiseConv(dim, kernel_size, rngs=rngs)
        self.bn1 = layers.FrozenBatchNorm(dim, NORM_EPS)
        self.project_conv = _conv(dim, out_dim, 1, rngs=rngs)
        self.bn2 = layers.FrozenBatchNorm(out_dim, NORM_EPS)
        self.expands = expansion > 1

    def __call__(
        self, x: Float[Array, "b h w c"], stride: int, dilation: int
    ) -> Float[Array, "b H W d"]:
        """Applies the block with this stride and dilation of its depthwise convolution."""
        y = jax.nn.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = jax.nn.relu6(self.bn1(self.depthwise_conv(y, stride, dilation)))
        y = self.bn2(self.project_conv(y))
        return x + y if x.shape[-1] == y.shape[-1] else y


class EfficientNetLite(nnx.Module):
    """The published classifier of stride 32, and its blocks dilated to stride 8 as a backbone.

    `stem` brings images from the library's normalisation to TensorFlow's, (pixel - 127) / 128.
    The PyTorch port does not say which normalisation its weights need; its README shows ImageNet's
    mean and deviation for other weights. Of 276 pictures of VOC 2012 whose largest object has
    ImageNet classes, TensorFlow's normalisation puts 218 into one of them, ImageNet's 205, plain
    [0, 1] 202.

    If height and width are multiples of 32, the dilated stages hold the published features
    exactly, at every second (stage 5) and fourth place (stage 7), with others between them. These
    improve the prior: over 51 pairs of 512 x 512 VOC pictures with a class in common, the area
    under its ROC curve for that class is 0.71 with stride 8, and 0.68 with 16 and with 32.

    Attributes:
        merged_channels: Channels of stages 3 and 5 together.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv_stem = _conv(3, STEM, 3, stride=2, rngs=rngs)
        self.bn0 = layers.FrozenBatchNorm(STEM, NORM_EPS)
        blocks, strides, in_dim = [], [], STEM
        for kernel_size, stride, expansion, channels, repeats in STAGES:
            for i in range(repeats):
                blocks.append(MBConv(in_dim, channels, kernel_size, expansion, rngs=rngs))
                strides.append(stride if i == 0 else 1)
                in_dim = channels
        self.blocks = nnx.List(blocks)
        self.conv_head = _conv(in_dim, HEAD, 1, rngs=rngs)
        self.bn1 = layers.FrozenBatchNorm(HEAD, NORM_EPS)
        self.fc = layers.linear(HEAD, CLASSES, dtype=jnp.float32, rngs=rngs)
        self.published = tuple((stride, 1) for stride in strides)
        self.dilated = _dilated(strides)
        self.merged_channels = STAGES[2].channels + STAGES[4].channels

    def trunk(
        self, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w d"]]:
        """Normalised images -> (stages 3 and 5 concatenated, input of `tail`)."""
        stage3 = self.run(self.stem(images), slice(STAGE3), self.dilated)
        stage5 = self.run(stage3, slice(STAGE3, STAGE5), self.dilated)
        return jnp.concatenate([stage3, stage5], axis=-1), stage5

    def tail(self, stage5: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        """Stages 6 and 7, the high-level features that make the pseudo mask."""
        return self.run(stage5, slice(STAGE5, None), self.dilated)

    def classify(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b n"]:
        """Normalised images -> logits of ImageNet's 1,000 classes, with the published strides."""
        x = self.run(self.stem(images), slice(None), self.published)
        x = jax.nn.relu6(self.bn1(self.conv_head(x)))
        return self.fc(x.mean((1, 2)))

    def stem(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """Normalised images -> TensorFlow's normalisation -> the first convolution, stride 2."""
        mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (resize.MEAN, resize.STD))
        x = ((images * std + mean) * 255 - 127) / 128
        return jax.nn.relu6(self.bn0(self.conv_stem(x)))

    def run(
        self, x: Float[Array, "b h w c"], part: slice, plan: tuple[tuple[int, int], ...]
    ) -> Float[Array, "b H W d"]:
        """Applies part of the blocks, with the strides and dilations of `plan`."""
        for block, (stride, dilation) in zip(self.blocks[part], plan[part], strict=True):
            x = block(x, stride, dilation)
        return x


def lite0(*, rngs: nnx.Rngs) -> EfficientNetLite:
    """EfficientNet-Lite0 of efficientnet-lite0-57934424.pth; 152 merged channels."""
    return EfficientNetLite(rngs=rngs)


def _dilated(strides: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Stride and dilation of each block, with dilations for the strides beyond `STRIDE`.

    As in torchvision, a block that loses its stride keeps the previous dilation.
    """
    reached, dilation = 2, 1  # the stem's
    plan = []
    for stride in strides:
        if reached * stride <= STRIDE:
            plan.append((stride, dilation))
            reached *= stride
        else:
            plan.append((1, dilation))
            dilation *= stride
    return tuple(plan)


def _conv(
    in_dim: int, out_dim: int, kernel_size: int, *, stride: int = 1, rngs: nnx.Rngs
) -> nnx.Conv:
    return layers.conv(
        in_dim,
        out_dim,
        kernel_size,
        stride=stride,
        padding="SAME",
        use_bias=False,
        kernel_init=layers.kaiming_kernel,
        dtype=jnp.float32,
        rngs=rngs,
    )
