"""The compiled prediction of masks for a batch of episodes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Bool, Float

from prosam_jax.equations import foreground
from prosam_jax.evaluation import metrics


class Prediction(NamedTuple):
    """What is predicted for a batch of episodes.

    Attributes:
        areas: Areas that `metrics.IoU` adds up.
        mask: The predicted masks.
        empty_annotations: Which references have no annotated cell left at the size of the features.
        controls: Areas of the controls and baselines, by name (`evaluation.controls`).
        control_masks: Masks of those controls that have one.
        uncertainty: How much masks of sampled prompts disagree; None if it is not computed.
    """

    areas: metrics.Areas
    mask: Bool[Any, "b h w"]
    empty_annotations: Bool[Any, "b s"]
    controls: dict[str, metrics.Areas]
    control_masks: dict[str, Bool[Any, "b h w"]]
    uncertainty: Float[Any, "b h w"] | None


def make_predict_step(graph: nnx.GraphDef) -> Callable[..., Prediction]:
    """Compiles (params, frozen, episodes, image_embeddings=None) -> predictions.

    For `image_embeddings` see `ProSAM.encode`.
    """

    @jax.jit
    def predict_step(params, frozen, episode, image_embeddings=None):
        model = nnx.merge(graph, params, frozen)
        features = model.encode(episode, image_embeddings)
        mask = foreground(model.segment(features, episode.target_mask.shape[1:]))
        areas = metrics.areas(mask, episode.target_mask, episode.target_ignore)
        return Prediction(
            areas,
            mask,
            features.empty_annotations.reshape(len(mask), -1),
            controls={},
            control_masks={},
            uncertainty=None,
        )

    return predict_step
