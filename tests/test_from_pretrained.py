"""`from_pretrained`: one name for a trained model, whichever class is asked."""

import pathlib

import fake_hub
import jax
import numpy as np
import pytest
from flax import nnx
from messages import check_line
from small import prompt_encoder_file, small_config

from prosam_jax import SamPredictor, Segmenter, model, share
from prosam_jax.config import packaged, write_config
from prosam_jax.errors import UserError
from prosam_jax.model import ProSAM
from prosam_jax.training import state
from prosam_jax.weights import files, pretrained, prompt_encoder
from prosam_jax.weights.checkpoint import Checkpoints

CLASSES = (ProSAM, Segmenter, SamPredictor)
REPO = "somebody/vrp-tiny"


def _write_run(cfg, workdir, built, miou=0.5):
    """A run of two checkpoints, of which the earlier one is the best if it was validated.

    Its parameters are those of `built`; the later ones, of step 4, are larger by 1.
    """
    workdir.mkdir()
    write_config(cfg, workdir / "config.json")
    prompt_encoder.write_frozen(cfg, workdir)
    params = model.split(built).params
    tx = state.optimizer(cfg.train, state.schedule(cfg.train, images=1))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(2, state.create(params, tx), miou=miou)
    checkpoints.save(4, state.create(jax.tree.map(lambda x: x + 1, params), tx))
    return workdir


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One prompt encoder as a file and as a run, with random networks of another seed than 0."""
    root = tmp_path_factory.mktemp("trained")
    file = prompt_encoder_file(root / "encoder.safetensors")
    built = ProSAM.from_pretrained(file)
    return file, _write_run(small_config(root / "voc"), root / "run", built), built


@pytest.fixture(params=["name", "file", "run", "hub"])
def source(request, trained, tmp_path, monkeypatch):
    """The same in each place that a name can mean."""
    file, run, _ = trained
    if request.param != "hub":
        monkeypatch.setitem(pretrained.PACKAGED_ENCODERS, "prosam-mine", file)
        yield {"name": "prosam-mine", "file": str(file), "run": run}[request.param]
        return
    with fake_hub.logged_in(tmp_path, monkeypatch) as hub:
        fake_hub.make_default(hub, monkeypatch)
        share.push(file, REPO)
        yield REPO


def equal(ours, theirs):
    """Checks that two modules hold the same arrays, each on one device."""
    held, wanted = files.leaves(ours), files.leaves(theirs)
    assert held.keys() == wanted.keys()
    for name, x in held.items():
        np.testing.assert_array_equal(x, wanted[name])
        assert len(x.devices()) == 1


def test_every_class_takes_every_name_and_the_same_overrides(source, trained):
    built = trained[2]
    changes = {"sam": {"dtype": "bfloat16"}}
    prosam = ProSAM.from_pretrained(source, **changes)
    segmenter = Segmenter.from_pretrained(source, **changes)
    predictor = SamPredictor.from_pretrained(source, **changes)
    for made in (prosam, segmenter.model):
        equal(made.prompt_encoder, built.prompt_encoder)
        equal(made.backbone, built.backbone)
    for sam in (prosam.sam, segmenter.model.sam, predictor.model):
        equal(sam, built.sam)
        assert (sam.cfg.dtype, sam.cfg.image_size) == ("bfloat16", (64, 64))
    assert segmenter.image_size == 64


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weigths": "x"}, ["sam.weigths", "sam.weights"]),
        ({"dtype": "float16"}, ["sam.dtype", "float16", "bfloat16"]),
        ({"image_size": 128}, ["sam.image_size", "64", "128"]),
        ({"model": "vit_b"}, ["sam.model", "tiny", "vit_b"]),
        ({"weights": "none.safetensors"}, ["sam.weights"]),
    ],
    ids=str,
)
def test_overrides_that_are_not_to_be_changed_are_named(trained, cls, changes, named):
    for name in trained[:2]:
        with pytest.raises(UserError) as error:
            cls.from_pretrained(name, sam=changes)
        check_line(error, *named)


def test_settings_that_a_model_does_not_read_are_named(trained):
    file = trained[0]
    assert ProSAM.from_pretrained(file, data={"downsample": "coverage"}).downsample == "coverage"
    for cls, changes, named in (
        (ProSAM, {"data": {"shots": 5}}, "data.shots"),
        (Segmenter, {"eval": {"episodes": 3}}, "eval.episodes"),
        (Segmenter, {"prompt": {"num_queries": 7}}, "prompt.num_queries"),
        (SamPredictor, {"data": {"downsample": "coverage"}}, "data.downsample"),
    ):
        with pytest.raises(UserError) as error:
            cls.from_pretrained(file, **changes)
        check_line(error, named)


@pytest.mark.parametrize(("miou", "added"), [(0.5, 0), (None, 1)], ids=["best", "latest"])
def test_of_a_run_the_best_checkpoint_is_taken_or_the_latest(trained, tmp_path, miou, added):
    built = trained[2]
    run = _write_run(small_config(tmp_path / "voc"), tmp_path / "run", built, miou)
    graph, params, frozen = model.split(built)
    params = jax.tree.map(lambda x: x + added, params)
    equal(ProSAM.from_pretrained(run), nnx.merge(graph, params, frozen))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("prosam-shape", ["'prosam-shape'", "prosam-shapes"]),
        ("nothing", ["'nothing'", "prosam-shapes"]),
        ("runs/none/x", ["runs/none/x"]),
        (".", ["config.json"]),
    ],
)
def test_names_of_nothing_are_told(cls, name, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        cls.from_pretrained(name)
    check_line(error, *named)


@pytest.mark.parametrize(
    ("cls", "command"),
    [
        (ProSAM, "prosam export"),
        (Segmenter, "prosam export"),
        (SamPredictor, "prosam weights convert sam"),
    ],
)
def test_a_missing_file_is_named_with_what_makes_it(cls, command, tmp_path):
    with pytest.raises(UserError) as error:
        cls.from_pretrained(tmp_path / "none.safetensors")
    check_line(error, tmp_path / "none.safetensors", command)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_repository_that_is_not_there_is_told(cls, tmp_path, monkeypatch):
    with fake_hub.logged_in(tmp_path, monkeypatch) as hub:
        fake_hub.make_default(hub, monkeypatch)
        with pytest.raises(UserError) as error:
            cls.from_pretrained("somebody/else")
        check_line(error, hub.url, "somebody/else")


def test_sams_have_names_and_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shapes = SamPredictor.from_pretrained("sam_shapes").model
    equal(shapes, ProSAM.from_pretrained("prosam-shapes").sam)
    file = pathlib.Path(packaged("sam", "shapes"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "mine").write_bytes(file.read_bytes())
    equal(SamPredictor.from_pretrained("~/mine", sam={"dtype": "bfloat16"}).model, shapes)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no cache"))
    for name, named in (
        ("sam_vit_h", ["facebook/sam-vit-huge", "prosam weights get sam_vit_h --from FILE"]),
        ("sam_vitb", ["'sam_vitb'", "sam_vit_b"]),
    ):
        with pytest.raises(UserError) as error:
            SamPredictor.from_pretrained(name)
        check_line(error, *named)
