"""Faster forms of two functions of `equations`, under the same names; the model calls these.

`cosine_prior` compares annotated positions only, on a CPU. With a fifth of a 512 x 512 reference
annotated, that saves 102 of the pseudo mask's 137 GFLOP. With all of it annotated, it saves
nothing, and its gradient, which training does not need, takes more memory than the plain one's.

`monte_carlo` computes the gradients of a group of samples with their losses and keeps nothing else
of them. On a CPU a training step with K = 10 takes 1.7 GB in groups of 2, 5.5 GB with all 10
together, and a quarter less time.

`docs/performance.md` has these measurements; `tests/test_equations_fast.py` compares both with the
plain formulas, values and gradients.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prosam_jax import equations, platforms
from prosam_jax.equations import Aux, norm

PRIOR_BLOCK = 512
"""Reference positions that `cosine_prior` compares at a time."""


def cosine_prior(
    target: Float[Array, "b h w c"],
    reference: Float[Array, "b i j c"],
    weight: Float[Array, "b i j"],
) -> Float[Array, "b h w"]:
    """The pseudo mask of 8.1; arguments and result are those of `equations.cosine_prior`.

    Off a CPU it is the plain formula: the products are fast there, and a decision before each
    block is not.
    """
    of_annotated = functools.partial(_of_annotated, block=PRIOR_BLOCK)
    return platforms.by_platform(
        lambda *maps, form: form(*maps),
        target,
        reference,
        weight,
        form={"cpu": of_annotated, "default": equations.cosine_prior},
    )


def _of_annotated(
    target: Float[Array, "b h w c"],
    reference: Float[Array, "b i j c"],
    weight: Float[Array, "b i j"],
    *,
    block: int,
) -> Float[Array, "b h w"]:
    """The pseudo mask without the positions outside the annotation, whose similarity is 0.

    The annotated ones are moved to the front and compared in blocks, until those of every image of
    the batch are done. Where several positions share the greatest similarity, the gradient may be
    divided among them differently.
    """
    b, h, w, c = target.shape
    target, reference = (x.reshape(b, -1, c) for x in (target, reference))
    weight = weight.reshape(b, -1)
    order = jnp.argsort(weight == 0, axis=1)  # the annotated ones first
    reference = jnp.take_along_axis(reference, order[..., None], axis=1)
    weight = jnp.take_along_axis(weight, order, axis=1)
    lengths = [norm(x) for x in (target, reference)]
    annotated = (weight > 0).sum(1)
    block = min(block, weight.shape[1])

    def improved(best, start):
        # At the end the slice begins earlier; comparing some twice does not change the maximum.
        part, share, length = (
            jax.lax.dynamic_slice_in_dim(x, start, block, axis=1)
            for x in (reference, weight, lengths[1])
        )
        products = jnp.einsum("bnc,bmc->bnm", target, part * share[..., None])
        norms = jnp.einsum("bn,bm->bnm", lengths[0], length)
        return jnp.maximum(best, (products / (norms + 1e-7)).max(-1))

    def step(best, start):
        kept = jax.lax.cond(start < annotated.max(), improved, lambda best, _: best, best, start)
        return kept, None

    least = jnp.where(annotated < weight.shape[1], 0.0, -jnp.inf).astype(target.dtype)
    best = jnp.broadcast_to(least[:, None], target.shape[:2])
    best, _ = jax.lax.scan(step, best, jnp.arange(0, weight.shape[1], block))
    return best.reshape(b, h, w)


def monte_carlo(
    loss: Callable[[Float[Array, "b q c"]], tuple[Float[Array, ""], Aux]],
    prompts: Float[Array, "k b q c"],
    group: int,
) -> tuple[Float[Array, ""], Aux]:
    """Eq. 10, as `equations.monte_carlo`, for `group` samples at a time.

    A `jax.vmap` over the samples of a group, one group after the other. What `loss` closes over,
    such as the image embedding, has no K axis and is not repeated.

    Gradients flow to the prompts only. Those of a group are computed with its losses, so no more
    than one group's activations are in memory at a time, and nothing is computed twice. JAX
    refuses gradients of what `loss` closes over, and second derivatives.

    Args:
        loss: Prompts of one sample -> (scalar loss, auxiliary arrays, which are constants).
        prompts: K samples.
        group: Samples at a time; it need not divide K.

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
