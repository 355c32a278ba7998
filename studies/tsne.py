"""t-SNE (van der Maaten and Hinton 2008), exact: for a few hundred points, without a dependency."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prosam_jax.errors import UserError

_SEARCHES = 60  # halvings of the interval of each point's precision
_STEPS, _EXAGGERATED = 1000, 250
_EXAGGERATION = 12.0


def squared_distances(x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """Squared Euclidean distances of all pairs, 0 on the diagonal."""
    lengths = jnp.square(x).sum(1)
    found = lengths[:, None] + lengths[None] - 2 * jnp.matmul(x, x.T, precision="highest")
    return jnp.maximum(found, 0) * (1 - jnp.eye(len(x)))


def affinities(distances: Float[Array, "n n"], perplexity: float) -> Float[Array, "n n"]:
    """p_ij: `conditional` made symmetric, of sum 1."""
    p = conditional(distances, perplexity)
    return (p + p.T) / (2 * len(p))


def conditional(distances: Float[Array, "n n"], perplexity: float) -> Float[Array, "n n"]:
    """p_j|i: rows of sum 1, 0 on the diagonal.

    Each row's Gaussian has the width at which the entropy of its neighbours is log(perplexity).

    Args:
        distances: Squared distances.
        perplexity: How many neighbours count, from 1 to n - 1.
    """
    n = len(distances)
    others = ~jnp.eye(n, dtype=bool)
    nearest = jnp.where(others, distances, jnp.inf).min(1, keepdims=True)
    typical = jnp.where(others, distances, 0).sum() / (n * (n - 1))
    scaled = (distances - nearest) / typical  # so that one interval serves all data

    def rows(log_precision: Float[Array, " n"]) -> Float[Array, "n n"]:
        weights = jnp.where(others, -jnp.exp(log_precision)[:, None] * scaled, -jnp.inf)
        return jax.nn.softmax(weights, axis=1)

    def halved(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        entropy = jax.scipy.special.entr(rows(middle)).sum(1)
        too_wide = entropy > jnp.log(perplexity)
        return jnp.where(too_wide, middle, low), jnp.where(too_wide, high, middle)

    ends = jnp.full(n, -20.0), jnp.full(n, 30.0)
    low, high = jax.lax.fori_loop(0, _SEARCHES, halved, ends)
    return rows((low + high) / 2)


def divergence(y: Float[Array, "n 2"], p: Float[Array, "n n"]) -> Float[Array, ""]:
    """KL(p || q), q_ij being proportional to 1 / (1 + |y_i - y_j|^2)."""
    others = 1 - jnp.eye(len(y))
    kernel = others / (1 + squared_distances(y))
    q = kernel / kernel.sum()
    return (jax.scipy.special.xlogy(p, p) - p * jnp.log(jnp.maximum(q, 1e-12))).sum()


def project(x: Float[np.ndarray, "n d"], perplexity: float = 30.0) -> Float[np.ndarray, "n 2"]:
    """Places points in the plane so that neighbours in `x` are neighbours there.

    Gradient descent with momentum and gains from the first two principal components, with p twelve
    times too large for the first quarter of the steps, as in scikit-learn. The result depends on
    `x` alone.

    Args:
        x: Points.
        perplexity: How many neighbours of a point count.

    Raises:
        UserError: There are not more points than three times the perplexity.
    """
    n = len(x)
    if n <= 3 * perplexity:
        raise UserError(
            f"t-SNE of {n} points needs a perplexity below {n / 3:g}, not {perplexity:g}"
        )
    centred = x - x.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    start = u[:, :2] * s[:2]
    start = jnp.asarray(start / start[:, 0].std() * 1e-4, jnp.float32)
    p = affinities(squared_distances(jnp.asarray(centred, jnp.float32)), perplexity)
    return np.asarray(_descended(start, p))


@jax.jit
def _descended(start: Float[Array, "n 2"], p: Float[Array, "n n"]) -> Float[Array, "n 2"]:
    rate = max(len(start) / _EXAGGERATION / 4, 50)

    def step(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, velocity, gain = state
        early = i < _EXAGGERATED
        gradient = jax.grad(divergence)(y, jnp.where(early, _EXAGGERATION, 1.0) * p)
        same = jnp.sign(gradient) == jnp.sign(velocity)
        gain = jnp.maximum(jnp.where(same, 0.8 * gain, gain + 0.2), 0.01)
        velocity = jnp.where(early, 0.5, 0.8) * velocity - rate * gain * gradient
        return y + velocity, velocity, gain

    zeros = jnp.zeros_like(start)
    return jax.lax.fori_loop(0, _STEPS, step, (start, zeros, jnp.ones_like(start)))[0]
