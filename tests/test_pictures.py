"""Users' pictures and marks: every kind that is taken, and what is said of the others."""

import numpy as np
import pytest
from PIL import Image

from prosam_jax import images

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (RGB, RGB),
        (RGB[..., 0], np.repeat(RGB[..., :1], 3, 2)),
        (RGB[..., :1], np.repeat(RGB[..., :1], 3, 2)),
        (np.dstack([RGB, RGB[..., 0]]), RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(RGB[..., 0]), np.repeat(RGB[..., :1], 3, 2)),
        (Image.fromarray(np.dstack([RGB, RGB[..., 0]])), RGB),
        (Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), np.repeat(RGB[..., :1], 3, 2)),
    ],
    ids=["uint8", "gray", "one", "rgba", "64", "32", "Pillow", "Pillow L", "Pillow RGBA", "16 bit"],
)
def test_pictures_of_every_kind(given, expected):
    found = images.read(given)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_files_are_turned_as_viewers_turn_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it clockwise
    path = tmp_path / "ein Bild ü.png"
    Image.fromarray(RGB).save(path, exif=exif)
    turned = np.rot90(RGB, -1)
    np.testing.assert_array_equal(images.read(path), turned)
    np.testing.assert_array_equal(images.read(str(path)), turned)
    with Image.open(path) as image:
        np.testing.assert_array_equal(images.read(image), turned)
    white = Image.fromarray((RGB[..., 0] > 99).astype(np.uint8) * 255)
    white.save(path, exif=exif)
    np.testing.assert_array_equal(images.read_mask(path), turned[..., 0] > 99)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (RGB.astype(np.int64), r"image is int64 \(5, 7, 3\): pass height x width x 3, uint8"),
        (RGB > 9, r"image is bool \(5, 7, 3\)"),
        (RGB[None], r"image is uint8 \(1, 5, 7, 3\)"),
        (RGB[..., :2], r"image is uint8 \(5, 7, 2\)"),
        (RGB[:0], r"image is uint8 \(0, 7, 3\)"),
        (RGB * 1.0, "image is float64 from 0 to 24.: pass floats in 0-1, or uint8"),
        (np.full((2, 3), np.nan), "image is float64 from nan to nan"),
        (np.array(None), r"image is object \(\): pass height"),
        (Image.fromarray(RGB[..., 0] / np.float32(3)), "image cannot be read .* mode F"),
        (Image.fromarray(RGB[..., 0].astype(np.int32) << 9), "levels from 512 to 126976: save it"),
        (Image.fromarray(RGB[..., 0].astype(np.uint16)), "levels up to 2.., of 16 bits next to bl"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_no_picture_is_said(given, message):
    with pytest.raises(ValueError, match=message):
        images.read(given)


def test_files_that_are_no_pictures_are_named(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("no picture")
    Image.fromarray(np.tile(RGB, (40, 40, 1))).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:400])
    for name in ("text.jpg", "cut.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture: "):
            images.read(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"whole.png has more than 2,000 pixels, .*: shrink it"):
        images.read(tmp_path / "whole.png")
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg"):
        images.read(tmp_path / "absent.jpg")


MASK = RGB[..., 0] > 99
PALETTE = Image.fromarray(MASK.astype(np.uint8) * 15)
PALETTE.putpalette(bytes(768))
# Index 0 is white: a packer puts the most frequent colour first.
WHITE_FIRST = Image.fromarray((~MASK).astype(np.uint8))
WHITE_FIRST.putpalette([255, 255, 255, 0, 0, 0])
# Two colours of which the brighter one is no white, numbered as a packer likes.
QUANTISED = Image.fromarray(np.uint8(MASK)[..., None] * np.uint8([[[200, 0, 0]]])).quantize(2)
CLEAR = Image.fromarray(np.dstack([np.full((*MASK.shape, 3), 255), MASK * 255]).astype(np.uint8))


@pytest.mark.parametrize(
    "given",
    [
        MASK,
        MASK[..., None],
        MASK.astype(np.int64),
        MASK.astype(np.uint8) * 15,
        MASK * 0.5,
        Image.fromarray(MASK),
        Image.fromarray(MASK.astype(np.uint8)),
        Image.fromarray((MASK * 200 + 40).astype(np.uint8)),
        Image.fromarray(MASK.astype(np.uint16) * 65535),
        PALETTE,
        WHITE_FIRST,
        QUANTISED,
        CLEAR,
    ],
    ids=[
        *("bool", "one", "0 1", "0 15", "float", "1 bit", "L 0 1", "L gray", "16 bit", "palette"),
        *("white first", "red on black", "white on nothing"),
    ],
)
def test_masks_of_every_kind(given):
    found = images.read_mask(given)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, MASK)


