"""This library's training step and prompt generator; they run in their own process."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import measure, ours
from benchmarks.problem import Problem, parts
from prosam_jax import backbone, equations, model, sharding
from prosam_jax.config import RANDOM, BackboneConfig, Config, DistributionConfig, SAMSettings
from prosam_jax.model import ProSAM
from prosam_jax.training import state
from prosam_jax.types import Episode, Features, Taps
from prosam_jax.weights import files

BETA1 = 0.9  # AdamW's


def fill(problem: Problem, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The problem's modules with their weights, by attribute of `ProSAM`."""
    return {
        name: files.fill(files.abstract(build), lambda x, n=name: arrays[f"{n}.{x}"])
        for name, build in parts(problem).items()
    }


class Side:
    """The problem as this library computes it.

    Args:
        problem: The problem.
        arrays: Weights by NNX path, from `problem.to_jax`.
        group: `distribution.sample_group`; 0 for the default.
    """

    step: Any

    def __init__(self, problem: Problem, arrays: Mapping[str, np.ndarray], group: int = 0):
        self.problem = problem
        distribution = DistributionConfig(samples=problem.samples)
        if group:
            distribution = dataclasses.replace(distribution, sample_group=group)
        cfg = Config(distribution=distribution)
        filled = fill(problem, arrays)
        unused = files.random(
            lambda rngs: cast(Any, backbone.build(BackboneConfig("tiny", "random"), rngs=rngs)), 0
        )
        whole = ProSAM(cfg, **filled, backbone=unused, rngs=nnx.Rngs(0))
        self.graph, params, self.frozen = nnx.split(whole, self._is_learned, ...)
        self.tx = state.optimizer(cfg.train, lambda step: cfg.train.learning_rate)
        mesh = sharding.make_mesh(problem.batch, jax.devices()[: problem.devices])
        self.frozen = sharding.replicate(self.frozen, mesh)
        self.state = sharding.replicate(state.create(params, self.tx), mesh)
        self.inputs = sharding.split_batch(problem.inputs(), mesh)
        self.key = sharding.replicate(jax.random.key(problem.seed), mesh)
        everywhere = NamedSharding(mesh, PartitionSpec())
        step = jax.jit(self._step, donate_argnums=0, out_shardings=everywhere)
        given = self.state, self.frozen, self.inputs, self.key

        def compile_step() -> None:
            self.step = step.lower(*given).compile()

        self.compilation = measure.timed(compile_step)

    def _is_learned(self, path: tuple, value: object) -> bool:
        if self.problem.part == "heads":
            return path[:2] == ("prompt_encoder", "head")
        return model.learned(path, value)

    def _loss(self, whole: ProSAM, inputs: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        if self.problem.part == "heads":
            posterior = whole.prompt_encoder.head(inputs["features"])
            embeddings, target = inputs["embeddings"], inputs["target"]
            sample_key = jax.random.split(key)[1]
            return whole.expected_loss(embeddings, posterior, target, sample_key)[0]
        query, support = (
            Taps(inputs[f"{x}_merged"], inputs[f"{x}_prior"]) for x in ("query", "support")
        )
        if self.problem.part == "generator":
            mean, log_scale = whole.prompt_encoder(query, support, inputs["mask"])
            assert log_scale is not None
            return jnp.square(mean).mean() + jnp.square(log_scale).mean()
        features = Features(inputs["embeddings"], query, support, inputs["mask"])
        return whole.objective(features, inputs["target"], key)[0]

    def _step(self, current, frozen, inputs, key):
        def loss(params):
            return self._loss(nnx.merge(self.graph, params, frozen), inputs, key)

        value, grads = jax.value_and_grad(loss)(current.params)
        updates, opt_state = self.tx.update(grads, current.opt_state, current.params)
        params = jax.tree.map(jnp.add, current.params, updates)
        return state.TrainState(params, opt_state, current.step + 1), value

    def noise(self) -> equations.Noise:
        """The noise of the samples, (k, b, q, n)."""
        p, nu = self.problem, DistributionConfig().nu
        shape = (p.samples, p.batch, p.prompts, 256)
        key = jax.random.split(self.key)[1]
        return jax.device_get(equations.draw_noise(key, shape, "student_t", nu))

    def loss(self) -> float:
        """Takes a step."""
        self.state, loss = self.step(self.state, self.frozen, self.inputs, self.key)
        return float(loss)

    def first(self) -> dict[str, Any]:
        """Takes the first step: "loss", "grads" by NNX path, "timing" of the compilation."""
        loss = self.loss()
        # Adam's first moment is (1 - beta1) times the gradient after the first step.
        moments = nnx.to_flat_state(cast(Any, self.state.opt_state)[0].mu)
        grads = {
            ".".join(map(str, path)): np.asarray(x.get_value()) / (1 - BETA1) for path, x in moments
        }
        return {"loss": loss, "grads": grads, "timing": self.compilation}

    def timing(self) -> measure.Timing:
        """Time of a step."""
        return measure.timed(self.loss, measure.CALLS[self.problem.device])

    def peak(self) -> int:
        """As for `ours.Forward`."""
        return ours.planned(self.step) if self.problem.device == "gpu" else ours.peak()


class Predictor:
    """The evaluation, from images to mask logits; arguments as for `Side`."""

    predict: Any

    def __init__(self, problem: Problem, arrays: Mapping[str, np.ndarray]):
        self.problem = problem
        cfg = Config(sam=SAMSettings.of(model=problem.model, weights=RANDOM))
        graph, self.state = nnx.split(ProSAM(cfg, **fill(problem, arrays), rngs=nnx.Rngs(0)))
        images = problem.inputs()
        b, h, w = images["mask"].shape
        self.episode = Episode(
            reference_image=images["support"][:, None],
            reference_mask=images["mask"][:, None],
            target_image=images["query"],
            target_mask=np.zeros((b, h, w), bool),
            target_ignore=np.zeros((b, h, w), bool),
            class_id=np.ones(b, np.int32),
            index=np.arange(b, dtype=np.int32),
            valid=np.ones(b, bool),
            target_size=np.full((b, 2), (h, w), np.int32),
        )
        predict = jax.jit(lambda state, episode: nnx.merge(graph, state).predict(episode))

        def compile_prediction() -> None:
            self.predict = predict.lower(self.state, self.episode).compile()

        self.compilation = measure.timed(compile_prediction)

    def logits(self) -> np.ndarray:
        """(b, h, w)."""
        return np.asarray(self.predict(self.state, self.episode))

    def first(self) -> dict[str, Any]:
        """As for `Side`; the logits must agree."""
        logits = self.logits()
        size = float(np.abs(logits).mean())
        return {"loss": size, "grads": {"logits": logits}, "timing": self.compilation}

    def timing(self) -> measure.Timing:
        """Time of a batch."""
        return measure.timed(self.logits, measure.CALLS[self.problem.device])

    def peak(self) -> int:
        """As for `Side`."""
        return ours.planned(self.predict) if self.problem.device == "gpu" else ours.peak()
