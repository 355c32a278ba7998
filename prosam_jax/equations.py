"""The paper's equations as pure functions, each in its plain form, in the paper's order.

Equations and sections are those of ProSAM (ICCV 2025, arXiv 2506.21835). The module is written for
reading. Two functions have a faster form of the same name in `equations_fast`, which the model
calls.

| paper | states | function |
|---|---|---|
| Eq. 1 | F = E_img(I_t), p = E_prompt(prompts) | SAM's modules: `sam.model.Sam.encode_image`, |
| | | `Sam.prompt_encoder` |
| Eq. 2 | M^ = D(F, p) | a method: `model.ProSAM.decode`; M^ as a mask: `foreground` |
| Eq. 3 | p = g(F'_r, F'_t) | a module: `prompt.encoder.ReferencePromptEncoder` |
| Eq. 4 | L = BCE(M^, M) + Dice(M^, M) | `mask_loss`, of `bce_loss` and `dice_loss` |
| Eq. 5 | q(p) = t_n(mu, diag(sigma^2), nu) | `student_t_log_prob`; sigma: `scale` |
| Eq. 6 | eps ~ N(0, I_n), delta ~ chi^2(nu) | `draw_noise` |
| Eq. 7 | p = mu + sigma eps sqrt(nu / delta) | `reparameterise`; after Eq. 6: `sample_prompts` |
| Eq. 8-9 | minimise E_{p ~ q} L(D(F, p), M) | an integral, estimated by Eq. 10 |
| Eq. 10 | (1/K) sum_k L(D(F, p_k), M) | `monte_carlo`; faster: `equations_fast` |
| Prop. 1, | E L(mu + xi) = L(mu) + s^2 / 2 Lap L(mu) + o(s^2), | `laplacian_penalised` |
| Eq. 11-13 | E xi = 0, Cov xi = s^2 I | |
| 8.1 | prototype, pseudo mask | `masked_average`, `cosine_prior` (faster: |
| | | `equations_fast`), `min_max` |
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from prosam_jax.config import check_choice
from prosam_jax.errors import UserError
from prosam_jax.types import Posterior

SAMPLERS = ("gaussian", "student_t", "t3vae")

Aux = TypeVar("Aux")


# Eq. 2: from logits M^ to a mask.


@overload
def foreground(logits: Float[Array, "*b"]) -> Bool[Array, "*b"]: ...


@overload
def foreground(logits: Float[np.ndarray, "*b"]) -> Bool[np.ndarray, "*b"]: ...


def foreground(
    logits: Float[Array, "*b"] | Float[np.ndarray, "*b"],
) -> Bool[Array, "*b"] | Bool[np.ndarray, "*b"]:
    """Where a mask's logits are above 0, that is its probability above 1/2.

    Every mask of this library follows this rule. A logit of exactly 0 is background, as in
    segment_anything (masks > `Sam.mask_threshold`, which is 0.0) and in the training and validation
    of VRP-SAM's train.py (sigmoid > 0.5). Only its n-shot `predict_mask_nshot` counts 0 as
    foreground (sigmoid >= 0.5).

    Args:
        logits: On a device or on the host; the mask is in the same place.
    """
    return logits > 0


# Eq. 4: the loss of one mask.


def bce_loss(logits: Float[Array, "b h w"], target: Bool[Array, "b h w"]) -> Float[Array, ""]:
    """Binary cross-entropy, averaged over all pixels of the batch; stable for any logit."""
    return optax.sigmoid_binary_cross_entropy(logits, target.astype(logits.dtype)).mean()


def dice_loss(logits: Float[Array, "b h w"], target: Bool[Array, "b h w"]) -> Float[Array, ""]:
    """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) for each image, averaged over the batch."""
    p = jax.nn.sigmoid(logits)
    t = target.astype(logits.dtype)
    overlap = (p * t).sum((1, 2))
    return (1 - (2 * overlap + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)).mean()


def mask_loss(logits: Float[Array, "b h w"], target: Bool[Array, "b h w"]) -> Float[Array, ""]:
    """Eq. 4: L = BCE(M^, M) + Dice(M^, M)."""
    return bce_loss(logits, target) + dice_loss(logits, target)


# Eq. 5-7: the distribution over prompts.


def scale(log_scale: Float[Array, "*b q c"]) -> Float[Array, "*b q c"]:
    """Sigma = exp(log sigma)."""
    return jnp.exp(log_scale)


def student_t_log_prob(
    p: Float[Array, "*b n"], mean: Float[Array, "*b n"], sigma: Float[Array, "*b n"], nu: float
) -> Float[Array, "*b"]:
    """Eq. 5: log density of t_n(mu, diag(sigma^2), nu), one n-dimensional vector at a time."""
    n = p.shape[-1]
    distance = jnp.square((p - mean) / sigma).sum(-1)
    return (
        jax.lax.lgamma((nu + n) / 2)
        - jax.lax.lgamma(nu / 2)
        - n / 2 * jnp.log(nu * jnp.pi)
        - jnp.log(sigma).sum(-1)
        - (nu + n) / 2 * jnp.log1p(distance / nu)
    )


class Noise(NamedTuple):
    """Eq. 6: eps ~ N(0, I_n) and delta ~ chi^2, one delta for each prompt vector."""

    eps: Float[Array, "*b q n"]
    delta: Float[Array, "*b q 1"] | None


def draw_noise(key: PRNGKeyArray, shape: tuple[int, ...], sampler: str, nu: float) -> Noise:
    """Eq. 6: the two independent sources of randomness.

    Args:
        key: Its two halves draw eps and delta.
        shape: (..., q, n), prompts of n dimensions.
        sampler: "gaussian" has no delta; "student_t" draws it from chi^2(nu); "t3vae" from
            chi^2(nu + n), the posterior of Kim et al. (arXiv 2312.01133).
        nu: Degrees of freedom.
    """
    check_choice("sampler", sampler, SAMPLERS)
    eps_key, delta_key = jax.random.split(key)
    eps = jax.random.normal(eps_key, shape)
    if sampler == "gaussian":
        return Noise(eps, None)
    freedom = nu + shape[-1] if sampler == "t3vae" else nu
    return Noise(eps, jax.random.chisquare(delta_key, freedom, (*shape[:-1], 1)))


def reparameterise(
    mean: Float[Array, "*b q n"], sigma: Float[Array, "*b q n"], noise: Noise, nu: float
) -> Float[Array, "*k b q n"]:
    """Eq. 7: p = mu + sigma * eps * sqrt(nu / delta), differentiable in mu and sigma.

    Without delta it is the Gaussian's p = mu + sigma * eps (Table 4).
    """
    eps = noise.eps if noise.delta is None else noise.eps * jnp.sqrt(nu / noise.delta)
    lead = (1,) * (eps.ndim - mean.ndim)
    return mean.reshape(*lead, *mean.shape) + sigma.reshape(*lead, *sigma.shape) * eps


def sample_prompts(
    key: PRNGKeyArray,
    posterior: Posterior,
    k: int,
    *,
    sampler: str,
    nu: float,
) -> Float[Array, "k b q c"]:
    """Eq. 6-7: k prompts from q(p | I_r, A_r, I_t).

    Raises:
        UserError: The posterior has no scale (a deterministic variant), or there is no such
            sampler.
    """
    if posterior.log_scale is None:
        raise UserError("this posterior has no scale: a vrp variant cannot be sampled")
    noise = draw_noise(key, (k, *posterior.mean.shape), sampler, nu)
    return reparameterise(posterior.mean, scale(posterior.log_scale), noise, nu)


# Eq. 8-10: the objective.


def monte_carlo(
    loss: Callable[[Float[Array, "b q c"]], tuple[Float[Array, ""], Aux]],
    prompts: Float[Array, "k b q c"],
) -> tuple[Float[Array, ""], Aux]:
    """Eq. 10: (1/K) sum_k L(D(F, p_k), M), p_k ~ q.

    It estimates the expected loss E_{p ~ q} L(D(F, p), M), which Eq. 8-9 minimise over the prompt
    encoder: an integral over prompts without a closed form. It is a mean of losses, not the loss of
    a mean mask.

    Args:
        loss: Prompts of one sample -> (scalar loss, auxiliary arrays).
        prompts: K samples (`sample_prompts`).

    Returns:
        The mean loss, and the auxiliary arrays with a leading K axis.
    """
    losses, aux = jax.vmap(loss)(prompts)
    return losses.mean(), aux


# Proposition 1 and Eq. 11-13: why noise favours flat minima.


def laplacian_penalised(
    loss: Callable[[Float[Array, " n"]], Float[Array, ""]], mean: Float[Array, " n"], s: float
) -> Float[Array, ""]:
    """Eq. 13: L(mu) + s^2 / 2 Lap L(mu), Lap L being the trace of the Hessian of L.

    By Proposition 1 that is E L(mu + xi) up to o(s^2), for noise xi of mean 0 and covariance
    s^2 I, such as s eps of Eq. 6. Training does not use it: Eq. 10 needs no second derivatives.

    Args:
        loss: Twice continuously differentiable.
        mean: mu.
        s: Standard deviation of the noise.
    """
    return loss(mean) + s**2 / 2 * jnp.trace(jax.hessian(loss)(mean))


# 8.1 Feature augmentation: from annotated features to a prototype and a pseudo mask.


def masked_average(
    features: Float[Array, "b h w c"], mask: Float[Array, "b h w"]
) -> Float[Array, "b c"]:
    """Average of the features inside the annotation, the prototype of 8.1.

    As in VRP-SAM 5e-4 is added to the denominator, so an empty mask gives zeros.
    """
    total = jnp.einsum("bhwc,bhw->bc", features, mask)
    return total / (mask.sum((1, 2)) + 5e-4)[:, None]


def cosine_prior(
    target: Float[Array, "b h w c"],
    reference: Float[Array, "b i j c"],
    weight: Float[Array, "b i j"],
) -> Float[Array, "b h w"]:
    """Greatest cosine similarity of each target position to any reference position (8.1).

    Args:
        target: High-level features of the target.
        reference: High-level features of the reference, zero outside the annotation.
        weight: The annotation in [0, 1], which multiplies the similarities of each reference
            position: outside the annotation they are 0.

    Returns:
        The pseudo mask in [0, 1]; zero everywhere if the annotation is empty. (It can be
        negative only with signed features, such as DINOv2's, and the whole image annotated.) As in
        VRP-SAM's code, 1e-7 is added to the product of the norms and nothing is normalised
        afterwards.
    """
    products = jnp.einsum("bhwc,bijc,bij->bhwij", target, reference, weight)
    norms = jnp.einsum("bhw,bij->bhwij", norm(target), norm(reference))
    return (products / (norms + 1e-7)).max((3, 4))


def norm(x: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """Euclidean length of each feature vector.

    A tiny floor keeps the gradient finite where all features are zero; next to the prior's 1e-7 its
    value does not matter.
    """
    return jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1), 1e-30))


def min_max(prior: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Each map stretched to [0, 1], another reading of 8.1's "normalised"; flat maps give 0."""
    low = prior.min((1, 2), keepdims=True)
    high = prior.max((1, 2), keepdims=True)
    return (prior - low) / (high - low + 1e-7)
