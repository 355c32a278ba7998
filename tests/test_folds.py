import hashlib
import json

import numpy as np
import pytest

from prosam_jax.data import folds
from prosam_jax.data.folds import FoldIndex, base_classes, fold_index, novel_classes


def _counts(*rows):
    counts = np.zeros((len(rows), 21), np.int64)
    for row, pixels in zip(counts, rows, strict=True):
        for class_id, n in pixels.items():
            row[class_id] = n
    return counts


def test_classes_are_numbered_in_voc_order():
    assert len(set(folds.CLASS_NAMES)) == 20
    assert [folds.CLASS_NAMES[c - 1] for c in (1, 8, 15, 20)] == [
        "aeroplane",
        "cat",
        "person",
        "tvmonitor",
    ]


@pytest.mark.parametrize("fold", range(4))
def test_novel_and_base_classes_part_the_twenty(fold):
    assert novel_classes(fold) == tuple(range(5 * fold + 1, 5 * fold + 6))
    assert sorted(novel_classes(fold) + base_classes(fold)) == list(range(1, 21))


def test_unknown_fold_and_split_are_named():
    with pytest.raises(ValueError, match="fold=4 must be 0, 1, 2 or 3"):
        novel_classes(4)
    with pytest.raises(ValueError, match=r"split='tset'.*nearest: test"):
        fold_index(["a"], _counts({1: 5000}), 0, "tset")


def test_an_image_counts_from_2048_pixels_on():
    counts = _counts({2: 2048}, {2: 2047}, {2: 2047, 4: 3000})
    index = fold_index(["c", "b", "a"], counts, 0, "test")
    assert index.entries == {1: (), 2: ("c",), 3: (), 4: ("a",), 5: ()}


def test_training_shuns_every_pixel_of_novel_classes():
    counts = _counts({9: 5000}, {9: 5000, 2: 1}, {9: 4000, 20: 4000}, {2: 5000})
    ids = ["d", "c", "b", "a"]
    train = fold_index(ids, counts, 0, "train")
    assert {c: x for c, x in train.entries.items() if x} == {9: ("b", "d"), 20: ("b",)}
    assert train.classes == base_classes(0)
    assert train.images == ("b", "d")
    assert train.classes_of == {"b": (9, 20), "d": (9,)}


def test_testing_keeps_images_with_base_classes():
    index = fold_index(["b", "a"], _counts({1: 3000, 15: 4000}, {1: 100, 3: 2048}), 0, "test")
    assert index.classes_of == {"b": (1,), "a": (3,)}


def test_drawable_leaves_out_classes_with_too_few_images():
    index = FoldIndex(0, "test", {1: ("a", "b", "c"), 2: ("d", "e"), 3: (), 4: ("a",), 5: ()})
    assert index.drawable(1).entries == {1: ("a", "b", "c"), 2: ("d", "e"), 3: (), 4: (), 5: ()}
    assert index.drawable(2).images == ("a", "b", "c")
    assert index.drawable(2).classes == (1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"fold 0 test: .* takes 4 images .* more than 3; .*shots"):
        index.drawable(3)


def test_digest_is_of_lines_by_class_number_and_id():
    index = FoldIndex(1, "train", {2: ("b", "c"), 11: ("a",)})
    assert folds.digest(index) == hashlib.sha256(b"2 b\n2 c\n11 a").hexdigest()


def test_describe_tells_the_published_list_from_others(monkeypatch):
    index = FoldIndex(0, "test", {1: ("a", "b"), 2: ("b", "c"), 3: (), 4: ("a",), 5: ("a", "c")})
    assert folds.describe(index.drawable(1)) == (
        "Pascal-5i fold 0 test: NOT the published list, 3 images instead of 364; too few images to "
        "draw bird, boat"
    )
    monkeypatch.setitem(folds.PUBLISHED, ("test", 0), (3, folds.digest(index)))
    assert folds.describe(index) == "Pascal-5i fold 0 test: the published list, 3 images"


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize("split", folds.SPLITS)
def test_rule_gives_the_published_lists(outside_data, fold, split):
    with np.load(outside_data / "data/pascal_pixel_counts.npz") as file:
        pool = file["is_val"] == (split == "test")
        ids, counts = file["ids"][pool].tolist(), file["counts"][pool]
    facts = json.loads((outside_data / "data/pascal5i_facts.json").read_text())
    facts = facts["folds"][fold]["train" if split == "train" else "val"]
    index = fold_index(ids[::-1], counts[::-1], fold, split)
    assert {str(c): len(ids) for c, ids in index.entries.items()} == facts["per_class"]
    assert folds.digest(index) == facts["entries_sha256"]
    assert hashlib.sha256("\n".join(index.images).encode()).hexdigest() == facts["images_sha256"]
    name = f"Pascal-5i fold {fold} {split}: the published list, {facts['n_images']} images"
    assert folds.describe(index.drawable(5)) == name
