"""Noise for Eq. 10 that is drawn more evenly than the paper's, and a prior for its scale.

None of this is in the paper; `distribution.draws`, `shared_delta` and `prior_weight` choose it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from prosam_jax import equations
from prosam_jax.config import DRAWS, check_choice
from prosam_jax.equations import Noise


def root_mean_square(mean: Float[Array, "*b c"]) -> Float[Array, "*b 1"]:
    """Root mean square of the coordinates of each prompt; a tiny floor keeps its log finite."""
    return jnp.sqrt(jnp.square(mean).mean(-1, keepdims=True) + 1e-12)


def draw_noise(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    sampler: str,
    nu: float,
    *,
    draws: str = "independent",
    shared_delta: bool = False,
) -> Noise:
    """Eq. 6 for K samples together. Each alone has the distribution of `equations.draw_noise`.

    Args:
        key: Draws everything. With "independent" draws and no shared delta the noise is exactly
            that of `equations.draw_noise`.
        shape: (K, ..., q, n).
        sampler: As for `equations.draw_noise`.
        nu: Degrees of freedom.
        draws: "independent"; "antithetic": pairs of opposite eps with the same delta, and the last
            of an odd K without its partner; "stratified": eps is a Latin hypercube (McKay et al.
            1979), with one of the K samples in each of K equally likely intervals of every
            coordinate, and delta is independent.
        shared_delta: Whether all q prompts of a sample share one delta.

    Raises:
        UserError: There is no such sampler, or no such way to draw.
    """
    check_choice("draws", draws, DRAWS)
    k = shape[0]
    drawn = ((k + 1) // 2, *shape[1:]) if draws == "antithetic" else shape
    noise = equations.draw_noise(key, drawn, sampler, nu)
    if draws == "stratified":
        noise = noise._replace(eps=_latin_hypercube(key, shape))
    if shared_delta and noise.delta is not None:
        first = noise.delta[..., :1, :]
        noise = noise._replace(delta=jnp.broadcast_to(first, noise.delta.shape))
    if draws == "antithetic":
        eps = jnp.concatenate([noise.eps, -noise.eps])[:k]
        delta = noise.delta
        noise = Noise(eps, None if delta is None else jnp.concatenate([delta, delta])[:k])
    return noise


def _latin_hypercube(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "k *b q n"]:
    order_key, place_key = jax.random.split(jax.random.fold_in(key, 1))
    order = jnp.argsort(jax.random.uniform(order_key, shape), axis=0)
    quantile = (order + jax.random.uniform(place_key, shape)) / shape[0]
    half = jnp.finfo(quantile.dtype).eps / 2  # rounding may give 0 or 1, whose quantiles are inf
    return jax.scipy.special.ndtri(jnp.clip(quantile, half, 1 - half))


def kl_to_prior(
    prompts: Float[Array, "k b q n"],
    mean: Float[Array, "b q n"],
    sigma: Float[Array, "b q n"],
    prior_scale: float,
    *,
    sampler: str,
    nu: float,
) -> Float[Array, ""]:
    """Divergence KL(q || prior) of each prompt, per dimension; the mean over prompts.

    The prior has the mean of q and one scale for all coordinates, s times the root mean square of
    the mean: a Gaussian for a Gaussian q and t_n(mu, (s rms(mu))^2 I, nu) for the others, as the
    prior of t3VAE (Kim et al., arXiv 2312.01133). Multiplying a prompt and its sigma by a number
    does not change it. For a Gaussian it is exact; otherwise it is estimated from the samples.

    Args:
        prompts: Samples of q.
        mean: mu.
        sigma: As in Eq. 7.
        prior_scale: s.
        sampler: What q is, as for `equations.draw_noise`.
        nu: Degrees of freedom of the prior, and of a "student_t" q.
    """
    n = mean.shape[-1]
    width = jnp.broadcast_to(prior_scale * root_mean_square(mean), mean.shape)
    if sampler == "gaussian":
        ratio = jnp.square(sigma / width)
        return (ratio - 1 - jnp.log(ratio)).mean() / 2
    freedom, shrunk = nu, sigma
    if sampler == "t3vae":
        freedom, shrunk = nu + n, sigma * jnp.sqrt(nu / (nu + n))

    def log_ratio(p: Float[Array, "b q n"]) -> Float[Array, "b q"]:
        of_q = equations.student_t_log_prob(p, mean, shrunk, freedom)
        return of_q - equations.student_t_log_prob(p, mean, width, nu)

    return jax.vmap(log_ratio)(prompts).mean() / n
