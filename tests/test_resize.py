import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from prosam_jax import resize


def test_golden_resizes(golden):
    arrays = golden("resize")
    cases = sorted({name.split("/")[0] for name in arrays if "/" in name})
    assert len(cases) == 10
    for case in cases:
        kind, *_, size = case.split("_")
        height, width = map(int, size.split("x"))
        if kind == "bilinear":
            x = jnp.asarray(np.moveaxis(arrays[f"{case}/in"], 1, -1))
            found = resize.bilinear(x, (height, width), align_corners=True)
            expected = np.moveaxis(arrays[f"{case}/out"], 1, -1)
            # torch computes the source positions in float32; ours are exact.
            np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6)
        else:
            h, w = map(int, case.split("_")[1].split("x"))
            grid = jnp.arange(h * w).reshape(1, h, w, 1)
            found = resize.nearest(grid, (height, width))[0, :, :, 0]
            expected = arrays[f"{case}/rows"][:, None] * w + arrays[f"{case}/cols"]
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(12, 9), (3, 4), (1, 1), (5, 7), (23, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_bilinear_is_torchs(align_corners, size, seed):
    x = np.random.default_rng(seed).standard_normal((2, 5, 7, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()),
        size,
        mode="bilinear",
        align_corners=align_corners,
    )
    found = resize.bilinear(jnp.asarray(x), size, align_corners=align_corners)
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_map_has_torchs_bilinear_of_its_own_size(seed):
    x = np.random.default_rng(seed).standard_normal((6, 16, 17)).astype(np.float32)
    sizes = np.array([(12, 9), (1, 1), (375, 500), (500, 333), (16, 17), (2, 31)], np.int32)
    found = np.asarray(jax.jit(resize.bilinear_to_each, static_argnums=2)(x, sizes, (512, 500)))
    assert found.shape == (6, 512, 500)
    for one, image, (h, w) in zip(found, x, sizes.tolist(), strict=True):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(image)[None, None], (h, w), mode="bilinear", align_corners=True
        )
        # torch computes the source positions in float32
        np.testing.assert_allclose(one[:h, :w], expected[0, 0].numpy(), rtol=0, atol=1e-5)
        assert not one[h:].any() and not one[:, w:].any()


@pytest.mark.parametrize("scale", [(12.1 / 5, 9.1 / 7), (3.1 / 5, 4.1 / 7), (1.1 / 5, 7.9 / 7)])
@pytest.mark.parametrize("seed", [0, 1])
def test_bicubic_is_torchs(scale, seed):
    x = np.random.default_rng(seed).standard_normal((2, 5, 7, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()), scale_factor=scale, mode="bicubic"
    )
    found = resize.bicubic(jnp.asarray(x), scale)
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 1, -1), rtol=0, atol=5e-6)


@pytest.mark.parametrize("size", [(12, 9), (3, 4), (1, 2), (5, 7), (11, 3), (2, 41)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_antialiased_bicubic_is_torchs(size, seed):
    x = np.random.default_rng(seed).standard_normal((2, 5, 7, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()), size, mode="bicubic", antialias=True
    )
    found = resize.bicubic_antialiased(jnp.asarray(x), size)
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 1, -1), rtol=0, atol=2e-6)


def test_coverage_keeps_every_mark_and_weighs_by_area():
    marked = np.zeros((4, 8, 12), np.float32)
    marked[0, 3, 7] = 1  # one pixel, where nearest takes others
    marked[1, 0:5, 4:9] = 1  # cells of 16, 4, 4 and 1 pixels; on the mean 6.25
    marked[2, [0, 1, 7], [0, 1, 11]] = 1  # two pixels in a cell and one in another
    found = np.asarray(resize.coverage(jnp.asarray(marked), (2, 3)))
    np.testing.assert_array_equal(found[0], [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(found[1], [[0, 1, 0.64], [0, 0.64, 0.16]], rtol=1e-6)
    np.testing.assert_allclose(found[2], [[1, 0, 0], [0, 0, 2 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(found[3], 0)
    whole = resize.coverage(jnp.ones((1, 8, 12)), (3, 5))  # cells of broken size
    np.testing.assert_allclose(whole, 1, rtol=1e-6)


@pytest.mark.parametrize("size", [(5, 7), (13, 4), (36, 36)])
def test_no_pixel_escapes_coverage(size):
    marked = np.zeros((41 * 3, 41, 37), np.float32)
    pixels = np.arange(41 * 3) * 12 % (41 * 37)
    marked.reshape(len(marked), -1)[np.arange(len(marked)), pixels] = 1
    found = np.asarray(resize.coverage(jnp.asarray(marked), size))
    assert found.max((1, 2)).min() >= 0.5
    assert found.max() <= 1


@pytest.mark.parametrize("length", [3, 5, 9, 1])
def test_linear_table_is_torchs(length):
    table = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(table.T.copy())[None], length, mode="linear"
    )[0].T
    found = resize.linear_table(jnp.asarray(table), length)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_normalize_is_torchvisions():
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(resize.normalize(jnp.asarray(image)), expected, rtol=1e-5, atol=1e-6)
