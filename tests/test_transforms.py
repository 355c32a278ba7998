import numpy as np
import pytest
from PIL import Image

from prosam_jax.data.transforms import class_mask, resize_image, resize_mask


def test_resize_image_averages_where_it_shrinks():
    image = np.zeros((16, 8, 3), np.uint8)
    image[:, 3] = 240  # weights 3/8 and 1/8 in outputs whose centres are 0.5 and 1.5 away
    out = resize_image(image, 4)
    np.testing.assert_array_equal(out, np.tile(np.array([0, 90, 30, 0])[None, :, None], (4, 1, 3)))


def test_resize_image_interpolates_between_pixel_centres_where_it_grows():
    image = np.zeros((3, 2, 3), np.uint8)
    image[:, 1] = (100, 200, 40)
    out = resize_image(image, 4)
    assert out.shape == (4, 4, 3)
    np.testing.assert_array_equal(out[2], np.outer([0, 0.25, 0.75, 1], [100, 200, 40]))


def test_resize_image_takes_pictures_of_any_mode():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (9, 14), dtype=np.uint8)
    out = resize_image(Image.fromarray(grey), 6)
    np.testing.assert_array_equal(out, resize_image(np.repeat(grey[..., None], 3, axis=2), 6))
    assert out.dtype == np.uint8


@pytest.mark.parametrize("shape, size", [((128, 128), 16), ((500, 375), 512)])
def test_resize_mask_takes_the_reference_pixels(golden, shape, size):
    expected = golden("resize")
    name = f"nearest_{shape[0]}x{shape[1]}_to_{size}x{size}"
    rows, cols = expected[f"{name}/rows"], expected[f"{name}/cols"]
    labels = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    out = resize_mask(labels, size)
    np.testing.assert_array_equal(out, labels[rows][:, cols])
    assert out.flags.c_contiguous


@pytest.mark.parametrize("shape, sizes", [((129, 161), (17, 21)), ((37, 50), (64, 33))])
def test_resize_mask_follows_the_same_rule_on_each_axis(golden, shape, sizes):
    expected = golden("resize")
    name = f"nearest_{shape[0]}x{shape[1]}_to_{sizes[0]}x{sizes[1]}"
    for axis, key in enumerate(("rows", "cols")):
        ramp = np.arange(shape[axis], dtype=np.int32)
        labels = np.broadcast_to(ramp[:, None] if axis == 0 else ramp, shape)
        out = resize_mask(labels, sizes[axis])
        line = out[:, 0] if axis == 0 else out[0]
        np.testing.assert_array_equal(line, expected[f"{name}/{key}"])


def test_class_mask_parts_object_from_ignored_pixels():
    labels = np.array([[0, 7, 255], [7, 3, 255]], np.uint8)
    mask, ignore = class_mask(labels, 7)
    np.testing.assert_array_equal(mask, [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(ignore, [[0, 0, 1], [0, 0, 1]])
    assert mask.dtype == ignore.dtype == np.bool_
