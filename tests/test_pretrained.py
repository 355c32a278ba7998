"""The packaged networks: what they were trained on, what their files say, how well they see."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
import safetensors
from conftest import told

from configs import shapes as recipe
from packaged import fitting, shapes_backbone, shapes_sam, training_pictures
from prosam_jax import model
from prosam_jax.config import BackboneConfig, Config, SAMSettings
from prosam_jax.data.datasets.outlines import FORMS, PLAIN, fill
from prosam_jax.errors import UserError
from prosam_jax.weights import files

FILES = {
    "sam": SAMSettings(model="shapes", weights="packaged").weight_file(),
    "backbone": BackboneConfig(name="shapes", weights="packaged").weight_file(),
}
TRAINERS = {"sam": shapes_sam, "backbone": shapes_backbone}


@pytest.fixture(scope="module")
def prosam():
    return model.build(Config.from_dict(recipe.get_config()))


def test_files_take_8_megabytes_at_most():
    assert sum(pathlib.Path(file).stat().st_size for file in FILES.values()) <= 8_000_000


@pytest.mark.parametrize("kind", FILES)
def test_files_say_where_they_come_from(kind):
    with safetensors.safe_open(FILES[kind], framework="numpy") as file:
        metadata = files.read_metadata(file, FILES[kind])
    assert (metadata["kind"], metadata["architecture"]) == (kind, "shapes")
    # The script's place when it made the file; it is packaged/shapes_*.py now.
    assert metadata["script"] == f"tools/train_shapes_{kind}.py"
    default = TRAINERS[kind].DEFAULT
    for name in ("steps", "batch_size", "count", "learning_rate", "seed"):
        assert f"{name}={getattr(default, name)}" in metadata["settings"].split()
    assert f"{default.count} generated pictures" in metadata["data"]
    assert metadata["version"]
    assert "=" in metadata["scores"]


def test_only_the_small_networks_come_with_the_package():
    with pytest.raises(UserError) as error:
        SAMSettings(model="vit_b", weights="packaged")
    told(error, "sam.weights=packaged", "sam.model=shapes", "vit_b")
    with pytest.raises(UserError) as error:
        BackboneConfig(name="resnet50", weights="packaged")
    told(error, "backbone.weights=packaged", "backbone.name=shapes", "resnet50")


def test_a_missing_file_is_made_by_its_script():
    cfg = recipe.get_config()
    cfg["sam"] = cfg["sam"] | {"weights": "none.safetensors"}
    with pytest.raises(UserError) as error:
        model.build(Config.from_dict(cfg))
    told(error, "none.safetensors", "python packaged/shapes_sam.py --out none.safetensors")


def _raster(form, turn=0.0, mirror=1):
    matrix = np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    placed = tuple(0.25 * (o * (mirror, 1)) @ matrix + 0.5 for o in form)
    raster = np.zeros((64, 64), np.float32)
    ((window, inside),) = fill([placed], 64)
    raster[window] = inside
    return raster


def _spectra(forms):
    rasters = np.stack([_raster(form) for form in forms])
    return np.fft.rfft2(rasters).conj().astype(np.complex64), rasters.sum((1, 2))


def _best_fit(form, spectra, areas, turns=48):
    """Greatest IoU of a form with each of some others over all turns, mirrored or not, and all
    shifts by whole pixels: correlations by the Fourier transform."""
    best = np.zeros(len(areas))
    for turn in np.linspace(0, 2 * np.pi, turns, endpoint=False):
        for mirror in (-1, 1):
            raster = _raster(form, turn, mirror)
            both = np.fft.irfft2(np.fft.rfft2(raster)[None] * spectra, s=(64, 64)).max((1, 2))
            best = np.maximum(best, both / (raster.sum() + areas - both))
    return best


def test_the_best_fit_finds_a_form_wherever_it_lies():
    elbow = FORMS["elbow"]
    turn, shift = np.array([(0, 1), (-1, 0)]), np.array([(0.25, -0.125)])
    moved = tuple(outline @ turn + shift for outline in elbow)
    itself, ring = _best_fit(elbow, *_spectra([moved, FORMS["ring"]]))
    assert itself > 0.95
    assert ring < 0.7


@pytest.mark.exhaustive
def test_no_training_outline_is_one_of_the_benchmark():
    """At no place and angle, mirrored or not, does one fit an outline of the benchmark well."""
    trained = training_pictures.catalogue()
    assert len(trained) == training_pictures.CLASSES
    spectra, areas = _spectra(trained)
    for form in (*FORMS.values(), *PLAIN):
        assert _best_fit(form, spectra, areas).max() < training_pictures.LIKENESS


@pytest.mark.slow
def test_pictures_are_their_numbers_alone():
    image, objects, classes = training_pictures.picture(3)
    again = training_pictures.picture(3)
    for a, b in zip((image, objects, classes), again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (image != training_pictures.picture(4)[0]).any()
    shown = set(objects.ravel().tolist()) - {0}
    assert shown == set(np.flatnonzero(classes).tolist())
    assert classes[0] == 0 and classes.max() <= training_pictures.CLASSES


def test_references_show_the_classes_that_they_stand_for():
    classes = np.array([[0, 1, 2, 2, 0], [0, 2, 3, 0, 0], [0, 3, 1, 4, 4], [0, 4, 1, 3, 0]])
    numbers = np.arange(len(classes))
    data = training_pictures.Pictures(numbers, numbers, classes)
    cfg = dataclasses.replace(shapes_sam.DEFAULT, count=4, batch_size=3)
    for step in range(10):
        batch = fitting.draw_batch(data, cfg, step, references=2)
        assert batch.images.shape == (9,) and batch.wanted.shape == (6,)
        for i, wanted in enumerate(batch.wanted):
            assert wanted > 0
            assert wanted in batch.classes[i % 3]
            assert wanted in batch.classes[3 + i]
            assert (batch.images[3 + i] != batch.images[i % 3]).all()  # another picture's number
        assert (batch.wanted[:3] != batch.wanted[3:]).all()
    assert fitting.draw_batch(data, cfg, 0, references=0).images.shape == (3,)


@pytest.mark.slow
def test_a_click_and_a_box_say_what_is_wanted(prosam):
    scores = shapes_sam.scores(prosam.sam, count=2)
    assert scores["box"] > 0.6
    assert scores["click"] > scores["empty"] + 0.3


@pytest.mark.slow
def test_features_tell_unseen_classes_apart(prosam):
    scores = shapes_backbone.scores(prosam.backbone, episodes=24)
    assert scores["knn_prior"] > 0.2  # by chance 0.05
    assert scores["prior"] > 0.2  # everything foreground: 0.07


@pytest.mark.slow
def test_running_statistics_are_those_of_the_batches():
    model_ = shapes_backbone.fresh(shapes_backbone.DEFAULT)
    norm = model_.network.stem[0].bn
    x = jax.random.normal(jax.random.key(0), (4, 6, 5, norm.bias[...].size)) * 3 + 2
    y = norm(x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-4)
    keep = shapes_backbone.MOMENTUM
    expected = (1 - keep) * x.mean((0, 1, 2))
    np.testing.assert_allclose(norm.running_mean[...], expected, rtol=1e-4)
    frozen = shapes_backbone.frozen(model_)
    np.testing.assert_array_equal(frozen.stem[0].bn.running_mean[...], norm.running_mean[...])


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", TRAINERS)
def test_a_killed_training_goes_on_to_the_same_bits(kind, tmp_path, monkeypatch):
    trainer = TRAINERS[kind]
    cfg = dataclasses.replace(
        trainer.DEFAULT,
        steps=2,
        batch_size=2,
        count=6,
        checkpoint_every=1,
        workdir=tmp_path / "a",
    )
    whole = files.leaves(fitting.fit(cfg, trainer.fresh(cfg), trainer.loss))
    cfg = dataclasses.replace(cfg, workdir=tmp_path / "b")
    batch = fitting.draw_batch

    def killed(data, cfg, step, references):
        if step == 1:
            raise KeyboardInterrupt
        return batch(data, cfg, step, references)

    monkeypatch.setattr(fitting, "draw_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        fitting.fit(cfg, trainer.fresh(cfg), trainer.loss)
    monkeypatch.setattr(fitting, "draw_batch", batch)
    resumed = files.leaves(fitting.fit(cfg, trainer.fresh(cfg), trainer.loss))
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name], err_msg=name)
