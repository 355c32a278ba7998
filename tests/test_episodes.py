import collections
import dataclasses
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import told
from PIL import Image

from prosam_jax.config import DataConfig
from prosam_jax.data import episodes
from prosam_jax.data.episodes import (
    EpisodeSource,
    draw_by_class,
    draw_test,
    draw_train,
    draw_wrong,
    episode_list_digest,
    episode_source,
)
from prosam_jax.data.folds import COCO_20I, PASCAL_5I, FoldIndex
from prosam_jax.errors import UserError

PINNED = {  # digests of 1000 episodes; another one means new results for the same seed
    (draw_test, 321, 1): "018dd4ac8d56",
    (draw_test, 321, 5): "fe02d44540c5",
    (draw_train, 7, 1): "5e3d559d5828",
    (draw_by_class, 321, 1): "04f413fd5cf2",
    (draw_by_class, 7, 5): "084c681427bb",
}


def _fold(split="test", n=47):
    large = (7 * np.arange(n)[:, None] + 3 * np.arange(21)) % 5 < 2
    large[:, 1:6] &= split == "test"
    counts = np.where(large, 3000, 0)
    return PASCAL_5I.index([f"id{i:02d}" for i in range(n)], counts, 0, split).drawable(5)


@pytest.mark.parametrize("draw, seed, shots", PINNED)
def test_episodes_are_for_ever(draw, seed, shots):
    fold = _fold("train" if draw is draw_train else "test")
    specs = [draw(fold, seed, i, shots) for i in range(1000)]
    assert episode_list_digest(specs)[:12] == PINNED[draw, seed, shots]


@pytest.mark.parametrize("draw", [draw_train, draw_test, draw_by_class])
@pytest.mark.parametrize("seed", [0, 321])
@pytest.mark.parametrize("shots", [1, 5])
def test_all_images_of_an_episode_show_its_class(draw, seed, shots):
    fold = _fold()
    for i in range(300):
        spec = draw(fold, seed, i, shots)
        assert spec.index == i
        assert spec.class_id in fold.classes_of[spec.target_id]
        assert len(spec.reference_ids) == shots
        assert set(spec.reference_ids) <= set(fold.entries[spec.class_id]) - {spec.target_id}


@pytest.mark.parametrize("draw", [draw_train, draw_by_class])
def test_an_episode_depends_on_its_index_alone(draw):
    fold = _fold("train")
    forwards = [draw(fold, 3, i, 2) for i in range(200)]
    backwards = [draw(fold, 3, i, 2) for i in reversed(range(200))]
    assert forwards == backwards[::-1]
    assert forwards != [draw(fold, 4, i, 2) for i in range(200)]


def test_testing_goes_round_the_images_in_order():
    fold = _fold()
    n = len(fold.images)
    targets = [draw_test(fold, 321, i, 1).target_id for i in range(2 * n + 3)]
    assert targets == list((fold.images * 3)[: 2 * n + 3])


@pytest.mark.parametrize("seed", [0, 1])
def test_training_passes_over_the_images_in_a_new_order_each_time(seed):
    fold = _fold("train")
    n = len(fold.images)
    targets = [draw_train(fold, seed, i, 1).target_id for i in range(3 * n)]
    passes = [tuple(targets[k * n : (k + 1) * n]) for k in range(3)]
    assert all(sorted(one) == list(fold.images) for one in passes)
    assert len({*passes, fold.images}) == 4


def test_classes_and_references_are_uniform():
    fold = FoldIndex(
        PASCAL_5I, 0, "test", {1: ("a", "b", "c", "d"), 2: ("a", "e"), 3: (), 4: (), 5: ()}
    )
    specs = [draw_test(fold, 11, i, 3) for i in range(0, 20000, 5)]  # all of target "a"
    classes = collections.Counter(spec.class_id for spec in specs)
    assert abs(classes[1] / 4000 - 1 / 2) < 4 * 0.5 / 4000**0.5
    references = [s.reference_ids for s in specs if s.class_id == 1]
    drawn = collections.Counter(x for ids in references for x in ids)
    n = 3 * len(references)
    for image_id in "bcd":
        assert abs(drawn[image_id] / n - 1 / 3) < 4 * (2 / 9 / n) ** 0.5
    repeating = np.mean([len(set(ids)) < 3 for ids in references])
    assert abs(repeating - 7 / 9) < 4 * (14 / 81 / len(references)) ** 0.5


