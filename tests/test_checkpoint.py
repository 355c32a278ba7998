import gc
import json
import os
import shutil
import sys

import commands
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from messages import check_line

from prosam_jax.errors import UserError
from prosam_jax.weights import checkpoint
from prosam_jax.weights.checkpoint import Checkpoints

# pytest reports what Python ignores in TensorStore's threads, at any later collection of garbage.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def _state(value, n=3):
    return {"a": {"kernel": jnp.full((2, n), float(value))}, "step": jnp.asarray(value, jnp.int32)}


def test_a_run_never_validated_has_no_best_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
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
    checkpoints = Checkpoints(tmp_path)
    for step, miou in ((1, 0.1), (2, 0.5), (3, None), (4, 0.4), (5, None)):
        checkpoints.save(step, _state(step), miou)
    assert checkpoints.steps == [2, 5]
    assert (checkpoints.latest, checkpoints.best) == (5, 2)
    assert [checkpoints.find(x) for x in ("latest", "best", "2")] == [5, 2, 2]
    assert (checkpoints.validated(2), checkpoints.validated(5)) == (True, False)
    for step in (2, 5):
        restored = checkpoints.restore(step, _state(0))
        jax.tree.map(np.testing.assert_array_equal, restored, _state(step))


def test_a_step_is_saved_again_with_its_score(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, _state(3))
    checkpoints.save(3, _state(4), 0.2)
    assert (checkpoints.steps, checkpoints.best) == ([3], 3)
    np.testing.assert_array_equal(checkpoints.restore(3, _state(0))["step"], 4)
    assert os.listdir(tmp_path / "checkpoints") == ["3-2"]
    assert checkpoints.mend() == []


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.latest, checkpoints.best, checkpoints.steps) == (None, None, [])


def test_another_tree_is_refused_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _state(1))
    other = {"b": jnp.zeros(()), "step": jnp.zeros((), jnp.int32)}
    for like, named in (
        (_state(0, n=4), ["a.kernel", "(2, 3)", "(2, 4)"]),
        (other, ["a.kernel", "b is missing"]),
    ):
        with pytest.raises(UserError) as error:
            checkpoints.restore(1, like)
        for text in (str(tmp_path), *named):
            assert text in str(error.value)


@pytest.mark.parametrize("at", ["_verified", "_check_arrays"])
def test_a_checkpoint_that_goes_while_it_is_read_is_followed_by_the_next(tmp_path, monkeypatch, at):
    """As beside a training, which keeps only the latest."""
    checkpoints, of = Checkpoints(tmp_path), getattr(Checkpoints, at)
    checkpoints.save(2, {"params": {"w": jnp.full(3, 2.0)}})

    def go_on(self, *given):
        if checkpoints.latest == 2:
            checkpoints.save(4, {"params": {"w": jnp.full(3, 4.0)}})
        return of(self, *given)

    monkeypatch.setattr(Checkpoints, at, go_on)
    with pytest.raises(UserError) as error:
        checkpoints.restore_params("5", {})
    check_line(error, "--checkpoint=5", "steps kept: 2")
    step, found = checkpoints.restore_params("latest", {"w": jnp.zeros(3)})
    assert step == 4
    np.testing.assert_array_equal(found["w"], np.full(3, 4.0))
    with pytest.raises(UserError) as error:
        checkpoints.restore_params("2", {"w": jnp.zeros(3)})
    check_line(error, "--checkpoint=2", "steps kept: 4")


def test_parameters_are_read_without_the_rest(tmp_path):
    """Onto one device, whatever the optimiser was and on however many the run was."""
    checkpoints = Checkpoints(tmp_path)
    params = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
    mesh = jax.sharding.Mesh(jax.devices(), "x")
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    held = {"params": params, "opt_state": {"mu": params}, "step": jnp.asarray(2)}
    checkpoints.save(2, jax.device_put(held, everywhere))
    _, found = checkpoints.restore_params("2", jax.tree.map(jnp.zeros_like, params))
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(found))
    with pytest.raises(UserError) as error:
        checkpoints.restore_params("2", params | {"bias": jnp.zeros(4)})
    assert "params.bias" in str(error.value) and "kernel" not in str(error.value)


