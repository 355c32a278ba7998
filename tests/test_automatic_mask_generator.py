"""Our masks of everything are `segment_anything`'s, with the same weights.

Its own code runs with stand-ins for torchvision's suppression (`torch_models.sam`) and for OpenCV's
connected components (below), unless these are installed.
"""

import dataclasses
import functools
import importlib.util
import inspect
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import told
from PIL import Image
from sam_pairs import CFG, convert
from segment_anything import SamAutomaticMaskGenerator as TorchGenerator
from segment_anything import automatic_mask_generator as theirs
from segment_anything.utils import amg

import prosam_jax
from prosam_jax import SamAutomaticMaskGenerator, SamPredictor
from prosam_jax.sam import automatic_mask_generator as ours
from torch_models import sam as twins

SQUARE = dataclasses.replace(CFG, image_size=(144, 144), depth=2)  # as stock SAM
ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
SIDE = 6  # of the grid
CROPS = {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}


@functools.cache
def random_pair(seed):
    """A random SAM, for which most IoU would be below 0, where nothing is filtered."""
    oracle = twins.build(SQUARE, seed)
    oracle.mask_decoder.iou_prediction_head.layers[-1].bias.add_(2)
    return oracle, convert(oracle, SQUARE)


@functools.cache
def shapes_pair():
    """The packaged SAM, which finds objects."""
    sam = SamPredictor.from_pretrained("sam_shapes").model
    return twins.of_jax(sam), sam


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def discs(seed, height, width):
    """Discs on gray, some on top of each other."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120.0)
    y, x = np.mgrid[:height, :width]
    for _ in range(9):
        row, column = rng.uniform(0, (height, width))
        image[(y - row) ** 2 + (x - column) ** 2 < rng.integers(8, 30) ** 2] = rng.integers(
            0, 256, 3
        )
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def connected_components(image, connectivity):
    """OpenCV's `connectedComponentsWithStats`, as far as SAM uses it."""
    assert connectivity == 8
    labels, sizes = np.zeros(image.shape, np.int32), [0]
    # It numbers them as it meets them in blocks of 2 x 2.
    for start in sorted(np.argwhere(image).tolist(), key=lambda x: (x[0] // 2, x[1] // 2)):
        start = tuple(start)
        if labels[start]:
            continue
        rest, size = [start], 0
        labels[start] = len(sizes)
        while rest:
            y, x = rest.pop()
            size += 1
            for at in [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                inside = all(0 <= p < n for p, n in zip(at, image.shape, strict=True))
                if inside and image[at] and not labels[at]:
                    labels[at] = len(sizes)
                    rest.append(at)
        sizes.append(size)
    return len(sizes), labels, np.array(sizes)[:, None], None


@pytest.fixture(autouse=True)
def cv2(monkeypatch):
    if importlib.util.find_spec("cv2") is None:
        module = types.ModuleType("cv2")
        vars(module)["connectedComponentsWithStats"] = connected_components
        monkeypatch.setitem(sys.modules, "cv2", module)


def middle(values, share):
    """A threshold between two values, which about `share` of them are below; rounding is far."""
    values = np.unique(values[np.isfinite(values)])
    at = int(share * len(values))
    some = np.arange(max(at - 5, 1), at + 6)
    best = some[np.argmax(values[some] - values[some - 1])]
    return float(values[best] + values[best - 1]) / 2


def thresholds(oracle, image, share, **settings):
    """Thresholds that a part of the masks passes."""
    every = TorchGenerator(oracle, SIDE, **ALL, box_nms_thresh=1.0, **settings).generate(image)
    names = ("pred_iou_thresh", "predicted_iou"), ("stability_score_thresh", "stability_score")
    return {a: middle(np.array([x[b] for x in every]), share) for a, b in names} | settings


def mask_of(record):
    """The mask in any form, read by `segment_anything` and by COCO's own code."""
    held = record["segmentation"]
    if not isinstance(held, dict):
        return held
    if isinstance(held["counts"], list):
        return amg.rle_to_mask(held)
    codec = pytest.importorskip("pycocotools.mask")
    return codec.decode({**held, "counts": held["counts"].encode()}).astype(bool)


def check(found, expected):
    """The same records, but for rounding of logits.

    Measured: one pixel of two random networks' 76 masks, and of no other; IoU differ by 7.2e-7.
    """
    assert len(found) == len(expected)
    pixels = 0
    for got, one in zip(found, expected, strict=True):
        assert list(got) == list(one)
        for name in ("point_coords", "crop_box"):
            assert got[name] == one[name]
        assert {x: type(y) for x, y in got.items()} == {x: type(y) for x, y in one.items()}
        assert abs(got["predicted_iou"] - one["predicted_iou"]) < 1e-5
        mask, wanted = mask_of(got), mask_of(one)
        assert got["area"] == mask.sum()
        differ = int((mask != wanted).sum())
        pixels += differ
        if not differ:
            assert got["bbox"] == one["bbox"] and got["area"] == one["area"]
            if isinstance(got["segmentation"], dict):
                assert got["segmentation"] == one["segmentation"]
        np.testing.assert_allclose(got["stability_score"], one["stability_score"], rtol=2e-3)
    assert pixels <= 2


def both(pair, image, **settings):
    """Our records, compared with `segment_anything`'s."""
    oracle, sam = pair
    found = SamAutomaticMaskGenerator(sam, SIDE, **settings).generate(image)
    check(found, TorchGenerator(oracle, SIDE, **settings).generate(image))
    return found


# Against segment_anything ----------------------------------------------------------------------


def test_objects_are_those_of_segment_anything():
    pair, image = shapes_pair(), discs(0, 150, 220)
    some = thresholds(pair[0], image, 0.3)
    found = both(pair, image, **some)
    assert 5 < len(found) < 3 * SIDE**2 / 3
    assert len({tuple(x["bbox"]) for x in found}) == len(found)
    assert [x["predicted_iou"] for x in found] == sorted(
        (x["predicted_iou"] for x in found), reverse=True
    )
    assert len(found) < len(both(pair, image, **{**some, "box_nms_thresh": 0.95}))


@pytest.mark.parametrize(
    "mode", ["coco_rle", *(pytest.param(x, marks=pytest.mark.slow) for x in ours.OUTPUT_MODES[:2])]
)
def test_small_regions_and_forms_are_those_of_segment_anything(mode):
    pair, image = shapes_pair(), discs(1, 100, 71)
    some = thresholds(pair[0], image, 0.2)
    tidy = both(pair, image, **some, min_mask_region_area=20, output_mode=mode)
    left = both(pair, image, **some, output_mode=mode)
    assert sorted(x["area"] for x in tidy) != sorted(x["area"] for x in left)


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((150, 220), CROPS),
        pytest.param((240, 150), CROPS | {"crop_nms_thresh": 0.4}, marks=pytest.mark.slow),
        pytest.param((128, 128), CROPS | {"crop_overlap_ratio": 0.0}, marks=pytest.mark.slow),
        pytest.param(
            (260, 300),
            {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "min_mask_region_area": 25},
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=lambda x: " x ".join(map(str, x)) if isinstance(x, tuple) else "",
)
def test_crops_are_those_of_segment_anything(size, settings):
    pair, image = shapes_pair(), discs(sum(size), *size)
    found = both(pair, image, **thresholds(pair[0], image, 0.3), **settings)
    boxes = {tuple(x["crop_box"]) for x in found}
    assert len(boxes) > 2 and any(box[0] for box in boxes) and any(box[1] for box in boxes)


@pytest.mark.parametrize(
    ("seed", "size"),
    [
        (0, (97, 133)),
        *(
            pytest.param(seed, size, marks=pytest.mark.slow)
            for seed, size in ((1, (60, 41)), (2, (144, 144)), (3, (260, 170)))
        ),
    ],
)
def test_random_networks_are_segment_anythings(seed, size):
    pair, image = random_pair(seed), noise(seed, *size)
    # Random masks lie everywhere, and so do their boxes: only one would stay, and none of a crop.
    some = thresholds(pair[0], image, 0.4, stability_score_offset=0.05) | {"box_nms_thresh": 1.0}
    assert 20 < len(both(pair, image, **some)) < 3 * SIDE**2


def test_without_thresholds_even_empty_masks_stay():
    pair, image = shapes_pair(), discs(0, 60, 90)
    settings = ALL | {"box_nms_thresh": 1.0, "stability_score_offset": 2.0}
    found = both(pair, image, **settings)
    assert len(found) == 3 * SIDE**2


def test_own_grids_are_taken_as_in_segment_anything():
    (oracle, sam), image = shapes_pair(), discs(4, 100, 140)
    rng = np.random.default_rng(0)
    settings = {"points_per_side": None, "crop_n_layers": 1, **thresholds(oracle, image, 0.2)}
    settings["point_grids"] = [rng.random((n, 2)) for n in (23, 5)]
    expected = TorchGenerator(oracle, points_per_batch=10, **settings).generate(image)
    for batch in (10, 64):  # the last batch is not full; a batch is more than there are
        found = SamAutomaticMaskGenerator(sam, points_per_batch=batch, **settings).generate(image)
        check(found, expected)


def test_crop_boxes_are_segment_anythings():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = tuple(rng.integers(20, 3000, 2).tolist())
        layers, ratio = int(rng.integers(0, 4)), float(rng.random())
        expected = amg.generate_crop_boxes(size, layers, ratio)
        found = list(ours._crops(size, layers, ratio))
        whole = [(x, i) for x, i in zip(*expected, strict=True) if x[0] < x[2] and x[1] < x[3]]
        assert [(list(box), layer) for layer, box in found] == whole


def test_grids_are_segment_anythings():
    for side, layers, factor in ((1, 0, 1), (7, 2, 2), (32, 3, 2), (5, 1, 1)):
        expected = amg.build_all_layer_point_grids(side, layers, factor)
        for x, y in zip(ours._grids(side, layers, factor), expected, strict=True):
            np.testing.assert_array_equal(x, y)


def test_suppression_is_torchvisions():
    rng = np.random.default_rng(0)
    for n in (0, 1, 40, 300):
        corners = np.sort(rng.integers(0, 30, (n, 2, 2)), axis=1)  # many equal, some without area
        boxes = corners.reshape(n, 4)
        scores = rng.choice(np.linspace(0, 1, 7, dtype=np.float32), n)
        for threshold in (0.0, 0.2, 0.5, 0.6, 0.7, 1.0):
            expected = theirs.batched_nms(
                torch.from_numpy(boxes).float(),
                torch.from_numpy(scores),
                torch.zeros(n),
                iou_threshold=threshold,
            )
            assert ours.nms(boxes, scores, threshold) == expected.tolist()


def test_suppression_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10], [0, 0, 10, 4], [3, 3, 3, 9]])
    scores = np.array([0.5, 0.9, 0.5, 0.1, 0.2], np.float32)
    # 1 is first; it leaves 0, whose IoU with it is not above 1/2, and takes 3 (4/5).
    assert ours.nms(boxes, scores, 0.5) == [1, 0, 2, 4]
    assert ours.nms(boxes, scores, 0.49) == [1, 2, 4]


