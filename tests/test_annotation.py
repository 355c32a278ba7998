"""Users' annotations, and the simulated user against statistics of VRP-SAM's code (200 draws)."""

import json

import numpy as np
import pytest
from conftest import GOLDEN, told
from PIL import Image, ImageDraw
from scipy import ndimage

from prosam_jax.config import ANNOTATIONS
from prosam_jax.data import annotation
from prosam_jax.data.rng import Rng
from prosam_jax.errors import UserError

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
    return annotation.drawn_annotation(kind, mask, Rng(*key), training=training)


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


def _strokes(monkeypatch):
    """Collects the points and the width of all strokes that Pillow draws from now on."""
    strokes, line = [], ImageDraw.ImageDraw.line

    def noting(pen, points, fill, width):
        strokes.append((points, width))
        line(pen, points, fill=fill, width=width)

    monkeypatch.setattr(ImageDraw.ImageDraw, "line", noting)
    return strokes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["point", "scribble"])
def test_marks_are_distributed_as_the_references(masks, monkeypatch, kind, split, name):
    strokes = _strokes(monkeypatch)
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


def test_marks_are_for_ever(masks, monkeypatch):
    """Other numbers mean other annotations for the same seed."""
    at = np.argwhere(_annotate("point", masks["L"], 1, 2))
    assert (len(at), at[:2].tolist()) == (20, [[109, 120], [134, 150]])
    strokes = _strokes(monkeypatch)
    _annotate("scribble", masks["L"], 1, 2)
    (*_, (x, y)), width = strokes[0]
    assert (width, round(x, 6), round(y, 6)) == (9, 228.003607, 331.493005)


def _annotated(**given):
    return annotation.given_annotation((60, 90), 32, **given)


def _dot(x, y):
    """A mask of 60 x 90 with one pixel set."""
    mask = np.zeros((60, 90), np.bool_)
    mask[y, x] = True
    return mask


LABELS = np.arange(5400, dtype=np.uint8).reshape(60, 90) % 7


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ("mask", "points", "box", "scribble")),
        ({"box": [1, 2, 3, 4], "points": [[1, 2]]}, ("points", "box", "one of")),
        ({"mask": np.ones((5, 7), bool)}, ("mask", "7 x 5", "90 x 60")),
        ({"mask": np.zeros((60, 90))}, ("mask", "empty")),
        ({"scribble": np.zeros((60, 90), bool)}, ("scribble", "empty")),
        ({"mask": _dot(1, 1)}, ("mask", "empty", "32 x 32")),
        ({"mask": np.arange(5400).reshape(60, 90) % 7}, ("mask", "0, 1, 2, 3, 4, 5, ...")),
        ({"mask": Image.fromarray(LABELS)}, ("mask", "0, 1, 2, 3, 4, 5, ...")),
        ({"mask": np.full((60, 90), -0.5)}, ("mask", "float64", "-0.5")),
        ({"mask": np.zeros((60, 90, 3))}, ("mask", "(60, 90, 3)", "height x width")),
        ({"mask": np.zeros((60, 90), "U1")}, ("mask", "<U1", "bool")),
        ({"points": [[5, 5], [90, 3]]}, ("points", "[90.0, 3.0]", "90 x 60")),
        ({"points": [[-0.1, 5]]}, ("points", "[-0.1, 5.0]", "90 x 60")),
        ({"points": np.zeros((0, 2))}, ("points", "empty")),
        ({"points": [1, 2, 3]}, ("points", "3", "N x 2")),
        ({"points": [[1, np.nan]]}, ("points", "NaN")),
        ({"box": [10, 5, 91, 40]}, ("box", "[10.0, 5.0, 91.0, 40.0]", "x0 < x1")),
        ({"box": [10, 5, 10, 40]}, ("box", "[10.0, 5.0, 10.0, 40.0]", "x0 < x1")),
        ({"box": [10, 5, 10]}, ("box", "3", "4")),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_annotations_that_are_wrong_are_said(given, words):
    with pytest.raises(UserError) as error:
        _annotated(**given)
    told(error, *words)


def test_a_mask_is_shrunk_as_in_training():
    rows, cols = np.arange(32) * 60 // 32, np.arange(32) * 90 // 32
    mask = np.random.default_rng(1).random((60, 90)) > 0.5
    np.testing.assert_array_equal(_annotated(mask=mask), mask[rows[:, None], cols])


def test_a_box_is_filled_to_its_last_pixel():
    square = _annotated(box=[30, 15, 60, 46])
    rows, cols = (np.flatnonzero(square.any(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1], cols[0], cols[-1]) == (8, 24, 10, 21)
    assert square.sum() == len(rows) * len(cols)
    assert _annotated(box=[89.5, 59.5, 90, 60]).sum() == 1


def test_points_and_strokes_are_their_pixels():
    for seed in range(40):
        x, y = np.random.default_rng(seed).integers(0, (90, 60))
        for square in (_annotated(points=[[x + 0.7, y]]), _annotated(scribble=_dot(x, y))):
            np.testing.assert_array_equal(np.argwhere(square), [[y * 32 // 60, x * 32 // 90]])
    square = _annotated(points=[[0, 0], [89.9, 0], [1, 59]])
    np.testing.assert_array_equal(np.argwhere(square), [[0, 0], [0, 31], [31, 0]])


def test_strokes_have_no_gaps_in_a_small_picture():
    strokes = np.eye(5, dtype=np.bool_)
    square = annotation.given_annotation((5, 5), 35, scribble=strokes)
    np.testing.assert_array_equal(square, strokes.repeat(7, 0).repeat(7, 1))