def test_a_step_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    """A process that ends at any moment of the second saving leaves one to go on from."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, _state(3))

    def ended(*_):
        raise KeyboardInterrupt

    for name in ("_seal", "_sync"):
        monkeypatch.setattr(checkpoint, name, ended)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(3, _state(4), 0.2)
        monkeypatch.undo()
        assert int(checkpoints.restore(3, _state(0))["step"]) == 3
    monkeypatch.setattr(Checkpoints, "_prune", ended)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(3, _state(4), 0.2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "3-2"]
    assert int(checkpoints.restore(3, _state(0))["step"]) == 4
    assert checkpoints.steps == [3]


def _files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS = {
    "flipped": _flip,
    "halved": _halve,
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run with a whole checkpoint of step 2, the best, and one of step 4."""
    workdir = tmp_path_factory.mktemp("two")
    Checkpoints(workdir).save(2, _state(2), 0.5)
    Checkpoints(workdir).save(4, _state(4), 0.25)
    return workdir


@pytest.mark.parametrize("fault", FAULTS)
def test_each_damaged_file_is_named_and_the_older_one_is_gone_on_from(two, tmp_path, fault, capfd):
    files = _files(two / "checkpoints" / "4")
    assert len(files) > 8
    for i, file in enumerate(files):
        run = tmp_path / str(i)
        shutil.copytree(two, run)
        folder = run / "checkpoints" / "4"
        FAULTS[fault](folder / file)
        checkpoints = Checkpoints(run)
        with pytest.raises(UserError) as error:
            checkpoints.restore(4, _state(0))
        check_line(error, folder, file.as_posix(), "--checkpoint=2")
        with pytest.raises(UserError) as error:
            checkpoints.restore_params("4", {})
        check_line(error, folder, file.as_posix())
        if file.name == checkpoint.SEAL:  # which has the scores
            with pytest.raises(UserError) as error:
                checkpoints.find("best")
            check_line(error, folder, file.as_posix(), "--checkpoint=2")
        else:
            assert checkpoints.find("best") == 2
        (line,) = checkpoints.mend()
        assert str(folder) in line and file.as_posix() in line and "damaged-4" in line
        assert checkpoints.steps == [checkpoints.best] == [checkpoints.latest] == [2]
        assert int(checkpoints.restore(2, _state(0))["step"]) == 2
    checkpoints.save(4, _state(4), 0.75)
    assert checkpoints.mend() == []
    assert sorted(os.listdir(run / "checkpoints")) == ["4", "damaged-4"]
    assert capfd.readouterr() == ("", "")


def test_without_a_whole_one_nothing_is_changed(two, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(two, run)
    for step in (2, 4):
        shutil.rmtree(run / "checkpoints" / str(step) / checkpoint.ARRAYS)
    before = _files(run)
    checkpoints = Checkpoints(run)
    with pytest.raises(UserError) as error:
        checkpoints.mend()
    check_line(error, run, run / "checkpoints" / "2", run / "checkpoints" / "4", "--workdir")
    with pytest.raises(UserError) as error:
        checkpoints.restore(4, _state(0))
    check_line(error, run / "checkpoints" / "4", "no other is whole")
    assert _files(run) == before


def test_leftovers_of_killed_processes_go(two, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(two, run)
    for name in (".0a.part", "6.orbax-checkpoint-tmp", "6.orbax-checkpoint-tmp-17"):
        shutil.copytree(two / "checkpoints" / "4", run / "checkpoints" / name)
    checkpoints = Checkpoints(run)
    assert checkpoints.steps == [2, 4]
    assert checkpoints.mend() == []
    assert sorted(os.listdir(run / "checkpoints")) == ["2", "4"]


def test_what_is_read_are_the_bytes_that_were_saved(two, tmp_path, monkeypatch):
    """Whatever Orbax makes of files that are whole."""
    monkeypatch.setattr(checkpoint, "_read", lambda *_: _state(5))
    with pytest.raises(UserError) as error:
        Checkpoints(two).restore(4, _state(0))
    check_line(error, two / "checkpoints" / "4", "arrays")


def _older(workdir, scores):
    """Checkpoints as the versions before 0.2 wrote them."""
    manager = ocp.CheckpointManager(
        workdir / "checkpoints",
        item_handlers=ocp.StandardCheckpointHandler(),
        options=ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["miou"]),
    )
    for step, miou in scores.items():
        metrics = {"miou": miou}
        manager.save(step, args=ocp.args.StandardSave(_state(step)), metrics=metrics, force=True)
    manager.close()


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("older")
    _older(workdir, {2: 0.5, 4: 0.25})
    return workdir


def test_checkpoints_of_older_versions_are_read_and_told(older, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(older, run)
    checkpoints = Checkpoints(run)
    assert (checkpoints.steps, checkpoints.latest, checkpoints.best) == ([2, 4], 4, 2)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(4, _state(0)), _state(4))
    line = f"checkpoint {run / 'checkpoints' / '4'} is of an older version, without checksums\n"
    assert capsys.readouterr().err == line
    assert checkpoints.mend() == []
    checkpoints.save(4, _state(4), 0.75)
    assert (checkpoints.steps, checkpoints.best) == ([4], 4)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(4, _state(0)), _state(4))
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["halved", "deleted"])
def test_a_damaged_one_of_an_older_version_is_refused_or_read_rightly(
    older, tmp_path, fault, capfd
):
    """Nothing but the line reaches stderr, which Orbax's threads fill."""
    refused = set()
    for i, file in enumerate(_files(older / "checkpoints" / "4")):
        run = tmp_path / str(i)
        shutil.copytree(older, run)
        folder = run / "checkpoints" / "4"
        FAULTS[fault](folder / file)
        checkpoints = Checkpoints(run)
        try:
            restored = checkpoints.restore(4, _state(0))
        except UserError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
            assert "--checkpoint=2" in str(error)
            (line,) = checkpoints.mend()
            assert str(folder) in line
            refused.add(file.name)
        else:
            jax.tree.map(np.testing.assert_array_equal, restored, _state(4))
    assert {"_METADATA", "manifest.ocdbt"} <= refused
    assert ("metrics" in refused) == (fault == "halved")
    gc.collect()
    out, err = capfd.readouterr()
    assert all(line.endswith("without checksums") for line in (out + err).splitlines())