def test_small_regions_are_segment_anythings():
    rng = np.random.default_rng(0)
    changes = 0
    for i in range(60):
        size = tuple(rng.integers(1, 25, 2).tolist())
        pixels = rng.random(size) < rng.choice([0.03, 0.3, 0.5, 0.7, 0.97])
        if i % 3 == 0:  # one small island without a hole is changed, though it stays as it is
            pixels = np.pad(np.ones((2, 2), bool), ((3, 9), (4, 9)))
            size = pixels.shape
        least = int(rng.integers(1, 12))
        expected, holes = amg.remove_small_regions(pixels, least, "holes")
        expected, islands = amg.remove_small_regions(expected, least, "islands")
        mask = ours._Mask(
            ours.run_lengths(pixels), (0, 0, 0, 0), 0.0, 0.0, [0.0, 0.0], (0, 0, 1, 1)
        )
        tidied, changed = ours._tidied(mask, size, least)
        np.testing.assert_array_equal(ours.mask_of(tidied.counts, size), expected)
        assert changed == (holes or islands)
        box = amg.batched_mask_to_box(torch.from_numpy(np.ascontiguousarray(expected)))
        assert list(tidied.box) == box.tolist()
        changes += changed
    assert 20 < changes < 60


# By itself --------------------------------------------------------------------------------------


