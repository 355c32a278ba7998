import collections
import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import told

from prosam_jax.config import DataConfig
from prosam_jax.data.datasets import outlines, shapes
from prosam_jax.data.datasets.shapes import PICTURES, Shapes, shapes_episodes, shapes_index
from prosam_jax.data.episodes import draw_test, draw_train
from prosam_jax.data.folds import SPLITS, digest
from prosam_jax.errors import UserError

FOLDS = [(fold, split) for fold in range(4) for split in SPLITS]


def _digest(array):
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()[:12]


def test_classes_have_names():
    assert len(set(shapes.SHAPES_5I.class_names)) == 20
    assert [Shapes().class_name(c) for c in (1, 2, 20)] == ["star", "ring", "hexagon"]


@pytest.mark.parametrize("name", outlines.FORMS)
def test_forms_cover_their_area(name):
    form = tuple(0.3 * outline + 0.5 for outline in outlines.FORMS[name])
    ((_, inside),) = outlines.fill([form], 400)
    assert inside.sum() / 400**2 == pytest.approx(0.3**2, rel=0.01)


def test_forms_are_told_apart_by_outline_at_any_angle():
    """No form turned and mirrored at will fits another of the same area well."""

    def raster(form, turn, mirror=1):
        matrix = np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
        placed = tuple(0.35 * (o * (mirror, 1)) @ matrix + 0.5 for o in form)
        ((window, inside),) = outlines.fill([placed], 48)
        picture = np.zeros((48, 48), bool)
        picture[window] = inside
        return picture.ravel().astype(int)

    turns = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    still = np.stack([raster(form, 0) for form in outlines.FORMS.values()])
    for number, form in enumerate(outlines.FORMS.values()):
        turned = np.stack([raster(form, t, m) for t in turns for m in (-1, 1)])
        both = turned @ still.T
        either = turned.sum(axis=1)[:, None] + still.sum(axis=1)[None] - both
        best = (both / either).max(axis=0)
        assert best[number] > 0.95
        assert np.delete(best, number).max() < 0.85


def test_fill_takes_pixels_by_their_centres():
    whole = np.array([(0.2, 0.22), (0.72, 0.22), (0.72, 0.6), (0.2, 0.6)])
    hole = np.array([(0.36, 0.36), (0.64, 0.36), (0.64, 0.46), (0.36, 0.46)])
    ((window, inside),) = outlines.fill([(whole, hole)], 10)
    filled = np.zeros((10, 10), bool)
    filled[window] = inside
    expected = np.zeros((10, 10), bool)
    expected[2:6, 2:7] = True
    expected[4, 4:6] = False
    np.testing.assert_array_equal(filled, expected)


@pytest.mark.parametrize("shift", [(-0.6, 0), (0.6, 0), (0, -0.6), (0, 0.6), (2, 2), (-2, -2)])
def test_fill_cuts_at_the_border(shift):
    size, big = 16, 48
    form = (outlines.radial([0.3] * 7) + 0.5 + shift,)
    ((window, inside),) = outlines.fill([form], size)
    cut = np.zeros((size, size), bool)
    cut[window] = inside
    whole = np.zeros((big, big), bool)
    ((window, inside),) = outlines.fill([((form[0] + 1) / 3,)], big)
    whole[window] = inside
    np.testing.assert_array_equal(cut, whole[size : 2 * size, size : 2 * size])


def test_fill_keeps_forms_apart():
    shifts = (0, 0.4, 3, -0.3)  # the third lies outside
    few = list(outlines.FORMS.values())[: len(shifts)]
    forms = [tuple(0.3 * o + 0.5 + t for o in f) for f, t in zip(few, shifts, strict=True)]
    for found, form in zip(outlines.fill(forms, 31), forms, strict=True):
        ((window, inside),) = outlines.fill([form], 31)
        assert found[0] == window
        np.testing.assert_array_equal(found[1], inside)


def test_label_maps_are_for_ever():
    digests = [_digest(Shapes(128).labels(f"f{k}-test-00000{k}")) for k in range(4)]
    assert digests == ["551316200f54", "74aa01f1a88b", "b827288c2cf6", "e2dd3a99f06d"]


def test_indices_are_for_ever():
    assert digest(shapes_index(0, "test"))[:12] == "afc9e85cd1c0"
    assert digest(shapes_index(3, "train"))[:12] == "403f09aab5e2"


