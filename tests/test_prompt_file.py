"""Files of trained prompt encoders: export from a run, scoring, training from them."""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from small import small_config

import prosam_jax
from prosam_jax import model, runs, share
from prosam_jax.config import Config, read_config, replaced, write_config
from prosam_jax.training import loop, state
from prosam_jax.weights import files, prompt_encoder
from prosam_jax.weights.checkpoint import Checkpoints
from prosam_jax.weights.prompt_encoder import Trained

EXPORT = "prosam export"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a checkpoint of step 2 as if it were trained, its export and its scores."""
    root = tmp_path_factory.mktemp("trained")
    cfg = small_config(root / "voc")
    workdir = root / "run"
    workdir.mkdir()
    write_config(cfg, workdir / "config.json")
    prompt_encoder.write_frozen(cfg, workdir)
    params = jax.tree.map(lambda x: x + 0.01, model.split(model.build(cfg)).params)
    tx = state.optimizer(cfg.train, state.schedule(cfg.train, images=1))
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.save(2, state.create(params, tx))
    result = runs.score(replaced(cfg, {"eval.seed": 5}), workdir, "latest")
    share.export(workdir, "latest", root / "encoder.safetensors")
    return cfg, workdir, root / "encoder.safetensors", result


@pytest.mark.slow
def test_a_file_scores_exactly_as_its_checkpoint(run, tmp_path):
    trained, _, file, of_checkpoint = run
    cfg = runs.settings_of_file(file, {"eval.seed": 5, "data.root": trained.data.root})
    assert cfg.prompt.weights == str(file)
    of_file = runs.score_file(cfg, tmp_path / "new")
    assert of_file.scores == of_checkpoint.scores
    assert of_file.digest == of_checkpoint.digest
    for ours, theirs in zip(of_file.examples, of_checkpoint.examples, strict=True):
        np.testing.assert_array_equal(ours.prediction, theirs.prediction)
    written = json.loads((tmp_path / "new" / "results.json").read_text())
    assert written["step"] == 2
    assert written["config"]["prompt"]["weights"] == str(file)


@pytest.mark.slow
def test_the_file_says_what_it_was_trained_on(run):
    cfg, workdir, file, result = run
    trained = prompt_encoder.read(file)
    assert trained.config == replaced(cfg, {"data.root": ""})
    assert (trained.benchmark, trained.fold, trained.step) == ("pascal", 1, 2)
    assert trained.merged_channels == 3 * 8 * 8
    assert trained.version == prosam_jax.__version__
    assert trained.frozen == {
        "sam": {"architecture": "tiny", "seed": 321},
        "backbone": {"architecture": "tiny", "seed": 321},
    }
    written = json.loads((workdir / "results.json").read_text())
    assert trained.results == {
        "miou": 100 * result.scores.miou,
        "fb_iou": 100 * result.scores.fb_iou,
        "per_class": written["per_class"],
        "episodes": 3,
        "episode_list_sha256": result.digest,
        "settings": ["eval.seed: 321 -> 5"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"step": 1},
        {"config": {"seed": 7}},
        {"config": {"prompt": {"weights": "another.safetensors"}}},
    ],
    ids=["another step", "another run", "a file's"],
)
def test_scores_of_other_parameters_stay_out(run, tmp_path, change):
    cfg, workdir, _, _ = run
    held = json.loads((workdir / "results.json").read_text())
    for name, value in change.items():
        held[name] = held[name] | value if isinstance(value, dict) else value
    if "prompt" in change.get("config", {}):
        held["config"]["prompt"] = dataclasses.asdict(cfg)["prompt"] | change["config"]["prompt"]
    (tmp_path / "results.json").write_text(json.dumps(held))
    assert share._results(tmp_path / "results.json", cfg, 2) is None
    assert share._results(workdir / "results.json", cfg, 2) is not None


@pytest.mark.slow
def test_damaged_results_are_named(run, tmp_path):
    cfg = run[0]
    assert share._results(tmp_path / "results.json", cfg, 2) is None
    (tmp_path / "results.json").write_text('{"miou": 3')
    with pytest.raises(ValueError, match=r"results\.json is damaged .*run evaluate\.py again"):
        share._results(tmp_path / "results.json", cfg, 2)


@pytest.mark.slow
def test_a_model_begins_from_a_file(run):
    cfg, _, file, _ = run
    fresh = files.leaves(model.build(cfg).prompt_encoder)
    begun = model.build(replaced(cfg, {"prompt.weights": str(file), "prompt.dropout": 0.2}))
    held = files.leaves(begun.prompt_encoder)
    assert fresh.keys() == held.keys()
    for name, x in held.items():
        np.testing.assert_array_equal(x, fresh[name] + 0.01)
    assert begun.prompt_encoder.features.dropout == 0.2


@pytest.mark.slow
def test_train_export_fine_tune_resume(tmp_path, capsys):
    cfg = small_config(tmp_path / "voc", train={"steps": 2, "eval_every": 0})
    loop.train(cfg, tmp_path / "first")
    file = tmp_path / "first.safetensors"
    share.export(tmp_path / "first", "best", file)
    root = {"data.root": cfg.data.root}
    of_file = runs.score_file(runs.settings_of_file(file, root), tmp_path / "scored")
    of_checkpoint = runs.score(cfg, tmp_path / "first", "best")
    assert of_file.scores == of_checkpoint.scores

    tuned = replaced(cfg, {"prompt.weights": str(file), "train.steps": 1})
    loop.train(tuned, tmp_path / "run")
    assert f"starting with {file} at step 0 in" in capsys.readouterr().out
    exported = share.export(tmp_path / "run", "best", tmp_path / "x")
    assert replaced(exported.config, root | {"prompt.weights": str(file)}) == tuned
    file.unlink()
    longer = replaced(tuned, {"train.steps": 2, "prompt.weights": "elsewhere.safetensors"})
    loop.train(longer, tmp_path / "run")
    began = read_config(tmp_path / "run" / "config.json")
    assert began.prompt.weights == str(file)
    assert "going on at step 1 in" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds a run with other settings .prompt\.weights"):
        loop.train(replaced(longer, {"prompt.weights": ""}), tmp_path / "run")
    with pytest.raises(ValueError, match=f"first.safetensors is missing; make it with: {EXPORT}"):
        loop.train(tuned, tmp_path / "another")
    assert not (tmp_path / "another").exists()


def _file(path, cfg, *, sam_sha=None, backbone_sha=None, **fields):
    """A file that says this and holds no prompt encoder."""
    frozen = {
        "sam": {"architecture": cfg.sam.model, "arrays_sha256": sam_sha},
        "backbone": {"architecture": cfg.backbone.name, "arrays_sha256": backbone_sha},
    }
    known = {"frozen": frozen, "version": "0.1.0", "merged_channels": 192} | fields
    prompt_encoder.save(path, {"x": jax.numpy.zeros(3)}, Trained(config=cfg, **known))
    return pathlib.Path(path)


@pytest.fixture
def weighed(tmp_path, monkeypatch):
    """Settings whose frozen weight files say where they come from."""
    monkeypatch.chdir(tmp_path)
    for kind, architecture, sha in (("sam", "tiny", "a" * 64), ("backbone", "resnet50", "b" * 64)):
        metadata = {"kind": kind, "architecture": architecture, "arrays_sha256": sha}
        files.save(f"{kind}.safetensors", {"x": np.zeros(2, np.float32)}, metadata)
    return Config.from_dict(
        {
            "sam": {"model": "tiny", "weights": "sam.safetensors"},
            "backbone": {"weights": "backbone.safetensors"},
        }
    )


@pytest.mark.parametrize(
    ("changes", "held", "wanted"),
    [
        ({"distribution.name": "gaussian"}, "distribution.name=gaussian", "name=student_t"),
        ({"prompt.num_queries": 7}, "prompt.num_queries=7", "prompt.num_queries=50"),
        ({"prompt.num_heads": 8}, "prompt.num_heads=8", "prompt.num_heads=4"),
        ({"prompt.normalize_prior": True}, "prompt.normalize_prior=True", "prior=False"),
        ({"backbone.name": "vgg16"}, "backbone.name=vgg16", "backbone.name=resnet50"),
        ({"sam.model": "vit_b"}, "sam.model=vit_b", "sam.model=tiny"),
        (
            {"sam.model": "vit_l", "prompt.num_queries": 9},
            "prompt.num_queries=9, sam.model=vit_l",
            "prompt.num_queries=50, sam.model=tiny",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_named(weighed, changes, held, wanted):
    path = _file("p.safetensors", replaced(weighed, changes))
    with pytest.raises(ValueError) as error:
        prompt_encoder.check_fit(path, weighed)
    message = str(error.value)
    assert message.startswith(f"p.safetensors was trained with {held}, but the settings say ")
    assert wanted in message
    assert message.endswith(f"; set {held}")
    assert "\n" not in message


def test_what_does_not_matter_may_differ(weighed):
    held = replaced(
        weighed, {"sam.dtype": "bfloat16", "distribution.nu": 3.0, "prompt.dropout": 0.1}
    )
    prompt_encoder.check_fit(_file("known", held, sam_sha="a" * 64, backbone_sha="b" * 64), weighed)
    prompt_encoder.check_fit(_file("unknown", held), weighed)
    prompt_encoder.check_fit(_file("half known", held, backbone_sha="b" * 64), weighed)


@pytest.mark.parametrize("kind", ["sam", "backbone"])
def test_other_frozen_weights_are_refused(weighed, kind):
    path = _file("p.safetensors", weighed, **{f"{kind}_sha": "c" * 64})
    with pytest.raises(ValueError) as error:
        prompt_encoder.check_fit(path, weighed)
    message = str(error.value)
    assert f"with weights of sha256 {'c' * 64}, but " in message
    given = {"sam": "a", "backbone": "b"}[kind]
    assert f"{kind}.weights has weights of sha256 {given}" in message
    assert message.endswith(f"; set {kind}.weights to the file of the training")
    assert "\n" not in message


def test_random_weights_are_those_of_their_seed(weighed):
    cfg = replaced(weighed, {"sam.weights": "random", "backbone.weights": "random", "seed": 4})
    path = _file("p", cfg, frozen=prompt_encoder.frozen_weights(cfg))
    prompt_encoder.check_fit(path, cfg)
    with pytest.raises(ValueError, match=r"random weights of seed 4, but .* of seed 5.*and seed=4"):
        prompt_encoder.check_fit(path, replaced(cfg, {"seed": 5}))
    with pytest.raises(ValueError, match=r"of seed 4, but .* sha256 a+, .*set sam\.weights=random"):
        prompt_encoder.check_fit(path, weighed)
    with pytest.raises(ValueError, match=r"nobody knows, but sam\.weights has random weights"):
        prompt_encoder.check_fit(_file("q", weighed), cfg)


def test_another_fold_has_seen_the_test_classes(weighed):
    path = _file("p", weighed, fold=1, benchmark="pascal")
    prompt_encoder.check_fit(path, replaced(weighed, {"data.fold": 1}))
    prompt_encoder.check_fit(path, replaced(weighed, {"data.name": "shapes"}))
    with pytest.raises(ValueError, match=r"test classes of fold 2; set data\.fold=1"):
        prompt_encoder.check_fit(path, replaced(weighed, {"data.fold": 2}))


def test_other_novel_classes_may_have_been_trained_on(weighed):
    own = replaced(weighed, {"data.name": "folder", "data.novel": "fox,owl"})
    path = _file("p", own, fold=0, benchmark="folder")
    prompt_encoder.check_fit(path, own)
    with pytest.raises(ValueError, match=r"may have seen .* data\.novel='cat'; set .*='fox,owl'"):
        prompt_encoder.check_fit(path, replaced(own, {"data.novel": "cat"}))


@pytest.mark.slow
def test_a_run_is_not_scored_on_other_frozen_weights(run, tmp_path):
    cfg, workdir, _, _ = run
    other = tmp_path / "run"
    shutil.copytree(workdir, other)
    frozen = prompt_encoder.read_frozen(other)
    frozen["backbone"]["seed"] = 5
    (other / "frozen.json").write_text(json.dumps(frozen))
    with pytest.raises(ValueError, match=r"run was trained on tiny with random weights of seed 5"):
        runs.score(cfg, other, "latest")
    (other / "frozen.json").unlink()
    with pytest.raises(ValueError, match=r"frozen\.json is missing or damaged"):
        runs.score(cfg, other, "latest")


def test_the_same_numbers_are_the_same_weights_whatever_their_source(weighed):
    metadata = {"kind": "sam", "architecture": "tiny"}
    checksums = []
    for source, value in (("a.pth", 1.0), ("b.safetensors", 1.0), ("a.pth", 2.0)):
        x = np.full(2, value, np.float32)
        files.save("w.safetensors", {"x": x}, metadata | {"source_name": source})
        checksums.append(files.metadata("w.safetensors", made_by="")["arrays_sha256"])
    assert checksums[0] == checksums[1] != checksums[2]


def test_files_of_another_kind_are_named(weighed, tmp_path):
    with pytest.raises(ValueError, match=f"none.safetensors is missing; make it with: {EXPORT}"):
        prompt_encoder.read("none.safetensors")
    with pytest.raises(ValueError, match="is no file of a trained prompt encoder; make one with"):
        prompt_encoder.read("sam.safetensors")
    (tmp_path / "cut").write_bytes((tmp_path / "sam.safetensors").read_bytes()[:50])
    with pytest.raises(ValueError, match="cut is no complete safetensors file"):
        prompt_encoder.read("cut")
    bare = {"kind": "prompt_encoder", "architecture": "vrp"}
    files.save("bare", {"x": np.zeros(2, np.float32)}, bare)
    with pytest.raises(ValueError, match="bare does not say its config, merged_channels, frozen"):
        prompt_encoder.read("bare")
    frozen = {kind: {"architecture": "x", "seed": 1} for kind in ("sam", "backbone")}
    later = bare | {"merged_channels": 3, "frozen": frozen, "version": "9", "config": {"novel": 1}}
    files.save("later", {"x": np.zeros(2, np.float32)}, later)
    with pytest.raises(ValueError, match="settings unknown here: unknown setting novel"):
        prompt_encoder.read("later")
    with pytest.raises(ValueError, match=r"does not fit distribution\.name=student_t"):
        model.load_prompt_encoder(_file("hollow", weighed), weighed, 192)


def test_an_unknown_fold_must_be_given(weighed):
    path = _file("p", weighed)
    with pytest.raises(ValueError, match=r"which fold.*pass --config\.data\.fold=0, 1, 2 or 3"):
        runs.settings_of_file(path, {})
    cfg = runs.settings_of_file(path, {"data.fold": 2, "data.name": "shapes"})
    assert (cfg.data.fold, cfg.data.name) == (2, "shapes")
    known = _file("known", weighed, fold=0, benchmark="pascal")
    assert runs.settings_of_file(known, {"data.root": "x"}).data.root == "x"
    with pytest.raises(ValueError, match=r"fold 0 and has seen the classes that data\.fold=1"):
        runs.settings_of_file(known, {"data.fold": 1})
    moved = runs.settings_of_file(known, {"sam.weights": "elsewhere.safetensors"})
    assert moved.sam.weights == "elsewhere.safetensors"


@pytest.mark.slow
def test_show_tells_people(run, capsys):
    _, _, file, result = run
    assert share.main(["show", str(file)]) == 0
    out = capsys.readouterr().out
    assert f"mIoU {100 * result.scores.miou:.2f}, FB-IoU" in out
    assert "tiny (192 merged channels), random weights of seed 321" in out
    assert "pascal, fold 1 kept for testing" in out
    assert "eval.seed: 321 -> 5" in out
    assert "  prompt.num_queries: 50 -> 5\n" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "none"], "none is missing"),
        (["export", "--workdir=none", "--out=x"], "none/config.json is missing"),
        (["export", "--workdir={run}", "--out=x", "--checkpoint=9"], "--checkpoint=9: "),
        (["export", "--workdir={run}", "--out={run}/config.json"], "{run}/config.json exists"),
    ],
    ids=["show", "no run", "no checkpoint", "in the way"],
)
def test_mistakes_get_one_line(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert share.main([x.format(run=run[1]) for x in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.format(run=run[1])}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