def test_nothing_found_is_an_empty_list():
    sam = shapes_pair()[1]
    for settings in ({}, {"crop_n_layers": 1, "min_mask_region_area": 5}):
        generator = SamAutomaticMaskGenerator(sam, 2, pred_iou_thresh=9.0, **settings)
        assert generator.generate(discs(0, 40, 50)) == []


def test_files_and_pillow_images_are_arrays(tmp_path):
    generator = SamAutomaticMaskGenerator(
        shapes_pair()[1], 4, pred_iou_thresh=0.5, stability_score_thresh=0.3, output_mode="coco_rle"
    )
    array = discs(0, 60, 90)
    expected = generator.generate(array)
    assert expected
    Image.fromarray(array).save(tmp_path / "image.png")
    for image in (Image.fromarray(array), tmp_path / "image.png", str(tmp_path / "image.png")):
        assert generator.generate(image) == expected
    with pytest.raises(FileNotFoundError, match="absent"):
        generator.generate(tmp_path / "absent.png")


def test_tiny_pictures_with_crops():
    """`segment_anything` makes empty crops of them and ends with an error."""
    generator = SamAutomaticMaskGenerator(
        shapes_pair()[1], 2, **ALL, crop_n_layers=2, output_mode="uncompressed_rle"
    )
    assert [x["segmentation"]["size"] for x in generator.generate(noise(0, 5, 7))]


