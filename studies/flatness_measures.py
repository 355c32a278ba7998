"""What `studies.flatness` measures on one episode of one run, compiled once for all of them.

Lengths are relative to the root mean square of the episode's mean prompts: the losses are those of
z -> L(mu + rms z), so a perturbation of 20 % is one whose coordinates z have a standard deviation
of 0.2, and the Laplacian of that loss is the trace of H times rms^2.
"""

from collections.abc import Callable, Sequence
from functools import partial
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
PATTERNS = ("own", "shared", "absolute")
"""Noise of its own on every prompt, one vector of noise added to all prompts, and the first with
the same standard deviation for every model, in the prompts' own units instead of their rms."""

NODES = 4
"""Points of the integral in `smooth_gap`."""


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


def gaps_and_second(
    gap: Callable[[Array, Array], Array],
    second: Callable[[Array], Array],
    key: PRNGKeyArray,
    like: Float[Array, "q c"],
    shares: Float[Array, " s"],
    draws: int,
) -> dict[str, Array]:
    """Both sides of Proposition 1 for the same draws of noise, which is scaled by each share.

    Args:
        gap: (noise (k, q, c), shares) -> mean of L(p + s x) - L(p) over the noise x, for each s.
        second: noise -> x^T H x / 2 of each.
        key: Draws the noise.
        like: Shape of the prompts.
        shares: Standard deviations of the noise.
        draws: Antithetic pairs of each noise.

    Returns:
        "gap" (noises, s), measured; "second" (noises), whose products with s^2 are predicted.
    """
    noises = [unit_noise(key, like, draws, sampler) for sampler in NOISES]
    return {
        "gap": jnp.stack([gap(x, shares) for x in noises]),
        "second": jnp.stack([second(x).mean() for x in noises]),
    }


def gap_at(
    loss: curvature.Loss, noise: Float[Array, "k q c"], shares: Float[Array, " s"]
) -> Float[Array, " s"]:
    """Mean of L(s x) - L(0) over antithetic pairs of the noise x, for each s."""
    at = jnp.zeros_like(noise[0])
    return jax.lax.map(lambda s: curvature.gaps(loss, at, s * noise).mean(), shares)


def smooth_gap(
    loss: curvature.Loss, noise: Float[Array, "k q c"], shares: Float[Array, " s"]
) -> Float[Array, " s"]:
    """The part of `gap_at` that second derivatives along the way account for.

    For a loss with two derivatives it is all: by Taylor's formula L(x) - L(0) - x^T grad L(0) is
    the integral over u, from 0 to 1, of (1 - u) x^T H(u x) x. A ReLU's kink adds to the gap, but
    its H is 0 on both sides. The integral is by Gauss and Legendre with `NODES` values of u.
    """
    points, weights = np.polynomial.legendre.leggauss(NODES)
    u = jnp.asarray((points + 1) / 2, noise.dtype)
    weight = jnp.asarray(weights, noise.dtype) / 2 * (1 - u)

    def one(s: Array, x: Array, u: Array) -> Array:
        return jnp.vdot(x, curvature.hessian_vector(loss, s * u * x, x))

    def of_share(s: Array) -> Array:
        both = jnp.concatenate([noise, -noise])
        x, at = jnp.repeat(both, NODES, 0), jnp.tile(u, len(both))
        found = jax.lax.map(lambda of: one(s, *of), (x, at), batch_size=curvature.AT_ONCE)
        return s**2 * (found * jnp.tile(weight, len(both))).sum() / len(both)

    return jax.lax.map(of_share, shares)


def laplacian_of(
    second: Callable[[Float[Array, "k q c"]], Float[Array, " k"]],
    like: Float[Array, "q c"],
    at_once: int,
) -> float:
    """The exact Laplacian from `second`, which gives half of each element of the diagonal."""
    n, total = like.size, 0.0
    for start in range(0, n, at_once):
        # Past the end one_hot gives zeros, whose product is 0.
        units = jax.nn.one_hot(start + np.arange(at_once), n)
        total += 2 * float(second(units.reshape(at_once, *like.shape)).sum())
    return total


def counts_at(
    decoder: ProSAM, case: Case, z: Float[Array, "q c"] | None = None
) -> Integer[Array, "4"]:
    """Pixels (`metrics.confusion`) of the mask of mu + rms z, or of mu."""
    prompts = case.mean if z is None else case.mean + case.rms * z
    logits = decoder.decode(case.embedding[None], prompts[None], case.truth.shape)
    mask = equations.foreground(logits)
    return metrics.confusion(mask, case.truth[None], case.ignore[None])[0]


def robustness(
    decoder: ProSAM, case: Case, key: PRNGKeyArray, levels: Float[Array, " l"], draws: int
) -> Integer[Array, "p l 4"]:
    """Pixels (`metrics.confusion`) of the masks of perturbed prompts, summed over the draws.

    Args:
        decoder: The model whose decoder is used.
        case: The episode.
        key: Draws the noise, which only grows from level to level.
        levels: Standard deviations of the Gaussian noise, relative to the prompts' rms, or for
            "absolute" to 1.
        draws: How many draws of noise.

    Returns:
        For each of `PATTERNS` and each level.
    """
    own = jax.random.normal(key, (draws, *case.mean.shape))
    one = jax.random.normal(jax.random.fold_in(key, 1), (draws, 1, case.mean.shape[-1]))
    noise = jnp.stack([own, jnp.broadcast_to(one, own.shape), own / case.rms])

    counted = partial(counts_at, decoder, case)
    z = levels[None, :, None, None, None] * noise[:, None]  # (p, l, draws, q, c)
    found = jax.lax.map(counted, z.reshape(-1, *case.mean.shape), batch_size=curvature.AT_ONCE)
    return found.reshape(*z.shape[:3], 4).sum(2)


def sharpness(
    loss: curvature.Loss, at: Float[Array, "q c"], key: PRNGKeyArray, products: int
) -> dict[str, Array]:
    """Scalars that say how flat the loss is at `at`.

    Args:
        loss: Of one episode.
        at: Where.
        key: Draws.
        products: Products with the Hessian, for the trace.

    Returns:
        "laplacian" and its standard "error" by Hutch++, "loss", and "slope", the gradient's norm.
    """
    trace = curvature.hutch_plus_plus(loss, at, key, products)
    value, gradient = jax.value_and_grad(loss)(at)
    return {
        "laplacian": trace.value,
        "error": trace.error,
        "loss": value,
        "slope": jnp.linalg.norm(gradient),
    }


def stacked(found: Sequence[Any]) -> Any:
    """The results of several episodes, on the host, with a leading axis of episodes."""
    return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(list(found)))
