"""The pure functions that are compiled: one training step, one batch of predictions."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, PRNGKeyArray

from prosam_jax.model import ProSAM, learned
from prosam_jax.training import metrics
from prosam_jax.training.state import TrainState
from prosam_jax.types import Episode, Features


class Parts(NamedTuple):
    """A model taken apart: its structure, what is learned and what is frozen."""

    graph: nnx.GraphDef
    params: nnx.State
    frozen: nnx.State


def split(model: ProSAM) -> Parts:
    """Takes the model apart; `nnx.merge(*parts)` puts it together."""
    return Parts(*nnx.split(model, learned, ...))


def stream(seed: int, name: str) -> PRNGKeyArray:
    """The key of one purpose; fold the step in to get the key of a step."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def make_train_step(
    graph: nnx.GraphDef, tx: optax.GradientTransformation, seed: int, mesh: Mesh
) -> Callable[[TrainState, nnx.State, Episode], tuple[TrainState, dict[str, Array]]]:
    """Compiles (state, frozen, episodes) -> (state, metrics); the old state is given up.

    The frozen parts are an argument: no gradient, no optimiser state, no copy in checkpoints.
    """
    key = stream(seed, "train")

    def train_step(state, frozen, episode):
        features = nnx.merge(graph, state.params, frozen).encode(episode)
        step_key = jax.random.fold_in(key, state.step)

        def loss(params):
            model = nnx.merge(graph, params, frozen)
            return model.objective(features, episode.query_mask, step_key)

        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        logs = {"loss": value, "grad_norm": optax.tree.norm(grads), **aux}
        logs["cueless"] = _cueless(features).mean()
        return TrainState(params, opt_state, state.step + 1), logs

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(train_step, donate_argnums=0, out_shardings=everywhere)


class Prediction(NamedTuple):
    """What is predicted for a batch of episodes.

    Attributes:
        areas: To be added up to scores.
        mask: The predicted masks.
        cueless: References of which no mark is left at the size of the features.
    """

    areas: metrics.Areas
    mask: Bool[Any, "b h w"]
    cueless: Bool[Any, "b s"]


def _cueless(features: Features) -> Bool[Array, " r"]:
    return ~features.support_mask.any((1, 2))


def make_predict_step(
    graph: nnx.GraphDef,
) -> Callable[[nnx.State, nnx.State, Episode], Prediction]:
    """Compiles (params, frozen, episodes) -> predictions."""

    @jax.jit
    def predict_step(params, frozen, episode):
        model = nnx.merge(graph, params, frozen)
        features = model.encode(episode)
        mask = model.segment(features, episode.query_mask.shape[1:]) >= 0
        areas = metrics.areas(mask, episode.query_mask, episode.query_ignore)
        return Prediction(areas, mask, _cueless(features).reshape(len(mask), -1))

    return predict_step
