import dataclasses
import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import check_line
from small import small_config

from prosam_jax import model, runs, sharding, share
from prosam_jax.atomic import locked, replacing
from prosam_jax.config import CacheConfig, read_config, replaced, write_config
from prosam_jax.data.loader import make_loader
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate, prediction
from prosam_jax.report import curves
from prosam_jax.training import loop, signals, state, step
from prosam_jax.weights import prompt_encoder
from prosam_jax.weights.checkpoint import SAVED, Checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps, never interrupted: its settings, folder and last state."""
    root = tmp_path_factory.mktemp("whole")
    cfg = small_config(root / "voc")
    loop.train(cfg, root / "run")
    return cfg, root / "run", _last_state(cfg, root / "run")


def _last_state(cfg, workdir):
    trainer = loop.Trainer(cfg)
    checkpoints = Checkpoints(workdir)
    return checkpoints.restore(checkpoints.latest, trainer.state)


def _curves(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_leaves_curves_settings_and_the_best_checkpoint(finished):
    cfg, workdir, last = finished
    assert int(last.step) == 6
    lines = _curves(workdir)
    training = [line for line in lines if "train/loss" in line]
    validation = [line for line in lines if "validation/miou" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in validation] == [4, 6]
    wanted = ("miou", "episodes_per_s", "grad_norm", "scale_mean", "scale_to_norm", "learning_rate")
    assert {f"train/{name}" for name in wanted} <= training[0].keys()
    best = max(validation, key=lambda line: line["validation/miou"])["step"]
    checkpoints = Checkpoints(workdir)
    assert checkpoints.best == best
    assert set(checkpoints.steps) == {best, 6}
    assert json.loads((workdir / "config.json").read_text())["data"]["fold"] == cfg.data.fold
    assert list((workdir / "tensorboard").glob("events.*"))


@pytest.mark.slow
def test_only_the_prompt_encoder_is_saved_and_trained(finished):
    cfg, _, last = finished
    built = model.build(cfg)
    _, params, frozen = model.split(built)
    count = 3 * 8 * 8 * 256 + 513 * 256 + 5 * 256 + 4 * (4 * 65792 + 512) + 2 * 65792
    assert state.parameters(last.params) == state.parameters(params) == count
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, last.params)
    assert all(x > 0 for x in jax.tree.leaves(moved))
    assert not any(path[0] == "prompt_encoder" for path, _ in nnx.to_flat_state(frozen))


@pytest.mark.slow
@pytest.mark.parametrize(
    "at",
    [
        pytest.param(4, id="at a validation"),
        pytest.param(2, id="between validations", marks=pytest.mark.exhaustive),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(finished, tmp_path, monkeypatch, capsys, at):
    """SIGTERM during step `at`; the same command again gives the same bits and scores."""
    cfg, whole, last = finished
    workdir = tmp_path / "run"
    _stop_at(monkeypatch, at)
    with pytest.raises(signals.Stopped, match=f"stopped at step {at}"):
        loop.train(cfg, workdir)
    monkeypatch.undo()
    earlier = tmp_path / "earlier"
    shutil.copytree(workdir / "checkpoints" / str(at), earlier)
    loop.train(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, workers=1)), workdir)
    assert f"at step {at} in" in capsys.readouterr().err
    resumed = _last_state(cfg, workdir)
    assert jax.tree.structure(resumed) == jax.tree.structure(last)
    jax.tree.map(np.testing.assert_array_equal, resumed, last)
    assert _scored(workdir) == _scored(whole)
    steps = [line["step"] for line in _curves(workdir) if "train/loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    if at == 4:
        _check_goes_on_from_the_newest_whole_one(cfg, workdir, earlier, last, capsys)


def _check_goes_on_from_the_newest_whole_one(cfg, workdir, earlier, last, capsys):
    checkpoints = workdir / "checkpoints"
    shutil.copytree(earlier, checkpoints / "4", dirs_exist_ok=True)
    (newest,) = checkpoints.glob("6*")
    (newest / "arrays" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(UserError) as error:
        runs.score(cfg, workdir, "latest")
    check_line(error, newest, "manifest.ocdbt", "--checkpoint=4")
    capsys.readouterr()
    before = sorted(os.listdir(checkpoints))
    with pytest.raises(UserError) as error:
        loop.train(replaced(cfg, {"train.learning_rate": 1e-4}), workdir)
    check_line(error, "train.learning_rate")
    assert sorted(os.listdir(checkpoints)) == before
    loop.train(cfg, workdir)
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if "damaged" in line]
    assert str(newest) in line and "manifest.ocdbt" in line
    assert f"resuming at step 4 in {workdir}" in told
    jax.tree.map(np.testing.assert_array_equal, _last_state(cfg, workdir), last)
    shutil.rmtree(checkpoints / "4", ignore_errors=True)
    for file in (x for x in checkpoints.rglob("*") if x.is_file()):
        file.write_bytes(b"")
    with pytest.raises(UserError) as error:
        loop.train(cfg, workdir)
    check_line(error, workdir, checkpoints / "6", "no whole checkpoint")
    assert _curves(workdir)[-1]["step"] == 6


def _scored(workdir):
    """Step, mIoU and FB-IoU of every validation."""
    lines = [line for line in _curves(workdir) if "validation/miou" in line]
    return [(line["step"], line["validation/miou"], line["validation/fb_iou"]) for line in lines]


def _stop_at(monkeypatch, at):
    add = loop.Window.add

    def add_and_stop(self, logs, class_id):
        add(self, logs, class_id)
        if self.start + len(self.logs) == at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Window, "add", add_and_stop)


@pytest.mark.slow
def test_a_finished_run_has_nothing_to_do(finished, capsys):
    cfg, workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    loop.train(cfg, workdir)
    assert "step 6" in capsys.readouterr().err
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_another_run_is_not_continued(finished):
    cfg, workdir, _ = finished
    before = (workdir / "config.json").read_text()
    for changes in ({"distribution.name": "gaussian"}, {"eval.seed": 3}, {"data.shots": 2}):
        with pytest.raises(UserError) as error:
            loop.train(replaced(cfg, changes), workdir)
        check_line(error, workdir, *changes, *changes.values())
    assert (workdir / "config.json").read_text() == before


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_pictures(finished, tmp_path):
    cfg, workdir, _ = finished
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    elsewhere = tmp_path / "voc"
    shutil.copytree(cfg.data.root, elsewhere)
    moved = replaced(cfg, {"data.root": str(elsewhere), "train.steps": 7})
    listed = elsewhere / "ImageSets" / "Segmentation" / "train_aug.txt"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError) as error:
        loop.train(moved, run)
    check_line(error, run, "data.root", elsewhere)
    shutil.copytree(cfg.data.root, elsewhere, dirs_exist_ok=True)
    loop.train(moved, run)
    assert _curves(run)[-1]["step"] == 7


@pytest.mark.slow
def test_the_length_changes_with_warm_restarts_alone(finished, tmp_path):
    """A cosine's course depends on it."""
    cfg, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    cosine = replaced(cfg, {"train.schedule": "cosine"})
    write_config(cosine, tmp_path / "run" / "config.json")
    with pytest.raises(UserError) as error:
        loop.train(replaced(cosine, {"train.steps": 7}), tmp_path / "run")
    check_line(error, tmp_path / "run", "train.steps", "6", "7")


