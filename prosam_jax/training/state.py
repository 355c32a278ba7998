"""Training state, optimiser and learning-rate schedule (paper, section 5.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int32

from prosam_jax.config import TrainConfig


class TrainState(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
        params: The prompt encoder's parameters.
        opt_state: AdamW's moments and step count.
        step: Steps taken; it determines random numbers and the position in the data.
    """

    params: nnx.State
    opt_state: optax.OptState
    step: Int32[Array, ""]


def steps_per_epoch(cfg: TrainConfig, images: int) -> int:
    """Steps for `images` targets, rounded up; the last may include targets of the next epoch."""
    return -(-images // cfg.batch_size)


def total_steps(cfg: TrainConfig, images: int) -> int:
    """Length of a run: `train.steps`, or else `train.epochs` in steps."""
    return cfg.steps or cfg.epochs * steps_per_epoch(cfg, images)


def schedule(cfg: TrainConfig, images: int) -> optax.Schedule:
    """Learning rate by step, as torch's CosineAnnealingWarmRestarts or CosineAnnealingLR, to 0."""
    period = total_steps(cfg, images)
    if cfg.schedule == "warm_restarts":
        period = cfg.restart_epochs * steps_per_epoch(cfg, images)

    def rate(step):
        return cfg.learning_rate / 2 * (1 + jnp.cos(jnp.pi * (step % period) / period))

    return rate


def optimizer(cfg: TrainConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW as in torch: betas 0.9 and 0.999, eps 1e-8, decoupled weight decay."""
    return optax.adamw(rate, weight_decay=cfg.weight_decay)


def create(params: nnx.State, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32))


def parameters(params: nnx.State) -> int:
    """Number of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))
