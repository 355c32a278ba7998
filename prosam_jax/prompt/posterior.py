"""The heads: prompt features -> distribution over prompts (Eq. 5)."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import layers, sampling
from prosam_jax.config import DistributionConfig
from prosam_jax.types import Posterior


class PosteriorHead(nnx.Module):
    """Linear heads, chosen by `distribution.name`.

    "vrp" passes the features on unchanged, "vrp_2linear" (Table 7) passes them through two linear
    layers in turn, and all others predict mean and log-scale with one linear layer each, but no
    log-scale if `distribution.scale` is "fixed".
    """

    def __init__(self, cfg: DistributionConfig, dim: int, *, rngs: nnx.Rngs):
        self.cfg = cfg
        if cfg.name == "vrp":
            return
        if cfg.name == "vrp_2linear":
            self.linear1 = layers.linear(dim, dim, dtype=jnp.float32, rngs=rngs)
            self.linear2 = layers.linear(dim, dim, dtype=jnp.float32, rngs=rngs)
            return

        def bias_init(key, shape, dtype=jnp.float32):
            return math.log(cfg.init_scale) + layers.torch_bias(dim)(key, shape, dtype)

        self.mean = layers.linear(dim, dim, dtype=jnp.float32, rngs=rngs)
        if cfg.scale != "fixed":
            self.log_scale = layers.linear(
                dim, dim, bias_init=bias_init, dtype=jnp.float32, rngs=rngs
            )

    def __call__(self, features: Float[Array, "b q c"]) -> Posterior:
        """One distribution for each prompt vector."""
        if self.cfg.name == "vrp":
            return Posterior(features, None)
        if self.cfg.name == "vrp_2linear":
            return Posterior(self.linear2(self.linear1(features)), None)
        mean = self.mean(features)
        return Posterior(mean, self._log_scale(features, mean))

    def _log_scale(
        self, features: Float[Array, "b q c"], mean: Float[Array, "b q c"]
    ) -> Float[Array, "b q c"]:
        """Log sigma, of which the layer predicts a share unless `scale` is "absolute"."""
        cfg = self.cfg
        if cfg.scale == "fixed":
            log_scale = jnp.full_like(mean, math.log(cfg.init_scale))
        else:
            log_scale = self.log_scale(features)
        if cfg.min_scale:
            log_scale = jnp.logaddexp(log_scale, math.log(cfg.min_scale))
        if cfg.scale == "absolute":
            return log_scale
        return log_scale + jnp.log(sampling.root_mean_square(mean))
