"""The benchmarks' PyTorch equivalents compute what this library does."""

import numpy as np
import pytest

from benchmarks import jax_side, torch_side
from benchmarks.problem import Problem, to_jax
from benchmarks.train_step import TOLERANCES, differences


@pytest.mark.slow
def test_training_step_is_torchs():
    problem = Problem(
        part="all", size=40, embedding=3, samples=3, batch=2, prompts=5, merged=12, prior=8
    )
    sides = [torch_side.Side(problem, how) for how in ("folded", "loop")]
    weights = to_jax(problem, sides[0].weights())
    ours = jax_side.Side(problem, weights, group=3)
    found = ours.first()
    for side in sides:
        side.set_noise(*map(np.asarray, ours.noise()))
        expected = side.first()
        expected["grads"] = to_jax(problem, expected["grads"])
        assert expected["grads"].keys() == found["grads"].keys()
        loss, grads = differences(found, expected)
        assert loss <= TOLERANCES["float32"][0]
        assert grads <= TOLERANCES["float32"][1]
