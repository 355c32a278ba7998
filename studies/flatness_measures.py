"""What `studies.flatness` measures on one episode of one run, compiled once for all of them.

Lengths are relative to the root mean square of the episode's mean prompts: the losses are those of
z -> L(mu + rms z), so a perturbation of 20 % is one whose coordinates z have a standard deviation
of 0.2, and the Laplacian of that loss is the trace of H times rms^2.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from prosam_jax import curvature, equations
from prosam_jax.evaluation import metrics
from prosam_jax.model import ProSAM

NU = 5.0
"""Degrees of freedom of the Student-t noise, as in the paper."""

NOISES = ("gaussian", "student_t")
PATTERNS = ("own", "shared")
"""Noise of its own on every prompt, or one vector of noise added to all prompts."""


class Case(NamedTuple):
    """An episode in a run's eyes: what is decoded, the truth, and the mean prompts."""

    embedding: Float[Any, "i j c"]
    truth: Bool[Any, "h w"]
    ignore: Bool[Any, "h w"]
    mean: Float[Any, "q c"]

    @property
    def rms(self) -> Float[Array, ""]:
        """The root mean square of the mean prompts."""
        return jnp.sqrt(jnp.square(self.mean).mean())


def loss_of(decoder: ProSAM, case: Case) -> curvature.Loss:
    """Eq. 4 as a function of z, prompts being mu + rms z."""

    def loss(z: Float[Array, "q c"]) -> Float[Array, ""]:
        prompts = case.mean + case.rms * z
        logits = decoder.decode(case.embedding[None], prompts[None], case.truth.shape)
        return equations.mask_loss(logits, case.truth[None])

    return loss


def unit_noise(key: PRNGKeyArray, like: Float[Array, "q c"], k: int, sampler: str) -> Array:
    """K draws (k, q, c) whose coordinates have variance 1, whatever the sampler."""
    drawn = curvature.draw_displacements(key, jnp.ones_like(like), k, sampler=sampler, nu=NU)
    return drawn / curvature.noise_variance(sampler, NU, like.shape[-1]) ** 0.5


def proposition(
    loss: curvature.Loss,
    at: Float[Array, "q c"],
    key: PRNGKeyArray,
    shares: Float[Array, " s"],
    draws: int,
) -> dict[str, Array]:
    """Both sides of Proposition 1 at `at`.

    Args:
        loss: Of one episode.
        at: Where.
        key: Draws the noise.
        shares: Standard deviations of the noise.
        draws: Antithetic pairs of each noise.

    Returns:
        "gap" (noises, s), the measured mean of L(p + x) - L(p); "second" (noises), the mean of
        x^T H x / 2 for the same draws at s = 1; "laplacian" and "error" (), from other random
        vectors, by Hutch++; "loss" ().
    """
    gap, second = [], []
    for sampler in NOISES:
        x = unit_noise(key, at, draws, sampler)
        second.append(curvature.second_order(loss, at, x).mean())
        gap.append(jax.lax.map(lambda s, x=x: curvature.gaps(loss, at, s * x).mean(), shares))
    trace = curvature.hutch_plus_plus(loss, at, jax.random.fold_in(key, 1), 3 * (2 * draws // 3))
    return {
        "gap": jnp.stack(gap),
        "second": jnp.stack(second),
        "laplacian": trace.value,
        "error": trace.error,
        "loss": loss(at),
    }


def gap_of(loss: curvature.Loss, noise: Float[Array, "k q c"]) -> dict[str, Array]:
    """The gap that this noise opens at 0, what second derivatives predict for it, and the loss."""
    at = jnp.zeros_like(noise[0])
    return {
        "gap": curvature.gaps(loss, at, noise).mean(),
        "second": curvature.second_order(loss, at, noise).mean(),
        "loss": loss(at),
    }


def robustness(
    decoder: ProSAM, case: Case, key: PRNGKeyArray, levels: Float[Array, " l"], draws: int
) -> Integer[Array, "p l 4"]:
    """Pixels (`metrics.confusion`) of the masks of perturbed prompts, summed over the draws.

    Args:
        decoder: The model whose decoder is used.
        case: The episode.
        key: Draws the noise, which only grows from level to level.
        levels: Standard deviations of the Gaussian noise, relative to the prompts.
        draws: How many draws of noise.

    Returns:
        For both of `PATTERNS` and each level.
    """
    own = jax.random.normal(key, (draws, *case.mean.shape))
    one = jax.random.normal(jax.random.fold_in(key, 1), (draws, 1, case.mean.shape[-1]))
    noise = jnp.stack([own, jnp.broadcast_to(one, own.shape)])

    def counted(z: Float[Array, "q c"]) -> Array:
        prompts = case.mean + case.rms * z
        logits = decoder.decode(case.embedding[None], prompts[None], case.truth.shape)
        mask = equations.foreground(logits)
        return metrics.confusion(mask, case.truth[None], case.ignore[None])[0]

    z = levels[None, :, None, None, None] * noise[:, None]  # (p, l, draws, q, c)
    found = jax.lax.map(counted, z.reshape(-1, *case.mean.shape), batch_size=curvature.AT_ONCE)
    return found.reshape(*z.shape[:3], 4).sum(2)


def sharpness(
    loss: curvature.Loss,
    at: Float[Array, "q c"],
    key: PRNGKeyArray,
    share: float,
    products: int,
    draws: int,
) -> dict[str, Array]:
    """Scalars that say how flat the loss is at `at`.

    Args:
        loss: Of one episode.
        at: Where.
        key: Draws.
        share: Standard deviation of the noise of the gap.
        products: Products with the Hessian of the trace.
        draws: Antithetic pairs of the gap.

    Returns:
        "laplacian" and its standard "error" by Hutch++, "gap", "loss" and "slope", the norm of the
        gradient.
    """
    trace = curvature.hutch_plus_plus(loss, at, jax.random.fold_in(key, 1), products)
    value, gradient = jax.value_and_grad(loss)(at)
    x = share * jax.random.normal(key, (draws, *at.shape))
    return {
        "laplacian": trace.value,
        "error": trace.error,
        "gap": curvature.gaps(loss, at, x).mean(),
        "loss": value,
        "slope": jnp.linalg.norm(gradient),
    }


def stacked(found: Sequence[Any]) -> Any:
    """The results of several episodes, on the host, with a leading axis of episodes."""
    return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(list(found)))
