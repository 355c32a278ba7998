"""Gradient descent on SAM's prompts for one picture and mask (section 5.3), from many starts.

What is learned is a set of prompts, or a distribution over sets (mean and log-scale), directly: no
prompt encoder takes part. Everything is a pure function and can be compiled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from prosam_jax import equations, equations_fast, resize
from prosam_jax.sam.model import Sam
from prosam_jax.types import Posterior

Loss = Callable[[Any, PRNGKeyArray], Float[Array, ""]]
"""Takes what is learned, and a key for its noise, if it has any."""


class Rule(NamedTuple):
    """How to descend, and when to stop; the defaults are the paper's (sections 5.1 and 5.3).

    Attributes:
        rate: AdamW's learning rate, which stays as it is; a number, or one for each array that is
            learned, such as Posterior(1.0, 0.1).
        decay: AdamW's weight decay.
        tolerance: By how much the loss must fall below the last one that did to be an improvement.
        patience: After so many steps without an improvement the descent stops.
        most: It also stops when it has computed so many losses. The paper names no such limit.
    """

    rate: Any = 1e-4
    decay: float = 1e-6
    tolerance: float = 3e-4
    patience: int = 100
    most: int = 5000


class Progress(NamedTuple):
    """What the stop rule remembers: the last improvement's loss, and the steps since."""

    best: Float[Array, ""]
    since: Int32[Array, ""]


def begun() -> Progress:
    """Before the first loss."""
    return Progress(jnp.asarray(jnp.inf), jnp.asarray(0, jnp.int32))


def advanced(progress: Progress, loss: Float[Array, ""], rule: Rule) -> Progress:
    """After one more loss; a loss that is NaN is no improvement."""
    improved = loss < progress.best - rule.tolerance
    return Progress(
        jnp.where(improved, loss, progress.best), jnp.where(improved, 0, progress.since + 1)
    )


def is_over(progress: Progress, rule: Rule) -> Bool[Array, ""]:
    """Whether the loss has not improved for `rule.patience` steps."""
    return progress.since >= rule.patience


class Found(NamedTuple):
    """Where n descents ended.

    Attributes:
        at: What was learned, with an axis of n in front.
        loss: The last loss, that of `at`; with noise, of a single draw.
        losses: How many losses each computed; it took one step fewer.
        over: Whether the stop rule ended it, and not the limit `Rule.most`.
    """

    at: Any
    loss: Float[Array, " n"]
    losses: Int32[Array, " n"]
    over: Bool[Array, " n"]


class _Lane(NamedTuple):
    """One of the descents that go on side by side; `index` n or more: there was no start left."""

    index: Int32[Array, ""]
    at: Any
    optimiser: Any
    progress: Progress
    losses: Int32[Array, ""]


def descend(loss: Loss, starts: Any, keys: PRNGKeyArray, rule: Rule, *, lanes: int = 4) -> Found:
    """Descends from each start until the stop rule ends it.

    A few descents go on side by side. One that is over makes room for the next start at once, so
    that none waits for the slowest, as it would in a `vmap` of whole descents.

    Args:
        loss: What is minimised.
        starts: A tree of arrays with an axis of n in front.
        keys: n keys (`jax.random.key`). Step i of a descent draws its noise with fold_in(key, i).
        rule: Rate and stop rule.
        lanes: How many go on side by side; it only affects time and memory.
    """
    n, rates = len(keys), rule.rate
    if isinstance(rates, float | int):
        rates = jax.tree.map(lambda _: rule.rate, starts)
    optimiser = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(rule.decay))  # AdamW

    def fresh(index: Array) -> _Lane:
        at = jax.tree.map(lambda x: x[jnp.minimum(index, n - 1)], starts)
        return _Lane(index, at, optimiser.init(at), begun(), jnp.asarray(0, jnp.int32))

    def step(lane: _Lane) -> tuple[_Lane, Found]:
        key = jax.random.fold_in(keys[jnp.minimum(lane.index, n - 1)], lane.losses)
        value, gradient = jax.value_and_grad(loss)(lane.at, key)
        progress, losses = advanced(lane.progress, value, rule), lane.losses + 1
        updates, state = optimiser.update(gradient, lane.optimiser, lane.at)
        moved = jax.tree.map(lambda x, rate, by: x - rate * by, lane.at, rates, updates)
        found = Found(lane.at, value, losses, is_over(progress, rule))
        return _Lane(lane.index, moved, state, progress, losses), found

    def turn(state: tuple[_Lane, Array, Found]) -> tuple[_Lane, Array, Found]:
        side, begun_so_far, ended = state
        side, found = jax.vmap(step)(side)
        done = found.over | (found.losses >= rule.most)
        place = jnp.where(done, side.index, n)  # n is outside: nothing is written
        ended = jax.tree.map(lambda all, x: all.at[place].set(x, mode="drop"), ended, found)
        following = begun_so_far + jnp.cumsum(done, dtype=jnp.int32) - 1
        side = jax.tree.map(
            lambda new, old: jnp.where(done.reshape(-1, *(1,) * (old.ndim - 1)), new, old),
            jax.vmap(fresh)(jnp.where(done, following, side.index)),
            side,
        )
        return side, begun_so_far + done.sum(dtype=jnp.int32), ended

    first = min(lanes, n)
    nothing = Found(
        jax.tree.map(jnp.zeros_like, starts),
        jnp.zeros(n),
        jnp.zeros(n, jnp.int32),
        jnp.zeros(n, bool),
    )
    state = jax.vmap(fresh)(jnp.arange(first, dtype=jnp.int32)), jnp.asarray(first), nothing
    return jax.lax.while_loop(lambda state: (state[0].index < n).any(), turn, state)[2]


# What is minimised, for one picture and mask.


class Pair(NamedTuple):
    """A picture, as SAM embeds it, and the true mask of an object in it."""

    embedding: Float[Array, "1 i j c"]
    mask: Bool[Array, "1 h w"]


def logits(sam: Sam, pair: Pair, prompts: Float[Array, "q c"]) -> Float[Array, "1 h w"]:
    """Eq. 2 for one set of prompts, as `ProSAM.decode` has it, at the mask's size."""
    sparse, dense = sam.prompt_encoder(prompts=prompts[None])
    low_res, _ = sam.decode(pair.embedding, sparse, dense)
    _, h, w = pair.mask.shape
    return resize.bilinear_map(low_res[:, 0], (h, w))


def loss_of_set(sam: Sam, pair: Pair) -> Loss:
    """Eq. 4 of a set of prompts (q, c); it has no noise."""

    def loss(prompts: Float[Array, "q c"], key: PRNGKeyArray) -> Float[Array, ""]:
        del key
        return equations.mask_loss(logits(sam, pair, prompts), pair.mask)

    return loss


def loss_of_distribution(sam: Sam, pair: Pair, samples: int, nu: float, group: int) -> Loss:
    """Eq. 10 of a Student-t distribution: a `Posterior` of arrays (1, q, c), for `samples` draws.

    Args:
        sam: Frozen.
        pair: Picture and mask.
        samples: K.
        nu: Degrees of freedom.
        group: Samples that are decoded at once.
    """

    def loss(posterior: Posterior, key: PRNGKeyArray) -> Float[Array, ""]:
        prompts = equations.sample_prompts(key, posterior, samples, sampler="student_t", nu=nu)

        def one(x: Float[Array, "1 q c"]) -> tuple[Float[Array, ""], None]:
            return equations.mask_loss(logits(sam, pair, x[0]), pair.mask), None

        return equations_fast.monte_carlo(one, prompts, group)[0]

    return loss
