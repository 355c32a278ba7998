"""The compiled training step."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from prosam_jax.model import stream
from prosam_jax.training.state import TrainState


def make_train_step(
    graph: nnx.GraphDef, tx: optax.GradientTransformation, seed: int, mesh: Mesh
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Compiles (state, frozen, episodes, image_embeddings=None) -> (state, metrics).

    The old state is donated. For `image_embeddings`, which a feature cache provides, see
    `ProSAM.encode`. The frozen networks are an argument of their own, so they have no gradient, no
    optimiser state and no copy in checkpoints.
    """
    key = stream(seed, "train")

    def train_step(state, frozen, episode, image_embeddings=None):
        features = nnx.merge(graph, state.params, frozen).encode(episode, image_embeddings)
        step_key = jax.random.fold_in(key, state.step)

        def loss(params):
            model = nnx.merge(graph, params, frozen)
            return model.objective(features, episode.target_mask, step_key)

        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        logs = {"loss": value, "grad_norm": optax.tree.norm(grads), **aux}
        logs["empty_annotations"] = features.empty_annotations.mean()
        return TrainState(params, opt_state, state.step + 1), logs

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(train_step, donate_argnums=0, out_shardings=everywhere)