def test_other_sizes_compile_nothing_new():
    generator = SamAutomaticMaskGenerator(shapes_pair()[1], 4, pred_iou_thresh=0.3)
    generator.generate(discs(0, 100, 120))
    jitted = ours._decode, ours._measure, ours._at_full_size
    before = [x._cache_size() for x in jitted]
    generator.stability_score_offset, generator.pred_iou_thresh = 0.5, 0.4
    for seed, size in enumerate([(90, 128), (33, 64), (128, 20)]):
        generator.generate(discs(seed, *size))
    assert [x._cache_size() for x in jitted] == before
    generator.generate(discs(0, 129, 100))
    assert ours._decode._cache_size() == before[0]  # the largest one is of no size


def test_a_named_model_takes_the_same_settings():
    named = SamAutomaticMaskGenerator.from_pretrained(
        "sam_shapes", sam={"dtype": "bfloat16"}, points_per_side=3, output_mode="coco_rle"
    )
    assert named.predictor.model.cfg.dtype == "bfloat16"
    assert len(named.point_grids[0]) == 9 and named.output_mode == "coco_rle"
    for record in SamAutomaticMaskGenerator(named.predictor.model, 4, **ALL).generate(
        discs(0, 60, 90)
    ):
        assert record["segmentation"].shape == (60, 90)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "sam_vit_h"}, ("sam_vit_h", "from_pretrained")),
        ({"points_per_side": None}, ("neither", "points_per_side")),
        ({"point_grids": [[[0.5, 0.5]]]}, ("points_per_side=32", "point_grids", "None")),
        ({"points_per_side": 0}, ("points_per_side=0", "1")),
        ({"points_per_side": 2.5}, ("points_per_side=2.5", "whole")),
        ({"points_per_batch": 0}, ("points_per_batch=0", "1")),
        ({"crop_n_layers": -1}, ("crop_n_layers=-1", "0")),
        ({"pred_iou_thresh": float("nan")}, ("pred_iou_thresh=nan", "finite")),
        ({"stability_score_thresh": "high"}, ("stability_score_thresh='high'", "number")),
        ({"stability_score_offset": -1.0}, ("stability_score_offset=-1.0", "0")),
        ({"box_nms_thresh": -0.1}, ("box_nms_thresh=-0.1", "0")),
        ({"crop_overlap_ratio": 1.5}, ("crop_overlap_ratio=1.5", "1")),
        ({"min_mask_region_area": -3}, ("min_mask_region_area=-3", "0")),
        ({"output_mode": "coco"}, ("output_mode='coco'", "coco_rle")),
        (
            {"points_per_side": 4, "crop_n_layers": 3, "crop_n_points_downscale_factor": 2},
            ("points_per_side=4", "layer 3", "at least 8"),
        ),
        (
            {"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1},
            ("1 grids", "crop_n_layers=1", "pass 2"),
        ),
        ({"points_per_side": None, "point_grids": [[[0.5, 1.5]]]}, ("point_grids[0]", "0-1")),
        ({"points_per_side": None, "point_grids": [[1, 2, 3]]}, ("point_grids[0]", "N x 2")),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_arguments_are_named(settings, words):
    make = inspect.unwrap(SamAutomaticMaskGenerator.__init__)  # types are checked in tests alone
    with pytest.raises(prosam_jax.UserError) as error:
        make(types.SimpleNamespace(), **{"model": shapes_pair()[1]} | settings)
    told(error, *words)


@pytest.mark.slow
def test_name_is_imported_when_asked_for():
    code = (
        "import sys, prosam_jax\n"
        "assert 'jax' not in sys.modules\n"
        "assert prosam_jax.SamAutomaticMaskGenerator.__module__ == "
        "'prosam_jax.sam.automatic_mask_generator'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
