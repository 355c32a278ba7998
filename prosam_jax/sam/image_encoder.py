"""SAM's image encoder: a ViT with windowed and global attention (Li et al., arXiv 2203.16527).

Activations are (b, h, w, c) throughout, h and w in patches.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from prosam_jax import layers, platforms, resize
from prosam_jax.config import SAMConfig
from prosam_jax.errors import UserError
from prosam_jax.sam.mlp import MLPBlock

NORM_EPS = 1e-6


def to_windows(x: Float[Array, "b h w c"], size: int) -> Float[Array, "n s s c"]:
    """Cuts maps into windows of `size` x `size`, padded with zeros at the bottom and right.

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
    """Reverses `to_windows` and drops the padding."""
    _, size, _, c = windows.shape
    rows, cols = -(-height // size), -(-width // size)
    x = windows.reshape(-1, rows, cols, size, size, c)
    x = x.swapaxes(2, 3).reshape(-1, rows * size, cols * size, c)
    return x[:, :height, :width]


def relative_positions(table: Float[Array, "n d"], length: int) -> Float[Array, "m m d"]:
    """The embedding of the offset from each key to each query along an axis of `length`.

    The table holds the offsets of the axis it was trained on; for other lengths it is interpolated.
    """
    table = resize.linear_table(table, 2 * length - 1)
    offsets = np.arange(length)[:, None] - np.arange(length)[None, :]
    return table[offsets + length - 1]


def attend(
    q: Float[Array, "b h w n d"],
    k: Float[Array, "b h w n d"],
    v: Float[Array, "b h w n d"],
    rel_h: Float[Array, "h h d"] | None,
    rel_w: Float[Array, "w w d"] | None,
    *,
    limit: int,
) -> Float[Array, "b h w n d"]:
    """Attention of n heads over maps, with decomposed relative positions (arXiv 2112.01526).

    The score of query (h, w) and key (i, j) is the scaled q.k, plus q.rel_h[h, i] and
    q.rel_w[w, j] where relative positions are given. Scores and softmax are float32.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        rel_h: Relative positions of rows.
        rel_w: Relative positions of columns.
        limit: Scores to hold at a time; those of one row of queries of one head are the least. A
            whole map of 64 x 64 has 16.8 million in each head.
    """
    b, h, w, _, d = q.shape
    scores = b * w * h * w  # of one row of one head
    rows = max(n for n in range(1, h + 1) if n == 1 or (h % n == 0 and n * scores <= limit))
    heads = limit // (h * scores)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def some_rows(q, k, v, rel_h):
        scores = product("brwd,bijd->brwij", q * d**-0.5, k)
        if rel_h is not None:
            scores += product("brwd,rid->brwi", q, rel_h)[..., :, None]
        if rel_w is not None:
            scores += product("brwd,wjd->brwj", q, rel_w)[..., None, :]
        largest = jax.lax.stop_gradient(scores.max((-2, -1), keepdims=True))
        weights = jnp.exp(scores - largest)
        # Divide afterwards: there are fewer values than scores.
        out = product("brwij,bijd->brwd", weights.astype(v.dtype), v)
        return (out / weights.sum((-2, -1))[..., None]).astype(v.dtype)

    def head(qkv):
        q, k, v = qkv
        q = jnp.moveaxis(q.reshape(b, h // rows, rows, w, d), 1, 0)
        offsets = None if rel_h is None else rel_h.reshape(h // rows, rows, h, d)
        out = jax.lax.map(lambda x: some_rows(x[0], k, v, x[1]), (q, offsets))
        return jnp.moveaxis(out, 0, 1).reshape(b, h, w, d)

    qkv = tuple(jnp.moveaxis(x, 3, 0) for x in (q, k, v))
    out = jax.lax.map(head, qkv, batch_size=heads if heads > 1 else None)
    return jnp.moveaxis(out, 0, 3)


def attend_fused(
    q: Float[Array, "b h w n d"],
    k: Float[Array, "b h w n d"],
    v: Float[Array, "b h w n d"],
    rel_h: Float[Array, "h h d"] | None,
    rel_w: Float[Array, "w w d"] | None,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b h w n d"]:
    """`attend` as one call of `jax.nn.dot_product_attention`; cuDNN stores no scores.

    Relative positions become h + w more channels, which is exact: q.rel_h[h, i] is the product of
    the query's q.rel_h[h, :] and the key's one-hot row, and likewise for columns.
    """
    b, h, w, n, d = q.shape
    queries, keys = [q * d**-0.5], [k]
    if rel_h is not None:
        queries.append(jnp.einsum("bhwnd,hid->bhwni", q, rel_h))
        keys.append(
            jnp.broadcast_to(jnp.eye(h, dtype=k.dtype)[None, :, None, None], (b, h, w, n, h))
        )
    if rel_w is not None:
        queries.append(jnp.einsum("bhwnd,wjd->bhwnj", q, rel_w))
        keys.append(
            jnp.broadcast_to(jnp.eye(w, dtype=k.dtype)[None, None, :, None], (b, h, w, n, w))
        )
    q, k = jnp.concatenate(queries, -1), jnp.concatenate(keys, -1)
    channels = -(-q.shape[-1] // 8) * 8  # cuDNN needs a multiple of 8, the same for q, k and v

    def tokens(x):
        x = jnp.pad(x, (*[(0, 0)] * 4, (0, channels - x.shape[-1])))
        return x.reshape(b, h * w, n, channels)

    attend = functools.partial(
        jax.nn.dot_product_attention, scale=1.0, implementation=implementation
    )
    return attend(tokens(q), tokens(k), tokens(v))[..., :d].reshape(b, h, w, n, d)


class Attention(nnx.Module):
    """Multi-head self-attention in windows of `window_size`, or over whole maps if that is 0."""

    def __init__(self, cfg: SAMConfig, window_size: int, *, rngs: nnx.Rngs):
        dim, dtype = cfg.embed_dim, jnp.dtype(cfg.dtype)
        self.qkv = layers.linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = layers.linear(dim, dim, dtype=dtype, rngs=rngs)
        if cfg.use_rel_pos:
            grid = (window_size, window_size) if window_size else cfg.embedding_size
            init, head_dim = nnx.initializers.truncated_normal(0.02), dim // cfg.num_heads
            self.rel_pos_h = nnx.Param(init(rngs.params(), (2 * grid[0] - 1, head_dim)))
            self.rel_pos_w = nnx.Param(init(rngs.params(), (2 * grid[1] - 1, head_dim)))
        self.window_size = window_size
        self.num_heads = cfg.num_heads
        self.use_rel_pos = cfg.use_rel_pos
        self.attention = cfg.attention

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Mixes all positions of each window or map.

        Windows are padded with zeros, and the padding is attended to, as in SAM's training. The
        projection of a zero is the bias, so the bias is added after the padding.
        """
        _, height, width, c = x.shape
        assert self.qkv.bias is not None
        kernel, bias = (p[...].astype(x.dtype) for p in (self.qkv.kernel, self.qkv.bias))
        qkv = x @ kernel
        if self.window_size:
            qkv = to_windows(qkv, self.window_size)
        qkv = qkv + bias.reshape(1, 1, 1, -1)
        b, h, w, _ = qkv.shape
        q, k, v = jnp.moveaxis(qkv.reshape(b, h, w, 3, self.num_heads, -1), 3, 0)
        rel_h = rel_w = None
        if self.use_rel_pos:
            rel_h = relative_positions(self.rel_pos_h[...], h).astype(x.dtype)
            rel_w = relative_positions(self.rel_pos_w[...], w).astype(x.dtype)
        fused = self.attention == "auto" and platforms.has_fused_attention(q.dtype)
        if fused or self.attention == "cudnn":
            out = attend_fused(q, k, v, rel_h, rel_w)
        else:
            out = platforms.by_platform(attend, q, k, v, rel_h, rel_w, limit=platforms.SCORES)
        out = out.reshape(b, h, w, c)
        if self.window_size:
            out = from_windows(out, height, width)
        return self.proj(out)


class Block(nnx.Module):
    """A transformer block; attends in windows of `window_size`, or globally if that is 0."""

    def __init__(self, cfg: SAMConfig, window_size: int, *, rngs: nnx.Rngs):
        dim, dtype = cfg.embed_dim, jnp.dtype(cfg.dtype)
        hidden = int(dim * cfg.mlp_ratio)
        self.norm1 = layers.layer_norm(dim, NORM_EPS, dtype=dtype, rngs=rngs)
        self.attn = Attention(cfg, window_size, rngs=rngs)
        self.norm2 = layers.layer_norm(dim, NORM_EPS, dtype=dtype, rngs=rngs)
        self.mlp = MLPBlock(dim, hidden, layers.gelu, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Keeps the shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nnx.Module):
    """A linear map of every patch; pixels at the end that do not fill a patch are left out."""

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
            Image embeddings, one for each whole patch, of type `cfg.dtype`.

        Raises:
            UserError: The images are smaller than a patch, or the encoder has absolute positions
                for another grid of patches.
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
            raise UserError(f"images of {height} x {width} are smaller than a patch of {size}")
        grid = (height // size, width // size)
        if self.cfg.use_abs_pos and grid != self.cfg.embedding_size:
            expected = " x ".join(map(str, self.cfg.image_size))
            raise UserError(
                f"images of {height} x {width} do not fit absolute positions for {expected}: "
                "resize or pad them, or build the encoder with use_abs_pos=False"
            )
