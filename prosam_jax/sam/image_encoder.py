"""SAM's image encoder: a ViT with windowed and global attention (Li et al., arXiv 2203.16527).

Activations are (b, h, w, c) throughout, h and w in patches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from prosam_jax import layers, resize
from prosam_jax.config import SAMConfig
from prosam_jax.sam.mlp import MLPBlock

NORM_EPS = 1e-6


def to_windows(x: Float[Array, "b h w c"], size: int) -> Float[Array, "n s s c"]:
    """Cuts maps into windows of `size` x `size`, padded with zeros at the bottom and the right.

    The windows of one image follow each other row by row.
    """
    b, h, w, c = x.shape
    rows, cols = -(-h // size), -(-w // size)
    x = jnp.pad(x, ((0, 0), (0, rows * size - h), (0, cols * size - w), (0, 0)))
    x = x.reshape(b, rows, size, cols, size, c)
    return x.swapaxes(2, 3).reshape(b * rows * cols, size, size, c)


def from_windows(
    windows: Float[Array, "n s s c"], height: int, width: int
) -> Float[Array, "b h w c"]:
    """Puts the windows of `to_windows` together again and drops the padding."""
    _, size, _, c = windows.shape
    rows, cols = -(-height // size), -(-width // size)
    x = windows.reshape(-1, rows, cols, size, size, c)
    x = x.swapaxes(2, 3).reshape(-1, rows * size, cols * size, c)
    return x[:, :height, :width]


def relative_positions(table: Float[Array, "n d"], length: int) -> Float[Array, "m m d"]:
    """The embedding of the offset from each key to each query along an axis of `length`.

    The table holds the offsets of the axis it was trained on and is interpolated for others.
    """
    table = resize.linear_table(table, 2 * length - 1)
    offsets = np.arange(length)[:, None] - np.arange(length)[None, :]
    return table[offsets + length - 1]


def attend(
    q: Float[Array, "b h w d"],
    k: Float[Array, "b h w d"],
    v: Float[Array, "b h w d"],
    rel_h: Float[Array, "h h d"] | None,
    rel_w: Float[Array, "w w d"] | None,
) -> Float[Array, "b h w d"]:
    """One attention head over a map, with decomposed relative positions (arXiv 2112.01526).

    The score of query (h, w) and key (i, j) is the scaled q.k, plus q.rel_h[h, i] and
    q.rel_w[w, j] where relative positions are given. Scores and softmax are float32.
    """
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product("bhwd,bijd->bhwij", q * q.shape[-1] ** -0.5, k)
    if rel_h is not None:
        scores += product("bhwd,hid->bhwi", q, rel_h)[..., :, None]
    if rel_w is not None:
        scores += product("bhwd,wjd->bhwj", q, rel_w)[..., None, :]
    weights = jax.nn.softmax(scores, axis=(-2, -1)).astype(v.dtype)
    return jnp.einsum("bhwij,bijd->bhwd", weights, v)


class Attention(nnx.Module):
    """Multi-head self-attention over maps of about `grid` positions."""

    def __init__(self, cfg: SAMConfig, grid: tuple[int, int], *, is_global: bool, rngs: nnx.Rngs):
        dim, dtype = cfg.embed_dim, jnp.dtype(cfg.dtype)
        self.qkv = layers.linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = layers.linear(dim, dim, dtype=dtype, rngs=rngs)
        if cfg.use_rel_pos:
            init, head_dim = nnx.initializers.truncated_normal(0.02), dim // cfg.num_heads
            self.rel_pos_h = nnx.Param(init(rngs.params(), (2 * grid[0] - 1, head_dim)))
            self.rel_pos_w = nnx.Param(init(rngs.params(), (2 * grid[1] - 1, head_dim)))
        self.num_heads = cfg.num_heads
        self.use_rel_pos = cfg.use_rel_pos
        self.is_global = is_global

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Mixes all positions of each map."""
        _, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(*x.shape[:3], 3, self.num_heads, -1)
        qkv = jnp.moveaxis(qkv, (3, 4), (0, 1))  # (3, heads, b, h, w, d)
        rel_h = rel_w = None
        if self.use_rel_pos:
            rel_h = relative_positions(self.rel_pos_h[...], h).astype(x.dtype)
            rel_w = relative_positions(self.rel_pos_w[...], w).astype(x.dtype)
        head = functools.partial(attend, rel_h=rel_h, rel_w=rel_w)
        if self.is_global:  # the scores of one head at 1024 px are 64 MiB: one at a time
            out = jax.lax.map(lambda qkv: head(*qkv), tuple(qkv))
        else:
            out = jax.vmap(head)(*qkv)
        return self.proj(jnp.moveaxis(out, 0, 3).reshape(x.shape))