def test_a_class_first_draw_is_uniform_over_classes_then_targets():
    entries = {1: ("a", "b", "c", "d"), 5: ("a", "e"), 9: (), 13: ("f", "g", "h")}
    fold = FoldIndex(COCO_20I, 0, "test", entries)
    specs = [draw_by_class(fold, 11, i, 1) for i in range(6000)]
    classes = collections.Counter(spec.class_id for spec in specs)
    assert set(classes) == {1, 5, 13}
    assert all(abs(n / 6000 - 1 / 3) < 4 * (2 / 9 / 6000) ** 0.5 for n in classes.values())
    for class_id, ids in entries.items():
        of_class = [spec for spec in specs if spec.class_id == class_id]
        pairs = collections.Counter((spec.target_id, *spec.reference_ids) for spec in of_class)
        assert set(pairs) == set(itertools.permutations(ids, 2))
        for n in pairs.values():
            p = 1 / len(pairs)
            assert abs(n / len(of_class) - p) < 4 * (p * (1 - p) / len(of_class)) ** 0.5
    train = dataclasses.replace(fold, split="train")
    assert [draw_by_class(train, 11, i, 1) for i in range(99)] != specs[:99]


@pytest.mark.parametrize("rule, test", [(PASCAL_5I, draw_test), (COCO_20I, draw_by_class)])
def test_the_benchmark_says_how_its_episodes_are_drawn(rule, test):
    cfg = DataConfig(shots=2, image_size=40)
    fold = FoldIndex(rule, 0, "test", {1: ("a", "b", "c")})
    source = episode_source(_Painted(), fold, cfg, "test", seed=5, length=None)
    assert source.draw is test
    assert len(source) == 3


@pytest.mark.parametrize("shots", [1, 5])
def test_wrong_references_are_of_another_class(shots):
    fold = _fold()
    seen = collections.Counter()
    for i in range(400):
        right = draw_test(fold, 321, i, shots)
        wrong = draw_wrong(fold, 321, right)
        assert (wrong.index, wrong.target_id) == (i, right.target_id)
        assert wrong.class_id != right.class_id
        assert len(wrong.reference_ids) == shots
        assert set(wrong.reference_ids) <= set(fold.entries[wrong.class_id]) - {right.target_id}
        seen[right.class_id, wrong.class_id] += 1
    assert len(seen) == 20  # five classes, each with the four others
    one_class = FoldIndex(PASCAL_5I, 0, "test", {1: ("a", "b", "c"), 2: (), 3: (), 4: (), 5: ()})
    with pytest.raises(UserError) as error:
        draw_wrong(one_class, 321, draw_test(one_class, 321, 0, 1))
    told(error, "Pascal-5i fold 0 test has only one class", "data.novel")


def test_digest_knows_every_part_of_an_episode():
    spec = episodes.EpisodeSpec(0, 2, "a", ("b", "c"))
    others = [
        dataclasses.replace(spec, index=1),
        dataclasses.replace(spec, class_id=3),
        dataclasses.replace(spec, target_id="d"),
        dataclasses.replace(spec, reference_ids=("c", "b")),
    ]
    assert len({episode_list_digest([s]) for s in (spec, *others)}) == 5
    assert episode_list_digest([spec, others[0]]) != episode_list_digest([others[0], spec])


class _Painted:
    """Images of one grey and labels of two halves, both told by the id; height 6, width 10."""

    def image(self, image_id):
        return Image.new("RGB", (10, 6), (int(image_id),) * 3)

    def labels(self, image_id):
        labels = np.full((6, 10), int(image_id) % 3, np.uint8)
        labels[:, 5:] = 255
        return labels

    def class_name(self, class_id):
        return f"class {class_id}"


def _source(shots, length=12):
    entries = {1: tuple("147"), 2: tuple("258"), 3: (), 4: (), 5: ()}
    return EpisodeSource(
        _Painted(), FoldIndex(PASCAL_5I, 0, "test", entries), draw_test, 321, shots, 8, length
    )