def test_a_palette_without_white_marks_nothing():
    black = Image.fromarray(np.ones_like(MASK, np.uint8))
    black.putpalette([255, 255, 255, 0, 0, 0])
    assert not images.read_mask(black).any()


def test_a_photo_is_no_mask():
    photo = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for image in (Image.fromarray(photo), Image.fromarray(photo[..., 0])):
        with pytest.raises(ValueError, match="cannot be read as a mask: it looks like a photo"):
            images.read_mask(image)
    soft = np.clip(np.hypot(*np.mgrid[-20:20, -25:25]) * 60 - 500, 0, 255).astype(np.uint8)
    assert 0 < images.read_mask(Image.fromarray(soft)).mean() < 1


def _mark(**cue):
    return images.mark((60, 90), 32, **cue)


def _dot(x, y):
    """A mask of 60 x 90 with one pixel set."""
    mask = np.zeros((60, 90), np.bool_)
    mask[y, x] = True
    return mask


CLASSES = np.arange(5400, dtype=np.uint8).reshape(60, 90) % 7


@pytest.mark.parametrize(
    ("cue", "message"),
    [
        ({}, "a reference is marked by nothing: pass one of mask, points, box, scribble"),
        ({"box": [1, 2, 3, 4], "points": [[1, 2]]}, "is marked by points and box: pass one of"),
        ({"mask": MASK}, "mask is 7 x 5 pixels, the picture 90 x 60: they must be the same"),
        ({"mask": np.zeros((60, 90))}, "mask is empty: no pixel is marked"),
        ({"scribble": np.zeros((60, 90), bool)}, "scribble is empty: no pixel is marked"),
        ({"mask": _dot(1, 1)}, "mask is empty at 32 x 32, the size that the model"),
        ({"mask": np.arange(5400).reshape(60, 90) % 7}, "mask holds 0, 1, 2, 3, 4, 5, ...: pass"),
        ({"mask": Image.fromarray(CLASSES)}, "mask holds 0, 1, 2, 3, 4, 5, ...: pass the mask of"),
        ({"mask": np.full((60, 90), -0.5)}, "mask is float64 from -0.5 to -0.5: pass floats in"),
        ({"mask": np.zeros((60, 90, 3))}, r"mask is float64 \(60, 90, 3\): pass height x width"),
        ({"mask": np.zeros((60, 90), "U1")}, "mask is <U1: pass bool, integers, or floats"),
        ({"points": [[5, 5], [90, 3]]}, r"points has \[90.0, 3.0\], outside the picture of 90 x"),
        ({"points": [[-0.1, 5]]}, "outside the picture"),
        ({"points": np.zeros((0, 2))}, "points is empty"),
        ({"points": [1, 2, 3]}, "points is 3: pass N x 2"),
        ({"points": [[1, np.nan]]}, "points holds NaN or infinity"),
        ({"box": [10, 5, 91, 40]}, r"box=\[10.0, 5.0, 91.0, 40.0\] must be x0 < x1, y0 < y1"),
        ({"box": [10, 5, 10, 40]}, "must be x0 < x1"),
        ({"box": [10, 5, 10]}, "box is 3: pass 4"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_marks_that_are_wrong_are_said(cue, message):
    with pytest.raises(ValueError, match=message):
        _mark(**cue)


def test_a_mask_is_shrunk_as_in_training():
    rows, cols = np.arange(32) * 60 // 32, np.arange(32) * 90 // 32
    mask = np.random.default_rng(1).random((60, 90)) > 0.5
    np.testing.assert_array_equal(_mark(mask=mask), mask[rows[:, None], cols])


def test_a_box_is_filled_to_its_last_pixel():
    square = _mark(box=[30, 15, 60, 46])
    rows, cols = (np.flatnonzero(square.any(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1], cols[0], cols[-1]) == (8, 24, 10, 21)
    assert square.sum() == len(rows) * len(cols)
    assert _mark(box=[89.5, 59.5, 90, 60]).sum() == 1


def test_points_and_strokes_mark_their_pixels():
    for seed in range(40):
        x, y = np.random.default_rng(seed).integers(0, (90, 60))
        for square in (_mark(points=[[x + 0.7, y]]), _mark(scribble=_dot(x, y))):
            np.testing.assert_array_equal(np.argwhere(square), [[y * 32 // 60, x * 32 // 90]])
    square = _mark(points=[[0, 0], [89.9, 0], [1, 59]])
    np.testing.assert_array_equal(np.argwhere(square), [[0, 0], [0, 31], [31, 0]])


def test_strokes_have_no_gaps_in_a_small_picture():
    strokes = np.eye(5, dtype=np.bool_)
    square = images.mark((5, 5), 35, scribble=strokes)
    np.testing.assert_array_equal(square, strokes.repeat(7, 0).repeat(7, 1))
