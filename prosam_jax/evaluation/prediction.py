"""The compiled prediction of masks for a batch of episodes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer

from prosam_jax import inference, resize
from prosam_jax.equations import foreground
from prosam_jax.evaluation import metrics, strategies
from prosam_jax.model import ProSAM, stream
from prosam_jax.types import Episode, Features, Posterior

RESULT = "result"
"""Name of the mean prompts' masks, the result itself."""


class Prediction(NamedTuple):
    """What is predicted for a batch of episodes.

    Attributes:
        counts: Pixels of each mask that is scored (`metrics.confusion`), by name: `RESULT`, and the
            strategies, controls and baselines that were asked for.
        masks: Those masks; not all baselines have one.
        empty_annotations: Which references have no annotated cell left at the size of the features.
        uncertainty: Entropy of each pixel of the result, in bits; None if it is not computed.
    """

    counts: dict[str, Integer[Any, "b 4"]]
    masks: dict[str, Bool[Any, "b h w"]]
    empty_annotations: Bool[Any, "b s"]
    uncertainty: Float[Any, "b h w"] | None


def make_predict_step(
    graph: nnx.GraphDef, *, samples: int = 0, original: bool = False
) -> Callable[..., Prediction]:
    """Compiles (params, frozen, episodes, image_embeddings=None) -> predictions.

    For `image_embeddings` see `ProSAM.encode`.

    Args:
        graph: Structure of the model.
        samples: K of the strategies (`evaluation.strategies`); 0 for none.
        original: Whether true masks have the targets' own pixels (`EpisodeSource.canvas`).
    """

    @jax.jit
    def predict_step(params, frozen, episode, image_embeddings=None):
        model = nnx.merge(graph, params, frozen)
        shown = at_targets(episode, original)
        features = model.encode(episode, image_embeddings)
        posterior = model.posterior(features)
        masks = {RESULT: foreground(shown(low_res(model, features, posterior.mean)))}
        if samples:
            masks |= strategies.merged(sampled_low_res(model, features, posterior, samples), shown)
        return Prediction(
            counts={name: counted(mask, episode) for name, mask in masks.items()},
            masks=masks,
            empty_annotations=features.empty_annotations.reshape(-1, features.shots),
            uncertainty=None,
        )

    return predict_step


def at_targets(
    episode: Episode, original: bool
) -> Callable[[Float[Array, "b i j"]], Float[Array, "b h w"]]:
    """What resizes maps to where pixels of these episodes are counted."""
    *_, height, width = episode.target_mask.shape
    if original:
        return lambda x: resize.bilinear_to_each(x, episode.target_size, (height, width))
    return lambda x: resize.bilinear_map(x, (height, width))


def low_res(
    model: ProSAM, features: Features, prompts: Float[Array, "b q c"]
) -> Float[Array, "b i j"]:
    """Logits of the masks of some prompts, in the decoder's own size."""
    return model.decode_low_res(features.image_embeddings, prompts, features.shots)[0]


def sampled_low_res(
    model: ProSAM, features: Features, posterior: Posterior, samples: int
) -> Float[Array, "k b i j"]:
    """Logits of the masks of K sampled prompts."""
    key = stream(0, "strategies")
    prompts = inference.sampled_prompts(model, posterior, samples, key)
    return jax.vmap(lambda p: low_res(model, features, p))(prompts)


def counted(mask: Bool[Array, "b h w"], episode: Episode) -> Integer[Array, "b 4"]:
    """`metrics.confusion` of masks for the episodes' targets."""
    return metrics.confusion(mask, episode.target_mask, episode.target_ignore)
