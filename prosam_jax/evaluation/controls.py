"""Controls and baselines that a result is compared with, on the same episodes in the same pass.

A promptable network may find the right object without being told which one is wanted. So a score
shows visual reference segmentation only as far as it exceeds three controls, each of which removes
one thing: the prompts, the training, or the right reference. Three baselines use no prompt encoder.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import inference, resize
from prosam_jax.config import Config
from prosam_jax.equations import foreground
from prosam_jax.evaluation import prediction, strategies
from prosam_jax.evaluation.prediction import RESULT, Prediction, at_targets, counted, low_res
from prosam_jax.evaluation.results import Counted, Result
from prosam_jax.model import ProSAM
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.types import Features

EMPTY = "empty prompt"
UNTRAINED = "untrained prompt encoder"
WRONG = "reference of a wrong class"
EVERYTHING = "everything foreground"
PRIOR = "cosine prior"
CLICK = "click at the prior's peak"

MEANING = {
    UNTRAINED: "the same prompt encoder before training, initialised from the run's seed",
    WRONG: "the trained prompt encoder with a reference of another class, scored on the right one",
    EMPTY: "SAM's decoder without any sparse prompt: what the target alone reveals",
    CLICK: "SAM with a click where the target's features are most similar to the reference's",
    PRIOR: "the map of that similarity, cut at the threshold that is best for these episodes",
    EVERYTHING: "every pixel of every target",
}
"""What each name means, in the order of tables."""

Predict = Callable[..., Prediction]

THRESHOLDS = tuple(round(0.02 * i, 2) for i in range(1, 50))
"""Thresholds for the prior. The best one is chosen on the test list, so it is an upper bound."""


def untrained(cfg: Config, merged_channels: int) -> nnx.State:
    """Initial parameters of the prompt encoder of a run with these settings."""
    encoder = ReferencePromptEncoder(
        cfg.prompt, cfg.distribution, merged_channels, rngs=nnx.Rngs(jax.random.key(cfg.seed))
    )
    return nnx.state(nnx.Dict(prompt_encoder=encoder))


def make_step(
    graph: nnx.GraphDef,
    fresh: nnx.State,
    *,
    samples: int = 0,
    original: bool = False,
    wrong: bool = True,
) -> Predict:
    """Compiles (params, frozen, episodes, image_embeddings=None) -> predictions with controls.

    The episodes come from a source with the same `wrong`; if it is true, as many references of a
    wrong class follow the right ones. The frozen networks see each picture once. For
    `image_embeddings` see `ProSAM.encode`.

    Args:
        graph: Structure of the model.
        fresh: Parameters from `untrained`.
        samples: As for `prediction.make_predict_step`.
        original: As for `prediction.make_predict_step`.
        wrong: Whether the reference of a wrong class is among the controls.
    """

    @jax.jit
    def control_step(fresh, params, frozen, episode, image_embeddings=None):
        model = nnx.merge(graph, params, frozen)
        shown, square = at_targets(episode, original), episode.target_image.shape[1:3]
        b = len(episode.target_image)
        right = model.encode(episode, image_embeddings)
        if wrong:
            right, of_others = _halves(right, b)
        posterior = model.posterior(right)
        named = {
            RESULT: posterior.mean,
            UNTRAINED: nnx.merge(graph, fresh, frozen).posterior(right).mean,
        }
        if wrong:
            named[WRONG] = model.posterior(of_others).mean
        prompts = jnp.stack(list(named.values()))
        logits = jax.vmap(lambda p: shown(low_res(model, right, p)))(prompts)
        masks = {name: foreground(of) for name, of in zip(named, logits, strict=True)}
        if samples:
            drawn = prediction.sampled_low_res(model, right, posterior, samples)
            masks |= strategies.merged(drawn, shown)
        likeness = prior(model, right)
        alone = {
            EMPTY: jnp.zeros((b, 0, prompts.shape[-1])),
            CLICK: _click(model, resize.bilinear_map(likeness, square)),
        }
        for name, tokens in alone.items():  # which do not depend on the number of references
            masks[name] = foreground(shown(model.decode_low_res(right.image_embeddings, tokens)[0]))
        masks[EVERYTHING] = jnp.ones_like(episode.target_mask)
        counts = {name: counted(mask, episode) for name, mask in masks.items()}
        likeness = shown(likeness)
        cut = jax.vmap(lambda t: counted(likeness > t, episode))(jnp.array(THRESHOLDS))
        return Prediction(
            counts=counts | {_above(t): cut[i] for i, t in enumerate(THRESHOLDS)},
            masks=masks,
            empty_annotations=right.empty_annotations.reshape(b, -1),
            uncertainty=inference.entropy(jax.nn.sigmoid(logits[0]), jax.nn.sigmoid(-logits[0])),
        )

    return functools.partial(control_step, fresh)


def prior(model: ProSAM, features: Features) -> Float[Array, "b i j"]:
    """The pseudo mask of section 8.1 at the features' size, averaged over the references."""
    query = jax.tree.map(lambda x: jnp.repeat(x, features.shots, axis=0), features.target)
    augmentation = model.prompt_encoder.features
    found = augmentation.pseudo_mask(query, features.reference, features.reference_mask)
    return found.reshape(-1, features.shots, *found.shape[1:]).mean(1)


def _click(model: ProSAM, likeness: Float[Array, "b h w"]) -> Float[Array, "b 2 c"]:
    """SAM's tokens for a click at the maximum, in the geometry of `ProSAM.encode_targets`."""
    b, h, w = likeness.shape
    height, width = model.sam.cfg.image_size
    peak = likeness.reshape(b, -1).argmax(1)
    x, y = peak % w * ((width - 1) / (w - 1)), peak // w * ((height - 1) / (h - 1))
    points = jnp.stack([x, y], axis=-1)[:, None]
    tokens, _ = model.sam.prompt_encoder(points=points, labels=jnp.ones((b, 1), jnp.int32))
    return tokens


def _halves(features: Features, b: int) -> tuple[Features, Features]:
    """Splits the features into those with the first and second half of each target's references."""

    def half(i: int) -> Features:
        def of(x: Array) -> Array:
            return x.reshape(b, 2, -1, *x.shape[1:])[:, i].reshape(-1, *x.shape[1:])

        support, mask = jax.tree.map(of, (features.reference, features.reference_mask))
        return features._replace(reference=support, reference_mask=mask)

    return half(0), half(1)


def _above(threshold: float) -> str:
    return f"{PRIOR} above {threshold:.2f}"


def chosen(result: Result) -> Result:
    """The result with the prior only at its best threshold, and controls in `MEANING`'s order."""
    best = max(THRESHOLDS, key=lambda t: result.scores_of(_above(t)).miou)
    cut = {_above(t) for t in THRESHOLDS}

    def named(one: Counted) -> Counted:
        held = one.counts | {PRIOR: one.counts[_above(best)]}
        counts = {name: x for name, x in held.items() if name not in cut | MEANING.keys()}
        counts |= {name: held[name] for name in MEANING if name in held}
        return dataclasses.replace(one, counts=counts)

    return dataclasses.replace(
        result, lists=[named(one) for one in result.lists], prior_threshold=best
    )
