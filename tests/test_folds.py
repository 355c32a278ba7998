import dataclasses
import hashlib
import json

import numpy as np
import pytest
from conftest import assert_lines, told

from prosam_jax.data import folds
from prosam_jax.data.folds import COCO_20I, COCO_TO_PASCAL, PASCAL_5I, FoldIndex
from prosam_jax.errors import UserError


def _counts(*rows):
    counts = np.zeros((len(rows), 21), np.int64)
    for row, pixels in zip(counts, rows, strict=True):
        for class_id, n in pixels.items():
            row[class_id] = n
    return counts


def test_classes_are_numbered_in_voc_order():
    names = PASCAL_5I.class_names
    assert len(set(names)) == 20
    assert [names[c - 1] for c in (1, 8, 15, 20)] == ["aeroplane", "cat", "person", "tvmonitor"]


def test_classes_are_numbered_by_coco_category():
    names = COCO_20I.class_names
    assert len(set(names)) == 80
    known = {1: "person", 12: "stop sign", 13: "parking meter", 67: "keyboard", 80: "toothbrush"}
    assert {c: names[c - 1] for c in known} == known


@pytest.mark.parametrize("fold", range(4))
def test_novel_and_base_classes_part_all(fold):
    assert PASCAL_5I.classes(fold, "test") == tuple(range(5 * fold + 1, 5 * fold + 6))
    assert [c - 1 for c in COCO_20I.classes(fold, "test")] == [
        k for k in range(80) if k % 4 == fold
    ]
    for rule in (PASCAL_5I, COCO_20I):
        both = rule.classes(fold, "test") + rule.classes(fold, "train")
        assert sorted(both) == list(range(1, 1 + len(rule.class_names)))


def test_pascal_classes_that_a_fold_of_coco_has_not_shown():
    rule = COCO_TO_PASCAL["pascal_disjoint"]
    names = [[rule.class_names[c - 1] for c in rule.classes(f, "test")] for f in range(4)]
    assert [" ".join(of_fold) for of_fold in names] == [
        "aeroplane boat chair diningtable dog person",
        "bicycle bus horse sofa",
        "bird car pottedplant sheep train tvmonitor",
        "bottle cat cow motorbike",
    ]
    standard = COCO_TO_PASCAL["pascal_standard"]
    assert [standard.classes(f, "test") for f in range(4)] == list(PASCAL_5I.novel)


def test_unknown_fold_and_split_are_named():
    with pytest.raises(UserError) as error:
        PASCAL_5I.classes(4, "test")
    told(error, "fold=4", "0, 1, 2 or 3")
    with pytest.raises(UserError) as error:
        PASCAL_5I.index(["a"], _counts({1: 5000}), 0, "tset")
    told(error, "split='tset'", "nearest: test")


def test_an_image_counts_from_2048_pixels_on():
    counts = _counts({2: 2048}, {2: 2047}, {2: 2047, 4: 3000})
    index = PASCAL_5I.index(["c", "b", "a"], counts, 0, "test")
    assert index.entries == {1: (), 2: ("c",), 3: (), 4: ("a",), 5: ()}


def test_training_shuns_every_pixel_of_novel_classes():
    counts = _counts({9: 5000}, {9: 5000, 2: 1}, {9: 4000, 20: 4000}, {2: 5000})
    ids = ["d", "c", "b", "a"]
    train = PASCAL_5I.index(ids, counts, 0, "train")
    assert {c: x for c, x in train.entries.items() if x} == {9: ("b", "d"), 20: ("b",)}
    assert train.classes == PASCAL_5I.classes(0, "train")
    assert train.images == ("b", "d")
    assert train.classes_of == {"b": (9, 20), "d": (9,)}


def test_testing_keeps_images_with_base_classes():
    index = PASCAL_5I.index(["b", "a"], _counts({1: 3000, 15: 4000}, {1: 100, 3: 2048}), 0, "test")
    assert index.classes_of == {"b": (1,), "a": (3,)}


def test_drawable_leaves_out_classes_with_too_few_images():
    index = FoldIndex(
        PASCAL_5I, 0, "test", {1: ("a", "b", "c"), 2: ("d", "e"), 3: (), 4: ("a",), 5: ()}
    )
    assert index.drawable(1).entries == {1: ("a", "b", "c"), 2: ("d", "e"), 3: (), 4: (), 5: ()}
    assert index.drawable(2).images == ("a", "b", "c")
    assert index.drawable(2).classes == (1, 2, 3, 4, 5)
    with pytest.raises(UserError) as error:
        index.drawable(3)
    told(error, "fold 0 test", "4 images", "shots")


def test_digest_is_of_lines_by_class_number_and_id():
    index = FoldIndex(PASCAL_5I, 1, "train", {2: ("b", "c"), 11: ("a",)})
    assert folds.digest(index) == hashlib.sha256(b"2 b\n2 c\n11 a").hexdigest()


def test_describe_tells_the_published_list_from_others():
    entries = {1: ("a", "b"), 2: ("b", "c"), 3: (), 4: ("a",), 5: ("a", "c")}
    index = FoldIndex(PASCAL_5I, 0, "test", entries)
    words = "Pascal-5i fold 0 test", "NOT the published list", "3 images", "364", "bird, boat"
    assert_lines(folds.describe(index.drawable(1)), words)
    known = dataclasses.replace(PASCAL_5I, published={("test", 0): (3, folds.digest(index))})
    index = dataclasses.replace(index, rule=known)
    assert_lines(folds.describe(index), ("Pascal-5i fold 0 test: the published list", "3 images"))
    few = {c: ("a", "b") if c == 5 else () for c in COCO_20I.classes(0, "test")}
    words = "COCO-20i fold 0 test: 2 images", "26,052", "person, boat, parking meter and 16 more"
    assert_lines(folds.describe(FoldIndex(COCO_20I, 0, "test", few)), words)


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize("split", folds.SPLITS)
def test_rule_gives_the_published_lists(outside_data, fold, split):
    with np.load(outside_data / "data/pascal_pixel_counts.npz") as file:
        pool = file["is_val"] == (split == "test")
        ids, counts = file["ids"][pool].tolist(), file["counts"][pool]
    facts = json.loads((outside_data / "data/pascal5i_facts.json").read_text())
    facts = facts["folds"][fold]["train" if split == "train" else "val"]
    index = PASCAL_5I.index(ids[::-1], counts[::-1], fold, split)
    assert {str(c): len(ids) for c, ids in index.entries.items()} == facts["per_class"]
    assert folds.digest(index) == facts["entries_sha256"]
    assert hashlib.sha256("\n".join(index.images).encode()).hexdigest() == facts["images_sha256"]
    name = f"Pascal-5i fold {fold} {split}: the published list"
    assert_lines(folds.describe(index.drawable(5)), (name, f"{facts['n_images']:,} images"))
