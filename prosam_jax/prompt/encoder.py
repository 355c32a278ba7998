"""The trained part: reference, annotation, target -> distribution over SAM prompts (Eq. 3, 5)."""

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from prosam_jax.config import DistributionConfig, PromptConfig
from prosam_jax.prompt.features import FeatureAugmentation
from prosam_jax.prompt.posterior import PosteriorHead
from prosam_jax.prompt.query_decoder import QueryDecoder
from prosam_jax.types import Posterior, Taps


class ReferencePromptEncoder(nnx.Module):
    """VRP-SAM's prompt encoder with ProSAM's heads: all the parameters that training changes.

    1,723,648 parameters with ResNet-50, 50 queries and width 256; 131,584 less for "vrp".
    """

    def __init__(
        self,
        cfg: PromptConfig,
        distribution: DistributionConfig,
        merged_channels: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.features = FeatureAugmentation(cfg, merged_channels, rngs=rngs)
        self.decoder = QueryDecoder(cfg, rngs=rngs)
        self.head = PosteriorHead(distribution, cfg.dim, rngs=rngs)

    def __call__(
        self,
        query: Taps,
        support: Taps,
        mask: Float[Array, "b h w"],
        dropout_key: PRNGKeyArray | None = None,
    ) -> Posterior:
        """Predicts q(p | I_r, A_r, I_t) from one reference for each target.

        Args:
            query: Features of the targets (`backbone.target_taps`).
            support: Features of the references (`backbone.reference_taps`).
            mask: Annotation at feature size, weights in [0, 1].
            dropout_key: Draws training's channel dropout; None for no dropout.

        Returns:
            The distribution of `num_queries` prompts per target.
        """
        query_features, support_features = self.features(query, support, mask, dropout_key)
        return self.head(self.decoder(support_features, query_features))
