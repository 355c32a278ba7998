"""Files of trained prompt encoders: export from a run, scoring, training from them."""

import dataclasses
import errno
import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
from commands import one_line, status_of
from messages import check_line
from small import small_config

import prosam_jax
from prosam_jax import model, runs, share
from prosam_jax.config import read_config, replaced, write_config
from prosam_jax.errors import UserError
from prosam_jax.evaluation import controls, evaluate, results
from prosam_jax.report import pictures
from prosam_jax.training import loop, state
from prosam_jax.weights import files, prompt_encoder
from prosam_jax.weights.checkpoint import Checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a checkpoint of step 2 as if it were trained, its export and its scores."""
    root = tmp_path_factory.mktemp("trained")
    cfg = small_config(root / "voc")
    workdir = root / "run"
    workdir.mkdir()
    write_config(cfg, workdir / "config.json")
    prompt_encoder.write_frozen(cfg, workdir)
    dataset = prompt_encoder.Dataset("pascal", ["bus", "car"], "d" * 64)
    prompt_encoder.write_dataset(dataset, workdir)
    params = jax.tree.map(lambda x: x + 0.01, model.split(model.build(cfg)).params)
    tx = state.optimizer(cfg.train, state.schedule(cfg.train, images=1))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(2, state.create(params, tx))
    result = runs.score(replaced(cfg, {"eval.seed": 5}), workdir, "latest")
    share.export(workdir, "latest", root / "encoder.safetensors")
    return cfg, workdir, root / "encoder.safetensors", result


def test_a_file_scores_exactly_as_its_checkpoint(run, tmp_path):
    trained, _, file, of_checkpoint = run
    cfg = runs.settings_of_file(file, {"eval.seed": 5, "data.root": trained.data.root})
    assert cfg.prompt.weights == str(file)
    of_file = runs.score_file(cfg, tmp_path / "new")
    assert of_file.scores == of_checkpoint.scores
    assert of_file.lists[0].digest == of_checkpoint.lists[0].digest
    for ours, theirs in zip(of_file.examples, of_checkpoint.examples, strict=True):
        np.testing.assert_array_equal(ours.prediction, theirs.prediction)
    written = json.loads((tmp_path / "new" / "results.json").read_text())
    assert written["step"] == 2
    assert written["config"]["prompt"]["weights"] == str(file)


def test_the_file_says_what_it_was_trained_on(run):
    cfg, workdir, file, result = run
    trained = prompt_encoder.read(file)
    assert trained.config == replaced(cfg, {"data.root": ""})
    assert (trained.benchmark, trained.fold, trained.step) == ("pascal", 1, 2)
    assert trained.classes == ["bus", "car"]
    assert trained.merged_channels == 3 * 8 * 8
    assert trained.version == prosam_jax.__version__
    assert trained.frozen == {
        "sam": {"architecture": "tiny", "seed": 321},
        "backbone": {"architecture": "tiny", "seed": 321},
    }
    written = json.loads((workdir / "results.json").read_text())
    held = dict(trained.results)
    (changed,) = held.pop("settings")
    assert changed.startswith("eval.seed") and "321" in changed and "5" in changed
    assert held == {
        "miou": 100 * result.scores.miou,
        "fb_iou": 100 * result.scores.fb_iou,
        "per_class": written["per_class"],
        "episodes": 3,
        "episode_list_sha256": result.lists[0].digest,
    }


@pytest.fixture
def copied(run, tmp_path):
    """The run's folder to be changed, and its results."""
    workdir = tmp_path / "run"
    shutil.copytree(run[1], workdir)
    return workdir, json.loads((workdir / "results.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.update(step=1),
        lambda held: held["config"].update(seed=7),
        lambda held: held["config"]["prompt"].update(weights="another.safetensors"),
    ],
    ids=["another step", "another run", "a file's"],
)
def test_scores_of_other_parameters_stay_out(copied, tmp_path, change):
    workdir, held = copied
    out = tmp_path / "x.safetensors"
    assert share.export(workdir, "latest", out).results["miou"] == held["miou"]
    change(held)
    (workdir / "results.json").write_text(json.dumps(held))
    assert share.export(workdir, "latest", out).results is None
    assert prompt_encoder.read(out).results is None