@pytest.mark.slow
def test_a_run_of_an_older_version_goes_on(finished, tmp_path, capsys):
    """Its settings have the names of then and values that nothing read; it names no dataset."""
    cfg, workdir, _ = finished
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    (run / "dataset.json").unlink()
    held = json.loads((run / "config.json").read_text())
    held["data"]["cueless"] = held["data"].pop("empty_annotation")
    held["data"]["novel"] = "fox"
    (run / "config.json").write_text(json.dumps(held))
    longer = replaced(cfg, {"train.steps": 7, "train.log_every": 7, "data.workers": 1})
    loop.train(longer, run)
    assert "at step 6 in" in capsys.readouterr().err
    assert read_config(run / "config.json") == longer
    checkpoints = Checkpoints(run)
    assert checkpoints.latest == 7
    assert share.export(run, "latest", tmp_path / "x").classes is None


@pytest.mark.slow
def test_evaluation_agrees_with_validation(finished, capsys):
    cfg, workdir, _ = finished
    result = runs.score(cfg, workdir, "latest")
    validated = [line for line in _curves(workdir) if "validation/miou" in line][-1]
    assert result.scores.miou == validated["validation/miou"]
    written = json.loads((workdir / "results.json").read_text())
    assert written["miou"] == pytest.approx(100 * result.scores.miou)
    assert written["fb_iou"] == pytest.approx(100 * result.scores.fb_iou)
    assert written["episodes"] == cfg.eval.episodes
    assert written["step"] == 6
    assert written["config"]["sam"]["weights"] == "random"
    assert len(written["episode_list_sha256"]) == 64
    assert (workdir / "examples.png").stat().st_size > 10_000
    out, err = capsys.readouterr()
    assert "RANDOM" in err and "RANDOM" not in out
    assert f"{written['miou']:.2f}" in out and f"{written['fb_iou']:.2f}" in out
    again = runs.score(cfg, workdir, "6")
    assert again.scores == result.scores
    for unknown in ("5", "worst"):
        with pytest.raises(UserError) as error:
            runs.score(cfg, workdir, unknown)
        check_line(error, f"--checkpoint={unknown}", "best", "latest", "6")
    with pytest.raises(UserError) as error:
        runs.settings(cfg, {"seed": 7})
    check_line(error, "seed", "321", "7")


