"""Feature augmentation (paper, 8.1): adds the annotation to the features."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from prosam_jax import equations, equations_fast, layers, resize
from prosam_jax.config import PromptConfig
from prosam_jax.types import Taps


class FeatureAugmentation(nnx.Module):
    """Two pointwise convolutions, each used for both reference and target."""

    def __init__(self, cfg: PromptConfig, merged_channels: int, *, rngs: nnx.Rngs):
        self.reduce = layers.linear(
            merged_channels, cfg.dim, use_bias=False, dtype=jnp.float32, rngs=rngs
        )
        self.merge = layers.linear(
            2 * cfg.dim + 1, cfg.dim, use_bias=False, dtype=jnp.float32, rngs=rngs
        )
        self.dropout = cfg.dropout
        self.normalize_prior = cfg.normalize_prior

    def __call__(
        self,
        query: Taps,
        support: Taps,
        mask: Float[Array, "b h w"],
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Augments the features of target and reference.

        Args:
            query: Features of the targets.
            support: Features of the references (`backbone.reference_taps`).
            mask: Annotation at feature size, weights in [0, 1].
            dropout_key: Draws the dropped channels in training; None keeps them all.

        Returns:
            F'_t and F'_r, the augmented target and reference features.
        """
        query_key, support_key = (
            (None, None) if dropout_key is None else jax.random.split(dropout_key)
        )
        query_reduced = self.reduced(query.merged, query_key)
        support_reduced = self.reduced(support.merged, support_key)
        prototype = equations.masked_average(support_reduced, mask)
        pseudo_mask = self.pseudo_mask(query, support, mask)
        return (
            self.augmented(query_reduced, prototype, pseudo_mask),
            self.augmented(support_reduced, prototype, mask),
        )

    def reduced(
        self, merged: Float[Array, "b h w d"], dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "b h w c"]:
        """Frozen features reduced to the prompt encoder's width."""
        x = jax.nn.relu(self.reduce(merged))
        if dropout_key is not None:
            x = layers.channel_dropout(x, self.dropout, dropout_key)
        return x

    def pseudo_mask(
        self, query: Taps, support: Taps, mask: Float[Array, "b h w"]
    ) -> Float[Array, "b h w"]:
        """How like the annotated region each target position is, at the mask's size."""
        (_, h, w), (_, i, j, _) = mask.shape, support.prior.shape
        weight = resize.bilinear(mask[..., None], (i, j), align_corners=True)[..., 0]
        prior = equations_fast.cosine_prior(query.prior, support.prior, weight)
        if self.normalize_prior:
            prior = equations.min_max(prior)
        return resize.bilinear(prior[..., None], (h, w), align_corners=True)[..., 0]

    def augmented(
        self,
        x: Float[Array, "b h w c"],
        prototype: Float[Array, "b c"],
        mask: Float[Array, "b h w"],
    ) -> Float[Array, "b h w c"]:
        """Merges features, prototype and ten times the mask (the factor is VRP-SAM's)."""
        prototype = jnp.broadcast_to(prototype[:, None, None, :], x.shape)
        return jax.nn.relu(self.merge(jnp.concatenate([x, prototype, mask[..., None] * 10], -1)))