@pytest.mark.parametrize("name", ["results.json", "examples.png"])
def test_a_place_that_cannot_be_written_is_named_before_the_work(
    run, copied, tmp_path, monkeypatch, name
):
    cfg, _, file, _ = run
    monkeypatch.setattr(evaluate, "test_episodes", None)
    (tmp_path / "scored" / name).mkdir(parents=True)
    (copied[0] / name).unlink()
    (copied[0] / name).mkdir()
    for score, workdir in (
        (lambda: runs.score(cfg, copied[0], "latest"), copied[0]),
        (lambda: runs.score_file(runs.settings_of_file(file, {}), tmp_path / "scored"), tmp_path),
    ):
        with pytest.raises(UserError) as error:
            score()
        check_line(error, workdir, f"{name} must be a file and is a folder")


@pytest.mark.parametrize(
    ("module", "writes", "name"),
    [(results, "write_results", "results.json"), (pictures, "draw_examples", "examples.png")],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_scores_that_cannot_be_written_are_shown(
    run, copied, monkeypatch, capsys, module, writes, name
):
    cfg, _, _, scored = run

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, writes, full)
    with pytest.raises(UserError) as error:
        runs.score(replaced(cfg, {"eval.seed": 5}), copied[0], "latest")
    check_line(error, copied[0] / name, "No space left on device")
    assert re.search(rf"mIoU.* {100 * scored.scores.miou:.2f}", capsys.readouterr().out)


def test_with_one_class_only_the_wrong_reference_is_left_out(run, copied, monkeypatch, capsys):
    cfg, workdir = replaced(run[0], {"eval.controls": True, "eval.pictures": 0}), copied[0]
    all_classes = evaluate.test_episodes

    def of_one_class(cfg, **given):
        source = all_classes(cfg, **given)
        kept = source.fold.filled[0]
        entries = {c: ids if c == kept else () for c, ids in source.fold.entries.items()}
        return dataclasses.replace(
            source, fold=dataclasses.replace(source.fold, entries=entries), length=2
        )

    monkeypatch.setattr(evaluate, "test_episodes", of_one_class)
    result = runs.score(cfg, workdir, "latest")
    left = [name for name in controls.MEANING if name != controls.WRONG]
    assert [x for x in result.others if x in controls.MEANING] == left
    assert list(json.loads((workdir / "results.json").read_text())["controls"]) == left
    note = "without the control 'reference of a wrong class': only one class is tested"
    assert note in capsys.readouterr().err


def test_a_run_without_scores_has_a_file_without(copied, tmp_path):
    workdir, _ = copied
    (workdir / "results.json").write_text('{"miou": 3')
    with pytest.raises(UserError) as error:
        share.export(workdir, "latest", tmp_path / "x")
    check_line(error, workdir / "results.json", "prosam evaluate")
    (workdir / "results.json").unlink()
    assert share.export(workdir, "latest", tmp_path / "x").results is None


def test_a_run_of_an_older_version_is_exported(copied, tmp_path):
    """It does not say what its dataset is known by, and has older names in its settings."""
    workdir, held = copied
    (workdir / "dataset.json").unlink()
    for name, settings in (("config.json", None), ("results.json", held)):
        written = settings or json.loads((workdir / name).read_text())
        data = written["config" if settings else "data"]
        data = data["data"] if settings else data
        data["cueless"] = data.pop("empty_annotation")
        (workdir / name).write_text(json.dumps(written))
    trained = share.export(workdir, "latest", tmp_path / "x")
    assert trained.classes is None
    assert trained.results["miou"] == held["miou"]
    assert prompt_encoder.read(tmp_path / "x") == trained


def test_a_model_begins_from_a_file(run):
    cfg, _, file, _ = run
    fresh = files.leaves(model.build(cfg).prompt_encoder)
    begun = model.build(replaced(cfg, {"prompt.weights": str(file), "prompt.dropout": 0.2}))
    held = files.leaves(begun.prompt_encoder)
    assert fresh.keys() == held.keys()
    for name, x in held.items():
        np.testing.assert_array_equal(x, fresh[name] + 0.01)
    assert begun.prompt_encoder.features.dropout == 0.2


