"""SAM's two-way transformer: tokens attend to the image and the image attends to tokens."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from prosam_jax import layers
from prosam_jax.config import SAMConfig
from prosam_jax.sam.mlp import MLPBlock

NORM_EPS = 1e-5


class TwoWayAttentionBlock(nnx.Module):
    """Self-attention of tokens, tokens to image, MLP of tokens, image to tokens; post-norm."""

    def __init__(self, cfg: SAMConfig, *, is_first: bool, rngs: nnx.Rngs):
        dim, heads, dtype = cfg.prompt_embed_dim, cfg.decoder_num_heads, jnp.dtype(cfg.dtype)
        self.self_attn = layers.Attention(dim, heads, dtype=dtype, rngs=rngs)
        self.norm1 = layers.layer_norm(dim, NORM_EPS, dtype=dtype, rngs=rngs)
        self.cross_attn_token_to_image = layers.Attention(
            dim, heads, dim // 2, dtype=dtype, rngs=rngs
        )
        self.norm2 = layers.layer_norm(dim, NORM_EPS, dtype=dtype, rngs=rngs)
        self.mlp = MLPBlock(dim, cfg.decoder_mlp_dim, jax.nn.relu, dtype=dtype, rngs=rngs)
        self.norm3 = layers.layer_norm(dim, NORM_EPS, dtype=dtype, rngs=rngs)
        self.norm4 = layers.layer_norm(dim, NORM_EPS, dtype=dtype, rngs=rngs)
        self.cross_attn_image_to_token = layers.Attention(
            dim, heads, dim // 2, dtype=dtype, rngs=rngs
        )
        self.is_first = is_first

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        image: Float[Array, "b m c"],
        token_pe: Float[Array, "b n c"],
        image_pe: Float[Array, "1 m c"],
        token_mask: Bool[Array, "b n"] | None = None,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b m c"]]:
        """Returns the updated tokens and image; positions are added to queries and keys."""
        if self.is_first:  # tokens equal their positions here: no positions added, no residual
            tokens = self.self_attn(tokens, tokens, tokens, token_mask)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, token_mask)
        tokens = self.norm1(tokens)
        k = image + image_pe
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, k, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        q = tokens + token_pe
        image = image + self.cross_attn_image_to_token(k, q, tokens, token_mask)
        return tokens, self.norm4(image)


class TwoWayTransformer(nnx.Module):
    """The transformer of SAM's mask decoder."""

    def __init__(self, cfg: SAMConfig, *, rngs: nnx.Rngs):
        dim, heads, dtype = cfg.prompt_embed_dim, cfg.decoder_num_heads, jnp.dtype(cfg.dtype)
        self.layers = nnx.List(
            TwoWayAttentionBlock(cfg, is_first=i == 0, rngs=rngs) for i in range(cfg.decoder_depth)
        )
        self.final_attn_token_to_image = layers.Attention(
            dim, heads, dim // 2, dtype=dtype, rngs=rngs
        )
        self.norm_final_attn = layers.layer_norm(dim, NORM_EPS, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        image: Float[Array, "b h w c"],
        image_pe: Float[Array, "1 h w c"],
        tokens: Float[Array, "b n c"],
        token_mask: Bool[Array, "b n"] | None = None,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b h w c"]]:
        """Lets tokens and image attend to each other.

        Args:
            image: Image embeddings.
            image_pe: Their positions, the same for all images.
            tokens: Output and prompt tokens, which are their own positions.
            token_mask: False for tokens that nothing attends to; None if all are attended to.

        Returns:
            The updated tokens and image.
        """
        shape = image.shape
        image, image_pe = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (image, image_pe))
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, token_mask)
        q, k = tokens + token_pe, image + image_pe
        tokens = tokens + self.final_attn_token_to_image(q, k, image)
        return self.norm_final_attn(tokens), image.reshape(shape)
