"""The paper's mathematics as pure functions, in the paper's order.

Equation numbers are those of ProSAM (ICCV 2025, arXiv 2506.21835). Eq. 1-3 are modules: SAM's
encoders (`sam`), SAM's decoder (`model.ProSAM.decode`) and the prompt encoder (`prompt`).
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
PRIOR_BLOCK = 512
"""Support positions that `cosine_prior` compares at a time."""

Aux = TypeVar("Aux")


# Eq. 2: the mask that logits M^ stand for.


@overload
def foreground(logits: Float[Array, "*b"]) -> Bool[Array, "*b"]: ...


@overload
def foreground(logits: Float[np.ndarray, "*b"]) -> Bool[np.ndarray, "*b"]: ...


def foreground(
    logits: Float[Array, "*b"] | Float[np.ndarray, "*b"],
) -> Bool[Array, "*b"] | Bool[np.ndarray, "*b"]:
    """Where a mask's logits are above 0, so its probability above 1/2: the one rule for masks.

    A logit of exactly 0 is background, as in segment_anything (masks > `Sam.mask_threshold`, which
    is 0.0) and in VRP-SAM's train.py (sigmoid > 0.5), where that holds for training and validation
    alike. Its n-shot `predict_mask_nshot` alone takes 0 as foreground (sigmoid >= 0.5).

    Args:
        logits: On a device or on the host; the mask stays there.
    """
    return logits > 0


# 8.1 Feature augmentation: what turns annotated features into a prototype and a pseudo mask.


def masked_average(
    features: Float[Array, "b h w c"], mask: Float[Array, "b h w"]
) -> Float[Array, "b c"]:
    """Average of the features inside the annotation, the prototype of 8.1.

    The denominator carries VRP-SAM's 5e-4, so an empty mask gives zeros.
    """
    total = jnp.einsum("bhwc,bhw->bc", features, mask)
    return total / (mask.sum((1, 2)) + 5e-4)[:, None]


def cosine_prior(
    query: Float[Array, "b h w c"],
    support: Float[Array, "b i j c"],
    weight: Float[Array, "b i j"],
) -> Float[Array, "b h w"]:
    """Greatest cosine similarity of each query position to any support position (8.1).

    Support positions outside the annotation have similarity 0 and are not compared: the annotated
    ones come first, in blocks of `PRIOR_BLOCK`, until those of every image of the batch are done.

    Args:
        query: High-level features of the target.
        support: The same of the reference, zero outside the annotation.
        weight: The annotation in [0, 1], by which a support position's similarities count.

    Returns:
        The pseudo mask in [0, 1]; zero everywhere if the annotation is empty. (Only signed
        features, such as DINOv2's, under an annotation of the whole image may make it negative.)
        As in VRP-SAM's code 1e-7 is added to the product of the norms and nothing is normalised
        afterwards.
    """
    b, h, w, c = query.shape
    query, support = (x.reshape(b, -1, c) for x in (query, support))
    weight = weight.reshape(b, -1)
    order = jnp.argsort(weight == 0, axis=1)  # the annotated ones first
    support = jnp.take_along_axis(support, order[..., None], axis=1)
    weight = jnp.take_along_axis(weight, order, axis=1)
    # The tiny floor keeps the gradient finite where a feature is zero; 1e-7 hides its value.
    lengths = [jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1), 1e-30)) for x in (query, support)]
    marked = (weight > 0).sum(1)
    block = min(PRIOR_BLOCK, weight.shape[1])

    def improved(best, start):
        # Beyond the end the slice begins earlier: what is compared twice changes no maximum.
        part, share, length = (
            jax.lax.dynamic_slice_in_dim(x, start, block, axis=1)
            for x in (support, weight, lengths[1])
        )
        products = jnp.einsum("bnc,bmc->bnm", query, part * share[..., None])
        norms = jnp.einsum("bn,bm->bnm", lengths[0], length)
        return jnp.maximum(best, (products / (norms + 1e-7)).max(-1))

    def step(best, start):
        kept = jax.lax.cond(start < marked.max(), improved, lambda best, _: best, best, start)
        return kept, None

    least = jnp.where(marked < weight.shape[1], 0.0, -jnp.inf).astype(query.dtype)
    best = jnp.broadcast_to(least[:, None], query.shape[:2])
    best, _ = jax.lax.scan(step, best, jnp.arange(0, weight.shape[1], block))
    return best.reshape(b, h, w)


def min_max(prior: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Each map stretched to [0, 1], the other reading of 8.1's "normalised"; flat maps give 0."""
    low = prior.min((1, 2), keepdims=True)
    high = prior.max((1, 2), keepdims=True)
    return (prior - low) / (high - low + 1e-7)


# Eq. 4: the loss of one mask.


def bce_loss(logits: Float[Array, "b h w"], target: Bool[Array, "b h w"]) -> Float[Array, ""]:
    """Binary cross-entropy, averaged over every pixel of the batch; stable at any logit."""
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


def scale(log_scale: Float[Array, "*b q c"], min_scale: float = 0.0) -> Float[Array, "*b q c"]:
    """Sigma = exp(log sigma) + min_scale; the floor is 0 in the paper."""
    return jnp.exp(log_scale) + min_scale


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
    min_scale: float = 0.0,
) -> Float[Array, "k b q c"]:
    """Eq. 6-7: k prompts from q(p | I_r, A_r, I_t).

    Raises:
        ValueError: The posterior has no scale (a deterministic variant), or there is no such
            sampler.
    """
    if posterior.log_scale is None:
        raise UserError("this posterior has no scale: a vrp variant cannot be sampled")
    noise = draw_noise(key, (k, *posterior.mean.shape), sampler, nu)
    return reparameterise(posterior.mean, scale(posterior.log_scale, min_scale), noise, nu)


# Eq. 8-10: the objective.


def monte_carlo(
    loss: Callable[[Float[Array, "b q c"]], tuple[Float[Array, ""], Aux]],
    prompts: Float[Array, "k b q c"],
    group: int,
) -> tuple[Float[Array, ""], Aux]:
    """Eq. 10: (1/K) sum_k L(D(F, p_k), M), the estimate of the expectation in Eq. 8-9.

    A `jax.vmap` over the samples of a group, one group after the other. What `loss` closes over,
    the image embedding above all, has no K axis and is not repeated. It is a mean of losses, never
    the loss of a mean mask.

    Gradients flow to the prompts only: those of a group are computed with its losses, so that no
    more than one group's activations are ever in memory, and nothing is computed twice. JAX
    refuses to differentiate in what `loss` closes over, and differentiates once only.

    Args:
        loss: Prompts of one sample -> (scalar loss, auxiliary arrays, which are constants).
        prompts: K samples.
        group: Samples at a time; any number, whatever K is.

    Returns:
        The mean loss, and the auxiliary arrays with a leading K axis.
    """
    group = min(group, len(prompts))

    @jax.custom_vjp
    def each(prompts):
        return jax.lax.map(loss, prompts, batch_size=group)

    def forward(prompts):
        return jax.lax.map(jax.value_and_grad(loss, has_aux=True), prompts, batch_size=group)

    def backward(grads, cotangents):
        of_losses, _ = cotangents
        return (of_losses[:, None, None, None] * grads,)

    each.defvjp(forward, backward)
    losses, aux = each(prompts)
    return losses.mean(), aux
