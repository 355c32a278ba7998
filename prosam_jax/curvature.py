"""Second derivatives of a loss with respect to prompts, and the gap of Proposition 1, measured.

Proposition 1: E L(p + x) - L(p) = s^2 / 2 Lap L(p) + o(s^2), for noise x of mean 0 and covariance
s^2 I. `equations.laplacian_penalised` is its plain form, with the whole Hessian. Nothing here holds
that matrix: a product with it costs a few gradients, and traces and eigenvalues need products
alone.

With a sigma of its own for each coordinate the gap is half the trace of H diag(sigma^2), half the
Laplacian of z -> L(p + sigma z) at 0. So no function here takes a sigma for its derivatives: it is
given that loss. A ReLU has no second derivative at its kink and counts as straight there.

A loss takes one array of any shape and is a pure function, so all but `eigenvalues` can be compiled
and mapped over episodes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.sparse import linalg

from prosam_jax import equations
from prosam_jax.config import check_choice

Loss = Callable[[Float[Array, "*n"]], Float[Array, ""]]

AT_ONCE = 8
"""How many products with the Hessian, or pairs of losses, are computed together."""


class Estimate(NamedTuple):
    """A mean over random draws and its standard error."""

    value: Float[Array, ""]
    error: Float[Array, ""]


def estimate(draws: Float[Array, " k"]) -> Estimate:
    """The mean of k independent draws; its standard error is NaN if k is 1."""
    return Estimate(draws.mean(), draws.std(ddof=1) / jnp.sqrt(len(draws)))


# Second derivatives.


def hessian_vector(
    loss: Loss, at: Float[Array, "*n"], vector: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """H v, H being the Hessian of the loss: forward mode over reverse (Pearlmutter 1994)."""
    return jax.jvp(jax.grad(loss), (at,), (vector,))[1]


def laplacian(loss: Loss, at: Float[Array, "*n"]) -> Float[Array, ""]:
    """The trace of the Hessian, exact: one product with H for each coordinate."""

    def diagonal(i: Array) -> Array:
        unit = jnp.zeros(at.size, at.dtype).at[i].set(1).reshape(at.shape)
        return jnp.vdot(unit, hessian_vector(loss, at, unit))

    return jax.lax.map(diagonal, jnp.arange(at.size), batch_size=AT_ONCE).sum()


def hutchinson(loss: Loss, at: Float[Array, "*n"], key: PRNGKeyArray, products: int) -> Estimate:
    """The Laplacian from v^T H v with random signs v (Hutchinson 1989), which is unbiased.

    Args:
        loss: Of one array.
        at: Where.
        key: Draws the signs.
        products: How many v, each a product with H.
    """
    signs = jax.random.rademacher(key, (products, *at.shape), at.dtype)
    return estimate(2 * second_order(loss, at, signs))


def hutch_plus_plus(
    loss: Loss, at: Float[Array, "*n"], key: PRNGKeyArray, products: int
) -> Estimate:
    """The Laplacian by Hutch++ (Meyer et al., arXiv 2010.09649, algorithm 1), which is unbiased.

    The trace is exact on a random subspace that holds the largest eigenvalues, and Hutchinson's
    estimate, with its standard error, outside it. So it is exact for an H of low rank, and better
    than `hutchinson` with as many products where few eigenvalues dominate.

    Args:
        loss: Of one array.
        at: Where.
        key: Draws the subspace and the signs.
        products: Products with H, of which a third (rounded down; at least 2 and at most n) is for
            each of three uses.
    """
    each = products // 3

    def times(vectors: Float[Array, "k n"]) -> Float[Array, "k n"]:
        def one(vector: Float[Array, " n"]) -> Float[Array, " n"]:
            return hessian_vector(loss, at, vector.reshape(at.shape)).ravel()

        return jax.lax.map(one, vectors, batch_size=AT_ONCE)

    first, second = (
        jax.random.rademacher(x, (each, at.size), at.dtype) for x in jax.random.split(key)
    )
    q, _ = jnp.linalg.qr(times(first).T)
    inside = jnp.vdot(q.T, times(q.T))
    outside = second - (second @ q) @ q.T
    rest = estimate((outside * times(outside)).sum(1))
    return Estimate(inside + rest.value, rest.error)


def eigenvalues(
    product: Callable[[Float[Array, "*n"]], Float[Array, "*n"]], at: Float[Array, "*n"], k: int
) -> Float[np.ndarray, " k"]:
    """The k eigenvalues of greatest absolute value, by implicitly restarted Lanczos (ARPACK).

    Args:
        product: v -> H v (`hessian_vector`), compiled by the caller, who can use it again.
        at: An array of the same shape and type as v.
        k: Fewer than there are coordinates.

    Returns:
        With their signs, the greatest absolute value first.

    Raises:
        scipy.sparse.linalg.ArpackNoConvergence: They were not found to the type's precision.
    """
    n, dtype = at.size, np.dtype(at.dtype)

    def matvec(v: np.ndarray) -> np.ndarray:
        return np.ravel(product(jnp.asarray(v.reshape(at.shape), dtype)))

    # SciPy's type hints have the signature of a subclass's constructor.
    operator = linalg.LinearOperator((n, n), matvec=matvec, dtype=dtype)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(n).astype(dtype)
    found = linalg.eigsh(operator, k, v0=start, return_eigenvectors=False)
    return found[np.argsort(-np.abs(found))]


# Proposition 1: noise, the gap it opens, and the gap that second derivatives predict.


def noise_variance(sampler: str, nu: float, n: int) -> float:
    """Variance of each coordinate of the noise of Eq. 6-7, in units of sigma^2.

    Coordinates of one prompt share delta and are uncorrelated all the same. It is 1 for "gaussian",
    nu / (nu - 2) for "student_t" and nu / (nu + n - 2) for "t3vae"; infinite if the denominator is
    not positive, and then Proposition 1 says nothing.

    Args:
        sampler: As for `equations.draw_noise`.
        nu: Degrees of freedom.
        n: Dimensions of a prompt.

    Raises:
        UserError: There is no such sampler.
    """
    check_choice("sampler", sampler, equations.SAMPLERS)
    if sampler == "gaussian":
        return 1.0
    freedom = nu + n if sampler == "t3vae" else nu
    return nu / (freedom - 2) if freedom > 2 else float("inf")


def draw_displacements(
    key: PRNGKeyArray, sigma: Float[Array, "*b q n"], k: int, *, sampler: str, nu: float
) -> Float[Array, "k *b q n"]:
    """K draws of x = p - mu, the noise of Eq. 6-7; the same key gives proportional x for s sigma.

    Raises:
        UserError: There is no such sampler.
    """
    noise = equations.draw_noise(key, (k, *sigma.shape), sampler, nu)
    return equations.reparameterise(jnp.zeros_like(sigma), sigma, noise, nu)


def gaps(
    loss: Loss, at: Float[Array, "*n"], displacements: Float[Array, "k *n"]
) -> Float[Array, " k"]:
    """(L(p + x) + L(p - x)) / 2 - L(p) for each displacement x.

    Their mean (`estimate`) is E L(p + x) - L(p) for symmetric noise. In such antithetic pairs the
    gradient cancels, so the standard error falls with s^2, as the gap does. The loss's rounding
    stays: a gap below about 1e-7 of the loss is not seen in float32.
    """
    here = loss(at)

    def one(x: Float[Array, "*n"]) -> Float[Array, ""]:
        # Differences first: a sum of losses would lose a bit of the gap.
        return ((loss(at + x) - here) + (loss(at - x) - here)) / 2

    return jax.lax.map(one, displacements, batch_size=AT_ONCE)


def second_order(
    loss: Loss, at: Float[Array, "*n"], displacements: Float[Array, "k *n"]
) -> Float[Array, " k"]:
    """x^T H x / 2 for each displacement x: what `gaps` are up to the fourth order.

    With the same displacements, the mean of `gaps` less these is the remainder of Proposition 1,
    with a far smaller standard error than either.
    """

    def one(x: Float[Array, "*n"]) -> Float[Array, ""]:
        return jnp.vdot(x, hessian_vector(loss, at, x)) / 2

    return jax.lax.map(one, displacements, batch_size=AT_ONCE)