def test_train_export_fine_tune_resume(tmp_path, capsys):
    cfg = small_config(tmp_path / "voc", train={"steps": 2, "eval_every": 0})
    loop.train(cfg, tmp_path / "first")
    file = tmp_path / "first.safetensors"
    share.export(tmp_path / "first", "best", file)
    assert prompt_encoder.read(file).classes == ["aeroplane", "diningtable"]
    root = {"data.root": cfg.data.root}
    of_file = runs.score_file(runs.settings_of_file(file, root), tmp_path / "scored")
    of_checkpoint = runs.score(cfg, tmp_path / "first", "best")
    assert of_file.scores == of_checkpoint.scores

    tuned = replaced(cfg, {"prompt.weights": str(file), "train.steps": 1})
    capsys.readouterr()
    loop.train(tuned, tmp_path / "run")
    assert f"{file} at step 0" in capsys.readouterr().err
    exported = share.export(tmp_path / "run", "best", tmp_path / "x")
    assert replaced(exported.config, root | {"prompt.weights": str(file)}) == tuned
    file.unlink()
    longer = replaced(tuned, {"train.steps": 2, "prompt.weights": "elsewhere.safetensors"})
    loop.train(longer, tmp_path / "run")
    began = read_config(tmp_path / "run" / "config.json")
    assert began.prompt.weights == str(file)
    assert "at step 1" in capsys.readouterr().err
    with pytest.raises(UserError) as error:
        loop.train(replaced(longer, {"prompt.weights": ""}), tmp_path / "run")
    check_line(error, tmp_path / "run", "prompt.weights")
    with pytest.raises(UserError) as error:
        loop.train(tuned, tmp_path / "another")
    check_line(error, file, "prosam export")
    assert not (tmp_path / "another").exists()


def test_a_run_is_not_scored_on_other_frozen_weights(run, copied):
    cfg, (workdir, _) = run[0], copied
    frozen = prompt_encoder.read_frozen(workdir)
    frozen["backbone"]["seed"] = 5
    (workdir / "frozen.json").write_text(json.dumps(frozen))
    with pytest.raises(UserError) as error:
        runs.score(cfg, workdir, "latest")
    check_line(error, workdir, "backbone.weights", "seed=5")
    (workdir / "frozen.json").unlink()
    with pytest.raises(UserError) as error:
        runs.score(cfg, workdir, "latest")
    check_line(error, workdir / "frozen.json")


def test_show_tells_people(run, capsys):
    _, _, file, result = run
    assert status_of("weights", "show", file) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for text in (
        f"mIoU {100 * result.scores.miou:.2f}", "FB-IoU", "192", "seed 321", "pascal, fold 1",
        "eval.seed", "prompt.num_queries",
    ):  # fmt: skip
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["weights", "show", "none.safetensors"], ["none.safetensors", "prosam export"]),
        (["weights", "show", "{run}"], ["{run}", "prosam export"]),
        (["export", "--workdir=none", "--out=x"], ["none/config.json", "--workdir"]),
        (["export", "--workdir={run}", "--out=x"], ["{run}", "--checkpoint=latest"]),
        (
            ["export", "--workdir={run}", "--out=x", "--checkpoint=9"],
            ["--checkpoint=9", "best", "latest"],
        ),
        (
            ["export", "--workdir={run}", "--out={run}/config.json", "--checkpoint=latest"],
            ["{run}/config.json", "--force"],
        ),
    ],
    ids=["no file", "a run", "no run", "no best", "no checkpoint", "in the way"],
)
def test_mistakes_get_one_line(run, tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert status_of(*(x.format(run=run[1]) for x in arguments)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    one_line(err, *(x.format(run=run[1]) for x in named))
    assert list(tmp_path.iterdir()) == []


def test_export_overwrites_when_it_is_told_to(run, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    out.write_text("older")
    words = ["export", "--workdir", run[1], "--out", out, "--checkpoint=latest"]
    assert status_of(*words) == 1
    assert out.read_text() == "older"
    assert status_of(*words, "--force") == 0
    assert out.read_bytes() == run[2].read_bytes()
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[]", "3", "{", '{"config": 3, "step": 6}'])
@pytest.mark.parametrize("name", ["results.json", "config.json", "frozen.json", "dataset.json"])
def test_a_damaged_file_of_a_run_is_named(copied, tmp_path, capsys, name, text):
    run, _ = copied
    (run / name).write_text(text)
    words = ["--workdir", run, "--checkpoint=latest", "--out", tmp_path / "x.safetensors"]
    assert status_of("export", *words) == 1
    one_line(capsys.readouterr().err, run / name)