def test_a_full_disk_is_told_with_the_step_that_is_safe(tmp_path, monkeypatch):
    def full(*_, **__):  # as TensorStore tells it
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device")

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(UserError) as error:
        checkpoints.save(1, _state(1))
    check_line(error, tmp_path / "checkpoints", "No space left", "step 1", "no step is saved yet")
    monkeypatch.undo()
    checkpoints.save(1, _state(1))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=28))
    checkpoints.save(2, _state(2))  # six numbers of float32 and the step
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=27))
    with pytest.raises(UserError) as error:
        checkpoints.save(3, _state(3))
    check_line(error, tmp_path / "checkpoints", "28 bytes, 27 are free", "step 2 is safe")
    assert os.listdir(tmp_path / "checkpoints") == ["2"]
    assert int(checkpoints.restore(2, _state(0))["step"]) == 2


LIMITED = """
import contextlib, pathlib, resource, signal, sys
import jax.numpy as jnp
from prosam_jax.errors import UserError
from prosam_jax.weights.checkpoint import Checkpoints

checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
checkpoints.save(1, {"step": jnp.asarray(1)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
state = {str(i): jnp.arange(100_000.0).at[i].set(9) ** 0.5 for i in range(20)}
try:
    checkpoints.save(2, state)
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the limit is of POSIX")
def test_a_disk_that_refuses_while_orbax_writes_is_told_in_one_line(tmp_path):
    end = commands.run(sys.executable, "-c", LIMITED, tmp_path)
    commands.one_line(end.stderr, tmp_path / "checkpoints", "File too large", "step 1 is safe")
    assert os.listdir(tmp_path / "checkpoints") == ["1"]


def test_a_checkpoint_of_another_step_than_its_name_is_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, miou in ((2, 0.5), (4, None)):
        checkpoints.save(step, _state(step), miou)
    (tmp_path / "checkpoints/4").rename(tmp_path / "checkpoints/9")
    with pytest.raises(UserError) as error:
        checkpoints.restore(9, _state(0))
    check_line(error, "checkpoints/9", "it is of step 4", "--checkpoint=2")
    (line,) = checkpoints.mend()
    assert "damaged-9" in line and checkpoints.steps == [2]


def test_files_among_the_checkpoints_do_not_matter(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, _state(2))
    for name in ("3", ".x.part"):
        (tmp_path / "checkpoints" / name).write_text("x")
    assert checkpoints.mend() == [] and checkpoints.steps == [2]
    checkpoints.save(4, _state(4))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "4"]


@pytest.mark.parametrize("change", [{"files": None}, {"miou": "high"}, {"files": {"../x": "0"}}])
def test_checksums_of_another_form_are_damaged(tmp_path, change):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, _state(2), 0.5)
    seal = tmp_path / "checkpoints/2" / checkpoint.SEAL
    held = json.loads(seal.read_text()) | change
    del held["sha256"]
    seal.write_text(json.dumps(held | {"sha256": checkpoint._own_digest(held)}))
    with pytest.raises(UserError) as error:
        checkpoints.restore(2, _state(0))
    check_line(error, "checkpoints/2", checkpoint.SEAL)