def test_a_picture_depends_on_its_id_alone():
    ids = [f"f{fold}-{split}-{n:06d}" for fold, split in FOLDS for n in (0, 7)]
    pictures = pickle.loads(pickle.dumps(Shapes(64)))
    forwards = [_digest(pictures.image(i)) + _digest(pictures.labels(i)) for i in ids]
    assert len(set(forwards)) == len(ids)
    code = (
        "import hashlib, numpy as np; from prosam_jax.data.datasets.shapes import Shapes\n"
        "digest = lambda x: hashlib.sha256(np.asarray(x).tobytes()).hexdigest()[:12]\n"
        f"for i in {ids[::-1]}: print(digest(Shapes(64).labels(i)), digest(Shapes(64).image(i)))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    backwards = [image + labels for labels, image in map(str.split, run.stdout.splitlines())]
    assert forwards == backwards[::-1]


def test_seed_and_number_give_other_pictures():
    pictures = [Shapes(64), Shapes(64, seed=6)]
    labels = [p.labels(f"f0-train-00000{n}") for p in pictures for n in range(2)]
    assert len(set(map(_digest, labels))) == 4


def test_both_halves_of_a_picture_cost_one_rendering(monkeypatch):
    drawn, scene = [], shapes.scene
    monkeypatch.setattr(shapes, "scene", lambda *a: (drawn.append(a), scene(*a))[1])
    pictures = Shapes(32, seed=99)  # which no other test draws
    first = pictures.image("f2-train-000003")
    first.putpixel((0, 0), (1, 2, 3))  # what a caller does to it must not reach the cache
    labels = pictures.labels("f2-train-000003")
    assert pictures.image("f2-train-000003").getpixel((0, 0)) != (1, 2, 3)
    assert len(drawn) == 1
    with pytest.raises(ValueError, match="read-only"):
        labels[0, 0] = 1


@pytest.mark.parametrize(
    "image_id", ["f4-test-000001", "f0-val-000001", "f0-test-1", "2007_000001"]
)
def test_strange_ids_are_named(image_id):
    with pytest.raises(UserError) as error:
        Shapes().image(image_id)
    told(error, f"image_id='{image_id}'", "f0-train-000123")


@pytest.mark.slow
@pytest.mark.parametrize("fold, split", FOLDS)
def test_index_agrees_with_pixels(fold, split):
    index, pictures = shapes_index(fold, split), Shapes(96)
    for image_id in index.images[3::40][:30]:
        labels = pictures.labels(image_id)
        shown = np.bincount(labels.ravel(), minlength=21) / labels.size
        classes = set(np.flatnonzero(shown).tolist()) - {0}
        assert classes == set(pictures.objects(image_id))
        assert set(index.classes_of[image_id]) == classes & set(index.classes)
        assert min(shown[c] for c in classes) >= shapes.MIN_SHARE


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 45, 128, 200])
def test_every_size_shows_every_class(size):
    for n in range(40):
        labels = Shapes(size).labels(f"f1-test-{n:06d}")
        shown = np.bincount(labels.ravel(), minlength=21) / labels.size
        classes = set(Shapes().objects(f"f1-test-{n:06d}"))
        assert set(np.flatnonzero(shown).tolist()) - {0} == classes
        assert min(shown[c] for c in classes) >= shapes.MIN_SHARE


@pytest.mark.parametrize("fold", range(4))
def test_training_shows_no_novel_class_and_testing_mixes(fold):
    novel, pictures = set(shapes.SHAPES_5I.novel[fold]), Shapes()
    for image_id in shapes_index(fold, "train").images:
        assert not novel & set(pictures.objects(image_id))
    for image_id in shapes_index(fold, "test").images:
        shown = set(pictures.objects(image_id))
        assert shown & novel and shown - novel


@pytest.mark.parametrize("fold, split", FOLDS)
def test_index_holds_every_picture_and_fills_every_class(fold, split):
    index = shapes_index(fold, split)
    assert index.classes == shapes.SHAPES_5I.classes(fold, split)
    assert index.images == tuple(f"f{fold}-{split}-{n:06d}" for n in range(PICTURES[split]))
    counts = [len(ids) for ids in index.entries.values()]
    assert min(counts) > 0.8 * max(counts)


def test_pictures_show_three_classes_once_or_twice():
    pictures = [Shapes().objects(i) for i in shapes_index(2, "test").images]
    assert {len(objects) for objects in pictures} == {4, 5, 6}
    shown = [collections.Counter(objects) for objects in pictures]
    assert all(len(counts) == 3 and max(counts.values()) == 2 for counts in shown)
    twice = np.mean([n == 2 for counts in shown for n in counts.values()])
    assert 0.6 < twice < 0.73  # two of three in the mean


def test_unknown_split_and_fold_are_named():
    with pytest.raises(UserError) as error:
        shapes_index(0, "tset")
    told(error, "split='tset'", "nearest: test")
    with pytest.raises(UserError) as error:
        shapes_index(4, "test")
    told(error, "fold=4", "0, 1, 2 or 3")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("shots", [1, 3])
def test_episodes_have_the_forms_of_any_others(split, shots):
    cfg = DataConfig(fold=2, shots=shots, image_size=48)
    source = pickle.loads(pickle.dumps(shapes_episodes(cfg, split, seed=321)))
    assert len(source) == PICTURES[split]
    assert source.draw is (draw_train if split == "train" else draw_test)
    for i in (0, 5):
        spec, episode = source.spec(i), source[i]
        assert (int(episode.class_id), int(episode.index)) == (spec.class_id, i)
        assert [(x.shape, x.dtype.name) for x in episode[:5]] == [
            ((shots, 48, 48, 3), "uint8"),
            ((shots, 48, 48), "bool"),
            ((48, 48, 3), "uint8"),
            ((48, 48), "bool"),
            ((48, 48), "bool"),
        ]
        assert episode.target_mask.mean() >= shapes.MIN_SHARE
        assert episode.reference_mask.mean(axis=(1, 2)).min() >= shapes.MIN_SHARE
        assert not episode.target_ignore.any()
    assert len(shapes_episodes(cfg, split, seed=0, length=7)) == 7