@pytest.mark.slow
def test_a_feature_cache_changes_the_losses_by_no_more_than_its_rounding(
    finished, tmp_path, capsys
):
    """To 1e-3 with entries of bfloat16, and then every embedding is there."""
    cfg, whole, _ = finished
    cfg = dataclasses.replace(cfg, cache=CacheConfig(dir=str(tmp_path / "cache")))
    loop.train(cfg, tmp_path / "run")
    told = capsys.readouterr().err
    assert "0 entries of 8.2 kB" in told
    assert "embeddings read" in told.splitlines()[-1]
    losses = [
        [line["train/loss"] for line in _curves(workdir) if "train/loss" in line]
        for workdir in (tmp_path / "run", whole)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    result = runs.score(cfg, tmp_path / "run", "latest")
    assert "embeddings read, 0 computed" in capsys.readouterr().err
    assert result.scores.miou == _scored(tmp_path / "run")[-1][1]


@pytest.mark.slow
def test_batch_size_and_short_batches_do_not_change_scores(finished):
    cfg, _, last = finished
    graph, _, frozen = model.split(model.build(cfg))
    predict = prediction.make_predict_step(graph)
    source = evaluate.test_episodes(cfg)
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    params, frozen = sharding.replicate((last.params, frozen), mesh)
    results = [
        evaluate.evaluate(predict, params, frozen, source, batch_size=b, mesh=mesh, examples=2)
        for b in (1, 2, 3)
    ]
    assert results[0].scores == results[1].scores == results[2].scores
    assert [r.episodes for r in results] == [3, 3, 3]
    assert predict._cache_size() == 3  # the short last batch of two compiled nothing
    first, second = results[1].examples
    assert (int(first.episode.index), int(second.episode.index)) == (0, 1)


@pytest.mark.slow
def test_lost_points_are_counted_and_coverage_loses_none(finished, capsys):
    cfg, workdir, _ = finished
    found = {}
    for rule in ("nearest", "coverage"):
        points = {"data.annotation": "point", "data.downsample": rule, "eval.pictures": 0}
        found[rule] = runs.score(runs.settings(cfg, points), workdir, "6")
        assert found[rule].references == 3
    assert found["nearest"].empty_annotations > 0
    assert found["coverage"].empty_annotations == 0
    lost = found["nearest"].empty_annotations
    told = [line for line in capsys.readouterr().out.splitlines() if "data.downsample" in line]
    assert len(told) == 1 and f"{lost} of 3" in told[0]


def _steps(cfg, devices, n=3):
    """State and losses after `n` steps on a mesh of these devices."""
    source = loop.Trainer(cfg).source
    mesh = sharding.make_mesh(cfg.train.batch_size, devices)
    assert mesh.size == len(devices)
    tx = state.optimizer(cfg.train, state.schedule(cfg.train, 10))
    graph, params, frozen = sharding.replicate(model.split(model.build(cfg)), mesh)
    current = sharding.replicate(state.create(params, tx), mesh)
    train_step = step.make_train_step(graph, tx, cfg.seed, mesh)
    losses = []
    loader = make_loader(source, batch_size=cfg.train.batch_size, stop=n)
    for episode in loader:
        current, logs = train_step(current, frozen, sharding.split_batch(episode, mesh))
        losses.append(float(logs["loss"]))
    loader.close()
    assert train_step._cache_size() == 1
    return jax.device_get(current), losses


@pytest.mark.slow
def test_four_devices_compute_what_one_does(tmp_path):
    cfg = small_config(tmp_path / "voc", train={"batch_size": 4})
    one, losses_of_one = _steps(cfg, jax.devices()[:1])
    four, losses_of_four = _steps(cfg, jax.devices()[:4])
    np.testing.assert_allclose(losses_of_four, losses_of_one, rtol=1e-5)
    # Adam's first steps have the size of the learning rate, 1e-3, whatever the gradient's: a
    # rounding moves a parameter whose gradient is as small. Seen: 1.02e-4 in one of 65,536.
    apart = jax.tree.map(lambda a, b: np.abs(a - b), four.params, one.params)
    for x in jax.tree.leaves(apart):
        assert np.mean(x > 1e-4) < 1e-4
        assert x.max() < 1e-3


@pytest.mark.slow
def test_the_first_number_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    cfg = small_config(tmp_path / "voc", train={"learning_rate": 1e38, "log_every": 5})
    with pytest.raises(FloatingPointError, match=r"(nan|inf).*step [234]\b.*train\.learning_rate"):
        loop.train(cfg, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.steps == []


@pytest.mark.exhaustive
def test_training_lowers_the_loss(tmp_path):
    """One class, one pair of pictures: the objective must be learnable through a random SAM."""
    cfg = small_config(
        tmp_path / "voc", train={"steps": 25, "learning_rate": 1e-3}, prompt={"dropout": 0.0}
    )
    _, losses = _steps(cfg, jax.devices()[:1], n=25)
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 0.08


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_the_step_that_is_safe(tmp_path, monkeypatch):
    cfg = small_config(tmp_path / "voc", train={"checkpoint_every": 2, "eval_every": -1})
    write = curves.Curves.write

    def full(self, group, step, values):
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, group, step, values)

    monkeypatch.setattr(curves.Curves, "write", full)
    with pytest.raises(UserError) as error:
        loop.train(cfg, tmp_path / "run")
    check_line(error, tmp_path / "run", "No space left on device", "step 2 is safe")
    assert Checkpoints(tmp_path / "run").steps == [2]
    assert [line["step"] for line in _curves(tmp_path / "run")] == [1, 2, 3]


HELD = """
import pathlib, sys, time
from prosam_jax.atomic import locked, replacing
with locked(pathlib.Path(sys.argv[1]), "held"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    """A lock does not outlive a killed process; what is refused leaves no folder behind."""
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", HELD, str(workdir / loop.LOCK)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=commands.ENVIRONMENT, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError) as error:
            loop.train(small_config(tmp_path / "voc"), workdir)
        check_line(error, workdir, "another process")
        other.kill()
    with locked(workdir / loop.LOCK, "held"):
        pass
    assert os.listdir(workdir) == []
    with pytest.raises(UserError):
        loop.train(replaced(small_config(tmp_path / "voc"), {"data.root": "no"}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_that_lost_its_checkpoints_does_not_begin_again(tmp_path):
    cfg = small_config(tmp_path / "voc", train={"checkpoint_every": 3})
    workdir = tmp_path / "run"
    workdir.mkdir()
    write_config(cfg, workdir / "config.json")
    text = "".join(json.dumps({"step": i, "train/loss": 1.0}) + "\n" for i in range(1, 6))
    (workdir / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError) as error:
        loop.train(cfg, workdir)
    check_line(error, workdir, "step 5", "checkpoints/", "--workdir")
    assert (workdir / "metrics.jsonl").read_text() == text


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "frozen.json", "dataset.json", "metrics.jsonl", "saved.json"),
        *("training.lock", "checkpoints", "tensorboard"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_the_training(tmp_path, name):
    cfg, workdir = small_config(tmp_path / "voc"), tmp_path / "run"
    workdir.mkdir()
    if "." in name:
        (workdir / name).mkdir()
        wrong = f"{workdir / name} must be a file and is a folder"
    else:
        (workdir / name).touch()
        wrong = f"{workdir / name} must be a folder and is a file"
    with pytest.raises(UserError) as error:
        loop.train(cfg, workdir)
    check_line(error, wrong)
    assert os.listdir(workdir) == [name]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"\xff\xfe", "0xff"),
        (b"[]", "a list"),
        (b'{"loss": 1}', "no step"),
        (b'{"step": "4"}', "'4'"),
        (b'{"step": true}', "True"),
        (b'{"step": -5}', "-5"),
        (b'{"step": 4', "Expecting"),
        (b"\0\0\0", "Expecting"),
    ],
)
def test_a_damaged_line_of_the_curves_is_named(tmp_path, line, told):
    held = b'{"step": 1, "train/loss": 2.0}\n' + line + b'\n{"step": 3, "train/loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(held)
    for read in (curves.read, curves.newest, lambda workdir: curves.Curves(workdir, 1)):
        with pytest.raises(UserError) as error:
            read(tmp_path)
        check_line(error, tmp_path / "metrics.jsonl", "line 2", told)
    assert (tmp_path / "metrics.jsonl").read_bytes() == held


def test_a_file_that_cannot_be_written_is_named_as_it_is_known(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, PermissionError(errno.EACCES, "Permission denied", "elsewhere")):
        with pytest.raises(OSError, match=error.strerror) as raised, replacing(path):
            raise error
        assert raised.value.filename == (str(path) if error is full else "elsewhere")
    with pytest.raises(OSError) as raised, replacing(tmp_path / "no" / "x") as part:
        part.write_text("new")
    assert raised.value.filename == str(tmp_path / "no" / "x")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("name", ["config.json", "frozen.json", "dataset.json"])
@pytest.mark.parametrize(
    ("held", "told"),
    [
        (b'{\n"a": "\xff"}', "line 2"),
        (b'{\n"a": 1\n"b": 2}', "line 3"),
        (b"[]", "a list"),
        (b"7", "a int"),
        (b"", "line 1"),
        (b"[" * 100_000, "nested"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path, name, held, told):
    (tmp_path / name).write_bytes(held)
    read = {
        "config.json": lambda: read_config(tmp_path / name),
        "frozen.json": lambda: prompt_encoder.read_frozen(tmp_path),
        "dataset.json": lambda: prompt_encoder.read_dataset(tmp_path),
    }
    with pytest.raises(UserError) as error:
        read[name]()
    check_line(error, tmp_path / name, told)


def test_tensorboard_has_the_curves_numbers(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    written = curves.Curves(tmp_path, 2)
    written.write("train", 3, {"loss": 0.5, "miou": 0.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []  # there already: nothing waits in a thread
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    written.close()
    assert [event.step for event in events] == [0, 3, 3]
    assert events[1].session_log.status == 1
    found = {value.tag: value.simple_value for value in events[2].summary.value}
    assert found == {"train/loss": 0.5, "train/miou": 0.25}


def test_curves_forget_the_steps_that_are_done_again(tmp_path):
    first = curves.Curves(tmp_path, 0)
    for i in (1, 2, 3):
        first.write("train", i, {"loss": float(i)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "train/lo')  # the machine went down here
    second = curves.Curves(tmp_path, 2)
    second.write("train", 3, {"loss": 30.0})
    second.close()
    assert [(line["step"], line["train/loss"]) for line in _curves(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]


@pytest.mark.parametrize("kept", [("metrics.jsonl",), ()])
def test_a_run_that_has_saved_once_does_not_begin_again(tmp_path, kept):
    (tmp_path / SAVED).write_text('{"step": 4}')
    for name in kept:
        (tmp_path / name).write_text('{"step": 1}\n')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        loop._check_no_history(tmp_path)
    check_line(error, tmp_path, "restore its checkpoints/")
    assert sorted(tmp_path.iterdir()) == before
