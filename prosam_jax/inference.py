"""Inference as pure functions: masks of the mean prompts, how far to trust them, and samples.

The paper's inference uses the mean prompts alone. Its five ways to merge the masks of sampled
prompts (Table 8, `evaluation.strategies`) score below that at K times the cost, and how much
samples disagree tells less about the errors of a mask than its own probabilities do
(docs/uncertainty.md).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from prosam_jax import calibration, equations, resize
from prosam_jax.model import ProSAM
from prosam_jax.types import Features, Posterior, Taps


class Targets(NamedTuple):
    """Outputs of the frozen networks for target images (`ProSAM.encode_targets`)."""

    image_embeddings: Float[Array, "b i j e"]
    taps: Taps


class References(NamedTuple):
    """The same for annotated references, all of one class (`ProSAM.encode_references`)."""

    taps: Taps
    mask: Float[Array, "s h w"]


class Prediction(NamedTuple):
    """Masks of one class.

    Attributes:
        logits: Of the masks; `equations.foreground` turns them into masks.
        expected_iou: How good each mask is by its own probabilities (`calibration.expected_iou`).
    """

    logits: Float[Array, "b h w"]
    expected_iou: Float[Array, " b"]


def predict(
    model: ProSAM, targets: Targets, references: References, size: tuple[int, int]
) -> Prediction:
    """Segments in every target what the references show, with the mean prompts.

    s references give s times as many prompts (k-shot), which `eval.join` joins.

    Args:
        model: The model.
        targets: b encoded targets.
        references: s encoded references of one class.
        size: (height, width) of the logits.
    """
    b = len(targets.image_embeddings)
    support, mask = jax.tree.map(lambda x: jnp.tile(x, (b, *(1,) * (x.ndim - 1))), references)
    posterior = model.posterior(Features(targets.image_embeddings, targets.taps, support, mask))
    shots = len(references.mask)
    low_res, _ = model.decode_low_res(targets.image_embeddings, posterior.mean, shots)
    logits = resize.bilinear_map(low_res, size)
    return Prediction(logits, calibration.expected_iou(logits))


def sampled_prompts(
    model: ProSAM, posterior: Posterior, samples: int, key: PRNGKeyArray
) -> Float[Array, "k b q c"]:
    """K prompts for each target.

    The noise is the same for every target, so that no result depends on the others of its batch.

    Args:
        model: The model.
        posterior: The posterior of the targets.
        samples: K.
        key: Draws the noise.

    Raises:
        UserError: The posterior has no scale (a deterministic variant).
    """
    cfg = model.distribution

    def draw(one: Posterior) -> Float[Array, "k 1 q c"]:
        return equations.sample_prompts(key, one, samples, sampler=cfg.name, nu=cfg.nu)

    each = jax.tree.map(lambda x: x[:, None], posterior)
    return jax.vmap(draw, out_axes=1)(each)[:, :, 0]


def entropy(p: Float[Array, "*n"], q: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Entropy, in bits, of labels with the probabilities p and q = 1 - p."""
    return (jax.scipy.special.entr(p) + jax.scipy.special.entr(q)) / jnp.log(2.0)


def disagreement(logits: Float[Array, "k b h w"]) -> Float[Array, "b h w"]:
    """How much K masks disagree at each pixel.

    The mutual information, in bits, of a pixel's label and the prompt: the entropy of the mean
    probability less the mean entropy (BALD, Houlsby et al., arXiv 1112.5745). 0 where all masks
    have the same probability, even 1/2; 1 where half are sure of foreground and half of background.
    """
    foreground, background = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    of_mean = entropy(foreground.mean(0), background.mean(0))
    return jnp.clip(of_mean - entropy(foreground, background).mean(0), 0, 1)
