"""torch's and torchvision's pixel rules: resizing and normalising."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

# Of ImageNet, for pixels in [0, 1]; times 255 they are SAM's pixel_mean and pixel_std.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
HIGHEST = jax.lax.Precision.HIGHEST


def normalize(images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """RGB of 0-255 to the float32 input of SAM and of the backbones: (x / 255 - mean) / std."""
    lead = (1,) * (images.ndim - 1)
    mean, std = (jnp.asarray(v, jnp.float32).reshape(*lead, 3) for v in (MEAN, STD))
    return (images.astype(jnp.float32) / 255 - mean) / std


def bilinear(
    x: Float[Array, "b h w c"], size: tuple[int, int], *, align_corners: bool
) -> Float[Array, "b H W c"]:
    """Bilinear resize without antialiasing, as `torch.nn.functional.interpolate`.

    Args:
        x: Maps.
        size: (H, W) of the result.
        align_corners: True puts the corner pixels' centres on each other (VRP-SAM), False the
            outer edges (SAM).

    Returns:
        The resized maps, in the type of `x`; interpolated in float32.
    """
    if x.shape[1:3] == size:
        return x
    rows = jnp.asarray(_weights(x.shape[1], size[0], align_corners))
    cols = jnp.asarray(_weights(x.shape[2], size[1], align_corners))
    # As products of matrices: the gradient needs no scatter. Full precision, because the
    # fractions would not survive an accelerator's default.
    y = jnp.einsum("Hh,bhwc->bHwc", rows, x.astype(jnp.float32), precision=HIGHEST)
    y = jnp.einsum("Ww,bhwc->bhWc", cols, y, precision=HIGHEST)
    return y.astype(x.dtype)


def _weights(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    """The (n_out, n_in) matrix of one axis, two non-zeros a row."""
    i = np.arange(n_out, dtype=np.float64)
    if align_corners:
        source = i * (n_in - 1) / (n_out - 1) if n_out > 1 else np.zeros(1)
    else:
        source = np.maximum((i + 0.5) * n_in / n_out - 0.5, 0)
    low = np.minimum(source.astype(np.int64), n_in - 1)
    high = np.minimum(low + 1, n_in - 1)
    share = source - low
    weights = np.zeros((n_out, n_in), np.float32)
    rows = np.arange(n_out)
    np.add.at(weights, (rows, low), 1 - share)
    np.add.at(weights, (rows, high), share)
    return weights


def nearest(x: Shaped[Array, "b h w c"], size: tuple[int, int]) -> Shaped[Array, "b H W c"]:
    """Nearest resize of `torch.nn.functional.interpolate`: source index floor(i * in / out).

    This takes the top left pixel of each cell, not its centre.
    """
    rows = np.arange(size[0]) * x.shape[1] // size[0]
    cols = np.arange(size[1]) * x.shape[2] // size[1]
    return jnp.take(jnp.take(x, rows, axis=1), cols, axis=2)


def linear_table(table: Float[Array, "n c"], length: int) -> Float[Array, "m c"]:
    """Linear interpolation of a table to `length` rows, torch's `align_corners=False`."""
    if table.shape[0] == length:
        return table
    weights = jnp.asarray(_weights(table.shape[0], length, align_corners=False))
    return jnp.matmul(weights, table, precision=HIGHEST)