@pytest.mark.parametrize("shots", [1, 3])
def test_source_reads_the_images_of_its_episodes(shots):
    source = _source(shots)
    left = np.tile(np.arange(8) < 4, (8, 1))
    for i in range(len(source)):
        spec, episode = source.spec(i), source[i]
        assert (episode.index, episode.class_id, episode.valid) == (i, spec.class_id, True)
        assert episode.target_image.shape == (8, 8, 3)
        assert episode.reference_image.shape == (shots, 8, 8, 3)
        assert (episode.target_image == int(spec.target_id)).all()
        for image, image_id in zip(episode.reference_image, spec.reference_ids, strict=True):
            assert (image == int(image_id)).all()
        np.testing.assert_array_equal(episode.target_mask, left)
        np.testing.assert_array_equal(episode.target_ignore, ~left)
        np.testing.assert_array_equal(episode.reference_mask, np.tile(left, (shots, 1, 1)))
    assert [x.dtype.name for x in source[0]] == [
        *("uint8", "bool", "uint8", "bool", "bool", "int32", "int32", "bool", "int32")
    ]
    assert source[0].target_size.tolist() == [6, 10]


class _Wide(_Painted):
    """Labels of 16 bits, as benchmarks of more than 254 classes have them."""

    def labels(self, image_id):
        labels = super().labels(image_id).astype(np.uint16)
        return np.where(labels == 255, 65535, labels).astype(np.uint16)


@pytest.mark.parametrize("images", [_Painted(), _Wide()])
def test_truth_in_its_own_pixels_lies_at_the_canvas_top_left(images):
    source = dataclasses.replace(_source(1), images=images, canvas=(9, 12))
    episode, squares = source[0], _source(1)[0]
    inside = np.zeros((9, 12), bool)
    inside[:6, :5] = True
    np.testing.assert_array_equal(episode.target_mask, inside)
    np.testing.assert_array_equal(episode.target_ignore, ~inside)  # the right half is ignored, too
    np.testing.assert_array_equal(episode.target_image, squares.target_image)
    np.testing.assert_array_equal(episode.reference_mask, squares.reference_mask)


def test_source_appends_wrong_references():
    plain = _source(2)
    source = dataclasses.replace(plain, wrong=True)
    for i in range(len(source)):
        right, both = plain[i], source[i]
        ids = draw_wrong(source.fold, 321, source.spec(i)).reference_ids
        assert both.reference_image[2:, 0, 0, 0].tolist() == [int(image_id) for image_id in ids]
        assert both.reference_mask[2:].any((1, 2)).all()
        halved = both._replace(
            reference_image=both.reference_image[:2], reference_mask=both.reference_mask[:2]
        )
        for x, y in zip(halved, right, strict=True):
            np.testing.assert_array_equal(x, y)


class _Lost(_Painted):
    """Objects that show on some images only: of class 1 on "4", of class 2 on none."""

    def labels(self, image_id):
        return super().labels(image_id) * (image_id == "4")


def test_a_reference_without_marks_is_redrawn_or_kept():
    entries = {1: ("1", "4", "7"), 2: (), 3: (), 4: (), 5: ()}
    fold = FoldIndex(PASCAL_5I, 0, "test", entries)
    source = EpisodeSource(_Lost(), fold, draw_test, 321, 2, 8, 18)
    kept = dataclasses.replace(source, empty_annotation="report")
    for i in range(len(source)):
        spec = source.spec(i)
        shown = np.array([x == "4" for x in spec.reference_ids])
        np.testing.assert_array_equal(kept[i].reference_mask.any((1, 2)), shown)
        assert (kept[i].reference_image[:, 0, 0, 0] == [int(x) for x in spec.reference_ids]).all()
        if spec.target_id != "4":
            assert source[i].reference_mask.any((1, 2)).all()
            assert (source[i].reference_image == 4).all()
        else:  # no other reference shows the object
            for x, y in zip(source[i], kept[i], strict=True):
                np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", ["box", "scribble", "point"])
def test_marks_depend_on_the_episode_and_the_shot_alone(kind):
    source = dataclasses.replace(_source(2), annotation=kind, size=64)
    again = dataclasses.replace(source, length=1)
    marks = [source[i].reference_mask for i in range(12)]
    for i in (3, 7):
        np.testing.assert_array_equal(marks[i], again[i].reference_mask)
        assert (marks[i] <= (np.arange(64) < 32)[None, None]).all()
    alike = {tuple(x.tobytes() for x in shots) for shots in marks}
    assert len(alike) == (1 if kind == "box" else 12)
    if kind != "box":
        assert all((first != second).any() for first, second in marks)


def test_source_travels_to_workers():
    source = _source(2)
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.spec(i) for i in range(12)] == [source.spec(i) for i in range(12)]


def test_data_needs_no_jax():
    code = (
        "import prosam_jax.data.datasets, prosam_jax.data.prepare.benchmarks, sys; "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
