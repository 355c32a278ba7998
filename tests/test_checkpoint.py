import contextlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from messages import check_line

from prosam_jax.errors import UserError
from prosam_jax.weights.checkpoint import Checkpoints


def _state(value, n=3):
    return {"a": {"kernel": jnp.full((2, n), float(value))}, "step": jnp.asarray(value, jnp.int32)}


def test_a_run_never_validated_has_no_best_checkpoint(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        for name in ("best", "latest", "3"):
            with pytest.raises(UserError) as error:
                checkpoints.find(name)
            check_line(error, tmp_path, f"--checkpoint={name}", "prosam train")
        checkpoints.save(3, _state(3))
        assert checkpoints.find("latest") == checkpoints.find("3") == 3
        with pytest.raises(UserError) as error:
            checkpoints.find("best")
        check_line(error, tmp_path, "--checkpoint=latest")
        with pytest.raises(UserError) as error:
            checkpoints.find("4")
        check_line(error, tmp_path, "--checkpoint=4", "3", "latest")


def test_the_latest_and_the_best_are_kept(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        for step, miou in ((1, 0.1), (2, 0.5), (3, None), (4, 0.4), (5, None)):
            checkpoints.save(step, _state(step), miou)
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        assert checkpoints.steps == [2, 5]
        assert (checkpoints.latest, checkpoints.best) == (5, 2)
        assert [checkpoints.find(x) for x in ("latest", "best", "2")] == [5, 2, 2]
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
        other = {"b": jnp.zeros(()), "step": jnp.zeros((), jnp.int32)}
        for like, named in (
            (_state(0, n=4), ["a.kernel", "(2, 3)", "(2, 4)"]),
            (other, ["a.kernel", "b is missing"]),
        ):
            with pytest.raises(UserError) as error:
                checkpoints.restore(1, like)
            for text in (str(tmp_path), *named):
                assert text in str(error.value)


def test_parameters_are_read_without_the_rest(tmp_path):
    """Onto one device, whatever the optimiser was and on however many the run was."""
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        params = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
        mesh = jax.sharding.Mesh(jax.devices(), "x")
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        held = {"params": params, "opt_state": {"mu": params}, "step": jnp.asarray(2)}
        checkpoints.save(2, jax.device_put(held, everywhere))
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        found = checkpoints.restore_params(2, jax.tree.map(jnp.zeros_like, params))
        jax.tree.map(np.testing.assert_array_equal, found, params)
        assert all(len(x.devices()) == 1 for x in jax.tree.leaves(found))
        with pytest.raises(UserError) as error:
            checkpoints.restore_params(2, params | {"bias": jnp.zeros(4)})
        assert "params.bias" in str(error.value) and "kernel" not in str(error.value)


def test_a_full_disk_is_told_with_its_folder(tmp_path, monkeypatch):
    def full(*_, **__):  # as TensorStore tells it
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device")

    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(OSError, match="No space") as error:
            checkpoints.save(1, _state(1))
        assert error.value.filename == str(tmp_path / "checkpoints")


def test_a_checkpoint_that_has_no_room_is_not_begun(tmp_path, monkeypatch):
    """The last one stays, and is read."""
    usage = shutil.disk_usage(tmp_path)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(1, _state(1))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=28))
        checkpoints.save(2, _state(2))  # six numbers of float32 and the step
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=27))
        with pytest.raises(OSError, match="28 bytes, 27 are free") as error:
            checkpoints.save(3, _state(3))
        assert error.value.filename == str(tmp_path / "checkpoints")
    with contextlib.closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
        assert checkpoints.latest == 2
        assert int(checkpoints.restore(2, _state(0))["step"]) == 2
