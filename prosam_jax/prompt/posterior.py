"""The heads: prompt features -> distribution over prompts (Eq. 5)."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import layers
from prosam_jax.config import DistributionConfig
from prosam_jax.types import Posterior


class PosteriorHead(nnx.Module):
    """Linear heads, chosen by `distribution.name`.

    "vrp" passes the features on unchanged, "vrp_2linear" (Table 7) passes them through two linear
    layers in turn, and all others predict mean and log-scale with one linear layer each.
    """

    def __init__(self, cfg: DistributionConfig, dim: int, *, rngs: nnx.Rngs):
        self.name = cfg.name
        if cfg.name == "vrp":
            return
        if cfg.name == "vrp_2linear":
            self.linear1 = layers.linear(dim, dim, dtype=jnp.float32, rngs=rngs)
            self.linear2 = layers.linear(dim, dim, dtype=jnp.float32, rngs=rngs)
            return

        def bias_init(key, shape, dtype=jnp.float32):
            return math.log(cfg.init_scale) + layers.torch_bias(dim)(key, shape, dtype)

        self.mean = layers.linear(dim, dim, dtype=jnp.float32, rngs=rngs)
        self.log_scale = layers.linear(dim, dim, bias_init=bias_init, dtype=jnp.float32, rngs=rngs)

    def __call__(self, features: Float[Array, "b q c"]) -> Posterior:
        """One distribution for each prompt vector."""
        if self.name == "vrp":
            return Posterior(features, None)
        if self.name == "vrp_2linear":
            return Posterior(self.linear2(self.linear1(features)), None)
        return Posterior(self.mean(features), self.log_scale(features))
