"""Prompt prediction (paper, 8.2): learned queries read the reference, then the target."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import layers
from prosam_jax.config import PromptConfig


class QueryDecoder(nnx.Module):
    """Cross-attention to the reference, self-attention, then the same for the target.

    Post-norm residual blocks without feed-forward parts. Positions are added to the keys of the
    cross-attentions only, neither to values nor to queries (VRP-SAM's code).
    """

    def __init__(self, cfg: PromptConfig, *, rngs: nnx.Rngs):
        self.queries = nnx.Param(
            nnx.initializers.normal(1.0)(rngs.params(), (cfg.num_queries, cfg.dim))
        )

        def attention() -> layers.Attention:
            return layers.Attention(
                cfg.dim,
                cfg.num_heads,
                kernel_init=nnx.initializers.xavier_uniform(),
                bias_init=nnx.initializers.zeros,
                dtype=jnp.float32,
                rngs=rngs,
            )

        def norm() -> nnx.LayerNorm:
            return layers.layer_norm(cfg.dim, 1e-5, dtype=jnp.float32, rngs=rngs)

        self.support_cross, self.support_cross_norm = attention(), norm()
        self.support_self, self.support_self_norm = attention(), norm()
        self.query_cross, self.query_cross_norm = attention(), norm()
        self.query_self, self.query_self_norm = attention(), norm()

    def __call__(
        self, support: Float[Array, "b h w c"], query: Float[Array, "b h w c"]
    ) -> Float[Array, "b q c"]:
        """Augmented reference and target features -> prompt features."""
        x = jnp.broadcast_to(self.queries[...], (len(support), *self.queries.shape))
        x = self.support_cross_norm(x + self.support_cross(x, *_keys_and_values(support)))
        x = self.support_self_norm(x + self.support_self(x, x, x))
        x = self.query_cross_norm(x + self.query_cross(x, *_keys_and_values(query)))
        return self.query_self_norm(x + self.query_self(x, x, x))


def _keys_and_values(
    features: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b n c"], Float[Array, "b n c"]]:
    b, h, w, c = features.shape
    positions = jnp.asarray(layers.sine_positions(h, w, c))[None]
    return (features + positions).reshape(b, h * w, c), features.reshape(b, h * w, c)
