"""DINOv2 vision transformers with patches of 14 pixels (arXiv 2304.07193) as frozen backbones.

Attribute names are those of Meta's checkpoints, such as dinov2_vitb14_pretrain.pth. With registers
(arXiv 2309.16588), further learned tokens lie between the class token and the patches; they take
up what else would make a few patches stand out.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import layers, resize

PATCH = 14
# Side of the position table; the pretraining ended with 518 x 518 pixels.
GRID = 37
NORM_EPS = 1e-6
# The original adds this to the wanted size before dividing by the table's.
POSITION_OFFSET = 0.1


class PatchEmbed(nnx.Module):
    """One linear map of every patch."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.proj = layers.conv(3, dim, PATCH, stride=PATCH, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """Turns pixels into patches."""
        return self.proj(x)


class Attention(nnx.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.qkv = layers.linear(dim, 3 * dim, dtype=jnp.float32, rngs=rngs)
        self.proj = layers.linear(dim, dim, dtype=jnp.float32, rngs=rngs)
        self.num_heads = num_heads

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Mixes all tokens of each image."""
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        return self.proj(layers.attend(q, k, v, self.num_heads))


class MLP(nnx.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.fc1 = layers.linear(dim, 4 * dim, dtype=jnp.float32, rngs=rngs)
        self.fc2 = layers.linear(4 * dim, dim, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Keeps the shape."""
        return self.fc2(layers.gelu(self.fc1(x)))


class LayerScale(nnx.Module):
    """A learned factor for each channel."""

    def __init__(self, dim: int):
        self.gamma = nnx.Param(jnp.ones((dim,)))

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Scales the channels."""
        return x * self.gamma[...].astype(x.dtype).reshape(1, 1, -1)


class Block(nnx.Module):
    """A pre-norm transformer block whose residual branches are scaled."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.norm1 = layers.layer_norm(dim, NORM_EPS, dtype=jnp.float32, rngs=rngs)
        self.attn = Attention(dim, num_heads, rngs=rngs)
        self.ls1 = LayerScale(dim)
        self.norm2 = layers.layer_norm(dim, NORM_EPS, dtype=jnp.float32, rngs=rngs)
        self.mlp = MLP(dim, rngs=rngs)
        self.ls2 = LayerScale(dim)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Keeps the shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DINOv2(nnx.Module):
    """A ViT; the ends of its second, third and last quarter of blocks give the features.

    DINOv2's own depth heads read them too: blocks 5, 8 and 11 of 12, or 11, 17 and 23 of 24
    (counted from 0), and one in the first quarter. Here the two in the middle are merged, like
    layers 2 and 3 of a ResNet, and the last one makes the prior. With ViT-B the merged ones have
    1,536 channels, exactly ResNet-50's, so the learned part keeps its size; ViT-L's 2,048 widen
    only its first layer. All go through the final norm, the default of the original's
    `get_intermediate_layers`, and drop the class token.

    `tail` is the identity, because attention mixes the whole picture from the first block on:
    masking tokens before the last blocks would not hide the background, and DINOv2 never saw
    zeros there. The mask hides the background in the prior's features instead.

    Images are resized to the nearest whole number of patches, so 512 x 512 pixels become the
    518 x 518 of the pretraining, with the position table as published.

    Args:
        dim: Width.
        depth: Number of blocks.
        num_heads: Attention heads of a block.
        grid: Side of the position table in patches.
        registers: Number of register tokens.

    Attributes:
        merged_channels: Twice the width.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        grid: int = GRID,
        registers: int = 0,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.truncated_normal(0.02)
        self.cls_token = nnx.Param(init(rngs.params(), (1, 1, dim)))
        self.pos_embed = nnx.Param(init(rngs.params(), (1, 1 + grid**2, dim)))
        if registers:
            self.register_tokens = nnx.Param(init(rngs.params(), (1, registers, dim)))
        self.patch_embed = PatchEmbed(dim, rngs=rngs)
        self.blocks = nnx.List(Block(dim, num_heads, rngs=rngs) for _ in range(depth))
        self.norm = layers.layer_norm(dim, NORM_EPS, dtype=jnp.float32, rngs=rngs)
        self.taps = (depth // 2 - 1, 3 * depth // 4 - 1, depth - 1)
        self.grid = grid
        self.registers = registers
        self.merged_channels = 2 * dim

    def trunk(
        self, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w d"]]:
        """Normalised images -> (two middle blocks concatenated, the last block)."""
        height, width = (max(1, (n + PATCH // 2) // PATCH) for n in images.shape[1:3])
        x = self.tokens(images, (height, width))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                maps.append(
                    self.norm(x)[:, 1 + self.registers :].reshape(-1, height, width, x.shape[-1])
                )
        return jnp.concatenate(maps[:2], axis=-1), maps[2]

    def tail(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """The identity, see the class."""
        return x

    def tokens(
        self, images: Float[Array, "b H W 3"], size: tuple[int, int]
    ) -> Float[Array, "b n c"]:
        """Class token, registers, `size` patches row by row; positions on all but registers."""
        pixels = (size[0] * PATCH, size[1] * PATCH)
        x = self.patch_embed(resize.bilinear(images, pixels, align_corners=False))
        b, _, _, c = x.shape
        cls_token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (b, 1, c))
        x = jnp.concatenate([cls_token, x.reshape(b, -1, c)], axis=1)
        x = x + self.positions(size).astype(x.dtype)
        if not self.registers:
            return x
        registers = jnp.broadcast_to(
            self.register_tokens[...].astype(x.dtype), (b, self.registers, c)
        )
        return jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)

    def positions(self, size: tuple[int, int]) -> Float[Array, "1 n c"]:
        """The position table, interpolated to `size` patches by the original's rule.

        Without registers, the original asks for 0.1 patches more than there are, so that rounding
        keeps the size, and torch maps coordinates with that factor. With registers, it asks for the
        size itself and for antialiasing.
        """
        table = self.pos_embed[...]
        if size == (self.grid, self.grid):
            return table
        c = table.shape[-1]
        patches = table[:, 1:].reshape(1, self.grid, self.grid, c)
        if self.registers:
            patches = resize.bicubic_antialiased(patches, size)
        else:
            rows, cols = ((n + POSITION_OFFSET) / self.grid for n in size)
            patches = resize.bicubic(patches, (rows, cols))
        return jnp.concatenate([table[:, :1], patches.reshape(1, -1, c)], axis=1)


def vits14(*, rngs: nnx.Rngs) -> DINOv2:
    """ViT-S/14 of dinov2_vits14_pretrain.pth; 768 merged channels."""
    return DINOv2(384, 12, 6, rngs=rngs)


def vitb14(*, rngs: nnx.Rngs) -> DINOv2:
    """ViT-B/14 of dinov2_vitb14_pretrain.pth; 1,536 merged channels."""
    return DINOv2(768, 12, 12, rngs=rngs)


def vitl14(*, rngs: nnx.Rngs) -> DINOv2:
    """ViT-L/14 of dinov2_vitl14_pretrain.pth; 2,048 merged channels."""
    return DINOv2(1024, 24, 16, rngs=rngs)


def vitl14_reg(*, rngs: nnx.Rngs) -> DINOv2:
    """ViT-L/14 with the four registers of dinov2_vitl14_reg4_pretrain.pth; as wide as `vitl14`."""
    return DINOv2(1024, 24, 16, registers=4, rngs=rngs)