class Block(nnx.Module):
    """A transformer block; attends in windows of `window_size`, or globally where that is 0."""

    def __init__(self, cfg: SAMConfig, window_size: int, *, rngs: nnx.Rngs):
        dim, dtype = cfg.embed_dim, jnp.dtype(cfg.dtype)
        grid = (window_size, window_size) if window_size else cfg.embedding_size
        hidden = int(dim * cfg.mlp_ratio)
        self.norm1 = layers.layer_norm(dim, NORM_EPS, dtype=dtype, rngs=rngs)
        self.attn = Attention(cfg, grid, is_global=not window_size, rngs=rngs)
        self.norm2 = layers.layer_norm(dim, NORM_EPS, dtype=dtype, rngs=rngs)
        self.mlp = MLPBlock(dim, hidden, layers.gelu, dtype=dtype, rngs=rngs)
        self.window_size = window_size

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Keeps the shape.

        Windows are padded after the norm, and the padding is attended to: so was SAM trained.
        """
        y = self.norm1(x)
        if self.window_size:
            y = self.attn(to_windows(y, self.window_size))
            y = from_windows(y, *x.shape[1:3])
        else:
            y = self.attn(y)
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nnx.Module):
    """One linear map of every patch; pixels that fill no patch at the end are left out."""

    def __init__(self, patch_size: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.proj = layers.conv(3, dim, patch_size, stride=patch_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """Turns pixels into patches."""
        return self.proj(x)


class ImageEncoderViT(nnx.Module):
    """The ViT of SAM and its neck."""

    def __init__(self, cfg: SAMConfig, *, rngs: nnx.Rngs):
        dtype, dim, out_dim = jnp.dtype(cfg.dtype), cfg.embed_dim, cfg.prompt_embed_dim
        self.patch_embed = PatchEmbed(cfg.patch_size, dim, dtype=dtype, rngs=rngs)
        if cfg.use_abs_pos:
            init = nnx.initializers.truncated_normal(0.02)
            self.pos_embed = nnx.Param(init(rngs.params(), (1, *cfg.embedding_size, dim)))
        self.blocks = nnx.List(
            Block(cfg, 0 if i in cfg.global_attn_indexes else cfg.window_size, rngs=rngs)
            for i in range(cfg.depth)
        )
        self.neck = nnx.List(
            [
                layers.conv(dim, out_dim, 1, use_bias=False, dtype=dtype, rngs=rngs),
                layers.layer_norm(out_dim, NORM_EPS, dtype=dtype, rngs=rngs),
                layers.conv(out_dim, out_dim, 3, padding=1, use_bias=False, dtype=dtype, rngs=rngs),
                layers.layer_norm(out_dim, NORM_EPS, dtype=dtype, rngs=rngs),
            ]
        )
        self.cfg = cfg

    def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """Encodes images.

        Args:
            x: Normalised images, see `Sam.preprocess`.

        Returns:
            Image embeddings, one for each whole patch, in the type `cfg.dtype`.

        Raises:
            ValueError: The images are smaller than a patch, or there are absolute positions and
                the images make another grid of patches than `cfg.image_size`.
        """
        self._check_size(x.shape[1], x.shape[2])
        x = self.patch_embed(x)
        if self.cfg.use_abs_pos:
            x = x + self.pos_embed[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        for layer in self.neck:
            x = layer(x)
        return x

    def _check_size(self, height: int, width: int) -> None:
        size = self.cfg.patch_size
        if min(height, width) < size:
            raise ValueError(f"images of {height} x {width} are smaller than a patch of {size}")
        grid = (height // size, width // size)
        if self.cfg.use_abs_pos and grid != self.cfg.embedding_size:
            expected = " x ".join(map(str, self.cfg.image_size))
            raise ValueError(
                f"images of {height} x {width} do not fit absolute positions for {expected}: "
                "resize or pad them, or build the encoder with use_abs_pos=False"
            )
