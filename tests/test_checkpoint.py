import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prosam_jax import runs
from prosam_jax.weights.checkpoint import Checkpoints


def _state(value, n=3):
    return {"a": {"kernel": jnp.full((2, n), float(value))}, "step": jnp.asarray(value, jnp.int32)}


def test_a_run_never_validated_has_no_best_checkpoint(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        with pytest.raises(ValueError, match=r"no such checkpoint \(steps kept: none\)"):
            runs.find_step(checkpoints, "best", tmp_path)
        checkpoints.save(3, _state(3))
        assert runs.find_step(checkpoints, "latest", tmp_path) == 3
        with pytest.raises(ValueError, match="never validated: pass --checkpoint=latest"):
            runs.find_step(checkpoints, "best", tmp_path)


def test_the_latest_and_the_best_are_kept(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        for step, miou in ((1, 0.1), (2, 0.5), (3, None), (4, 0.4), (5, None)):
            checkpoints.save(step, _state(step), miou)
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        assert checkpoints.steps == [2, 5]
        assert (checkpoints.latest, checkpoints.best) == (5, 2)
        assert (checkpoints.validated(2), checkpoints.validated(5)) == (True, False)
        for step in (2, 5):
            restored = checkpoints.restore(step, _state(0))
            jax.tree.map(np.testing.assert_array_equal, restored, _state(step))


def test_a_step_is_saved_again_with_its_score(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(3, _state(3))
        checkpoints.save(3, _state(4), 0.2)
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        assert (checkpoints.steps, checkpoints.best) == ([3], 3)
        np.testing.assert_array_equal(checkpoints.restore(3, _state(0))["step"], 4)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert (checkpoints.latest, checkpoints.best, checkpoints.steps) == (None, None, [])


def test_another_tree_is_refused_by_name(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(1, _state(1))
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        with pytest.raises(ValueError, match=r"a\.kernel: stored \(2, 3\), wanted \(2, 4\)"):
            checkpoints.restore(1, _state(0, n=4))
        other = {"b": jnp.zeros(()), "step": jnp.zeros((), jnp.int32)}
        with pytest.raises(ValueError, match=r"(?s)2 arrays.*b: stored nothing, wanted \(\)"):
            checkpoints.restore(1, other)
