"""The simulated user against statistics of VRP-SAM's code (200 draws for each mask)."""

import json

import numpy as np
import pytest
from conftest import GOLDEN
from scipy import ndimage

from prosam_jax.config import ANNOTATIONS
from prosam_jax.data import annotation
from prosam_jax.data.rng import Rng

STATISTICS = json.loads((GOLDEN / "annotation_stats.json").read_text())
NAMES = ("ellipse", "L", "small")
DRAWS = 40


def _unpack(arrays, name):
    shape = tuple(arrays["mask_shape"])
    return np.unpackbits(arrays[name])[: np.prod(shape)].reshape(shape).astype(bool)


@pytest.fixture
def masks(golden):
    return dict(zip((*NAMES, "empty"), _unpack(golden("annotation_box"), "mask_bits"), strict=True))


def _annotate(kind, mask, *key, training=False):
    return annotation.annotate(kind, mask, Rng(*key), training=training)


def _check_mean(samples, expected, name):
    """Means within four standard errors of their difference, the reference's and ours."""
    samples = np.asarray(samples, float)
    if isinstance(expected, float):  # a fraction of the reference's 200 draws
        expected = {"mean": expected, "se": (max(expected * (1 - expected), 0.01) / 200) ** 0.5}
    error = (expected["se"] ** 2 + samples.var() / len(samples)) ** 0.5
    assert abs(samples.mean() - expected["mean"]) <= 4 * error + 1e-9, name


def _marks(mask, marked):
    """What is known of one annotation, by the names in the file."""
    small = {stride: int(marked[::stride, ::stride].sum()) for stride in (8, 16)}
    return {
        "points": marked.sum(),
        "covered_over_mask_area": marked.sum() / mask.sum(),
        "connected_components_8conn": ndimage.label(marked, np.ones((3, 3)))[1],
        **{f"cells_at_stride{stride}": n for stride, n in small.items()},
        **{f"empty_at_stride{stride}_fraction": n == 0 for stride, n in small.items()},
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["point", "scribble"])
def test_marks_are_distributed_as_the_references(masks, monkeypatch, kind, split, name):
    strokes, draw = [], annotation._draw_stroke
    monkeypatch.setattr(annotation, "_draw_stroke", lambda *a: (strokes.append(a[1:]), draw(*a))[1])
    expected, mask = STATISTICS[f"{kind}_{split}"][name], masks[name]
    found, per_draw = {}, []
    for i in range(DRAWS):
        before = len(strokes)
        marked = _annotate(kind, mask, 7, i, training=split == "train")
        assert not (marked & ~mask).any()
        per_draw.append(len(strokes) - before)
        for key, value in _marks(mask, marked).items():
            found.setdefault(key, []).append(value)
    checked = [key for key in found if key in expected]
    assert len(checked) == {"point": 5, "scribble": 6}[kind]
    for key in checked:
        _check_mean(found[key], expected[key], key)
    if kind == "scribble":
        _check_mean(per_draw, expected["strokes_per_draw"], "strokes")
        # Strokes of one draw share the brush, so a training draw is one sample.
        widths = [width for _, width in strokes]
        segments = [len(points) - 1 for points, _ in strokes]
        limits = expected["brush_width_px"], expected["segments_per_stroke"]
        for values, known in zip((widths, segments), limits, strict=True):
            assert (min(values), max(values)) == (known["min"], known["max"])
            slack = 4 * known["std"] / (DRAWS if split == "train" else len(strokes)) ** 0.5
            assert abs(np.mean(values) - known["mean"]) < slack


def test_boxes_are_the_references(masks, golden):
    expected = _unpack(golden("annotation_box"), "box_mask_bits")
    for mask, box in zip(masks.values(), expected, strict=True):
        np.testing.assert_array_equal(_annotate("box", mask, 0), box)


@pytest.mark.parametrize("kind", ANNOTATIONS)
@pytest.mark.parametrize("training", [False, True])
def test_tiny_objects_can_be_marked(kind, training):
    empty = np.zeros((19, 23), bool)
    assert not _annotate(kind, empty, 3, training=training).any()
    one = empty.copy()
    one[18, 0] = True
    for i in range(50):
        marked = _annotate(kind, one, i, training=training)
        assert marked.dtype == bool and marked.shape == (19, 23)
        assert not (marked & ~one).any()
        assert kind == "scribble" or marked.any()


def test_points_are_uniform_and_differ():
    mask = np.zeros((9, 11), bool)
    mask[2:7, 3:9] = True  # 30 pixels
    drawn = np.array([_annotate("point", mask, i) for i in range(900)])
    assert (drawn.sum((1, 2)) == 20).all()
    share = drawn.mean(0)[mask]
    np.testing.assert_allclose(share, 2 / 3, atol=4.5 * (2 / 9 / 900) ** 0.5)


@pytest.mark.parametrize("kind", ["box", "point", "scribble"])
def test_marks_do_not_depend_on_the_order_in_memory(masks, kind):
    marked = _annotate(kind, masks["L"], 5)
    assert marked.any()
    np.testing.assert_array_equal(_annotate(kind, np.asfortranarray(masks["L"]), 5), marked)


def test_marks_are_for_ever(masks):
    """Other numbers mean other annotations for the same seed."""
    at = np.argwhere(_annotate("point", masks["L"], 1, 2))
    x, y = annotation._stroke(Rng(1, 2), 100, 200, annotation.WIDE)[-1]
    assert (len(at), at[:2].tolist()) == (20, [[109, 120], [134, 150]])
    assert (round(x, 6), round(y, 6)) == (157.971433, 26.316291)
