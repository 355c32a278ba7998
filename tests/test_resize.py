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


@pytest.mark.parametrize("scale", [(12.1 / 5, 9.1 / 7), (3.1 / 5, 4.1 / 7), (1.1 / 5, 7.9 / 7)])
@pytest.mark.parametrize("seed", [0, 1])
def test_bicubic_is_torchs(scale, seed):
    x = np.random.default_rng(seed).standard_normal((2, 5, 7, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()), scale_factor=scale, mode="bicubic"
    )
    found = resize.bicubic(jnp.asarray(x), scale)
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 1, -1), rtol=0, atol=5e-6)


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
