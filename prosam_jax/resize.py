"""Resizing and normalising, by torch's and torchvision's rules."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

# ImageNet's, for pixels in [0, 1]; times 255 they are SAM's pixel_mean and pixel_std.
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
        align_corners: True aligns the centres of the corner pixels (VRP-SAM), False the outer
            edges (SAM).

    Returns:
        The resized maps, in the type of `x`; interpolated in float32.
    """
    if x.shape[1:3] == size:
        return x
    rows = bilinear_weights(x.shape[1], size[0], align_corners)
    cols = bilinear_weights(x.shape[2], size[1], align_corners)
    return _weigh(x, rows, cols)


def bilinear_map(x: Float[Array, "b h w"], size: tuple[int, int]) -> Float[Array, "b H W"]:
    """`bilinear` with aligned corners, which is how VRP-SAM resizes a decoder's logits."""
    return bilinear(x[..., None], size, align_corners=True)[..., 0]


def bilinear_to_each(
    x: Float[Array, "b h w"], sizes: Int[Array, "b 2"], canvas: tuple[int, int]
) -> Float[Array, "b H W"]:
    """`bilinear_map` to a size of its own for each map, which need not be known at compilation.

    Args:
        x: Maps.
        sizes: (height, width) of each result, at most `canvas`.
        canvas: (H, W) of the array that holds any of them at its top left; 0 elsewhere.
    """
    each = (sizes[:, 0], x.shape[1], canvas[0]), (sizes[:, 1], x.shape[2], canvas[1])
    rows, cols = (_aligned_weights(n_out, n_in, room) for n_out, n_in, room in each)
    x = jnp.einsum("bHh,bhw->bHw", rows, x.astype(jnp.float32), precision=HIGHEST)
    return jnp.einsum("bWw,bHw->bHW", cols, x, precision=HIGHEST)


def _aligned_weights(n_out: Int[Array, " b"], n_in: int, room: int) -> Float[Array, "b o i"]:
    """`bilinear_weights` with aligned corners for each `n_out`, and rows of zeros up to `room`."""
    i, n_out = jnp.arange(room)[None], n_out[:, None]
    # Whole numbers as far as possible: in float32 the division alone would round a share by 1e-5.
    scaled, last = i * (n_in - 1), jnp.maximum(n_out - 1, 1)
    low, share = scaled // last, (scaled % last) / last
    columns = jnp.arange(n_in)[None, None]
    weights = jnp.where(columns == low[..., None], 1 - share[..., None], 0)
    weights += jnp.where(columns == low[..., None] + 1, share[..., None], 0)
    return jnp.where((i < n_out)[..., None], weights, 0)


def bicubic(x: Float[Array, "b h w c"], scale: tuple[float, float]) -> Float[Array, "b H W c"]:
    """Bicubic resize by a factor, as `torch.nn.functional.interpolate(x, scale_factor=scale)`.

    Without antialiasing and with align_corners=False. The sizes are floor(h * scale) and
    floor(w * scale), but coordinates are mapped with `scale` itself, which differs unless both
    products are whole.

    Args:
        x: Maps.
        scale: Factors of height and width.

    Returns:
        The resized maps, in the type of `x`; interpolated in float32.
    """
    rows = _cubic_weights(x.shape[1], scale[0])
    cols = _cubic_weights(x.shape[2], scale[1])
    return _weigh(x, rows, cols)


def bicubic_antialiased(
    x: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b H W c"]:
    """Bicubic resize of `torch.nn.functional.interpolate(x, size, antialias=True)`.

    With align_corners=False. Where it shrinks, the kernel is as much wider; its a is -0.5, which is
    Pillow's and not that of `bicubic`; and it is cut off at the border.

    Args:
        x: Maps.
        size: (H, W) of the result.

    Returns:
        The resized maps, in the type of `x`; interpolated in float32.
    """
    rows = _smooth_cubic_weights(x.shape[1], size[0])
    cols = _smooth_cubic_weights(x.shape[2], size[1])
    return _weigh(x, rows, cols)


def _weigh(
    x: Float[Array, "b h w c"], rows: Float[np.ndarray, "H h"], cols: Float[np.ndarray, "W w"]
) -> Float[Array, "b H W c"]:
    # Matrix products, so that the gradient needs no scatter. Full precision, because an
    # accelerator's default would lose digits of the weights.
    y = jnp.einsum("Hh,bhwc->bHwc", rows, x.astype(jnp.float32), precision=HIGHEST)
    y = jnp.einsum("Ww,bhwc->bhWc", cols, y, precision=HIGHEST)
    return y.astype(x.dtype)


def bilinear_weights(n_in: int, n_out: int, align_corners: bool) -> Float[np.ndarray, "o i"]:
    """The (n_out, n_in) matrix with which `bilinear` resizes one axis, two non-zeros a row."""
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


def _cubic_weights(n_in: int, scale: float) -> np.ndarray:
    """The (floor(n_in * scale), n_in) matrix of one axis: Keys' kernel with torch's a = -0.75.

    Four neighbours a row; beyond the border they repeat the border's pixel.
    """
    rows = np.arange(int(n_in * scale))
    source = (rows + 0.5) / scale - 0.5
    low = np.floor(source).astype(np.int64)
    weights = np.zeros((len(rows), n_in), np.float32)
    for neighbour in (low - 1, low, low + 1, low + 2):
        share = _keys(source - neighbour, -0.75)
        np.add.at(weights, (rows, np.clip(neighbour, 0, n_in - 1)), share)
    return weights


def _smooth_cubic_weights(n_in: int, n_out: int) -> np.ndarray:
    """The (n_out, n_in) matrix of one axis of `bicubic_antialiased`; each row's sum is 1."""
    factor = n_in / n_out
    centres = (np.arange(n_out)[:, None] + 0.5) * factor - 0.5
    weights = _keys((centres - np.arange(n_in)[None]) / max(factor, 1), -0.5)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel, which is 0 from a distance of 2 pixels."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = ((d - 5) * d + 8) * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def nearest(x: Shaped[Array, "b h w c"], size: tuple[int, int]) -> Shaped[Array, "b H W c"]:
    """Nearest resize of `torch.nn.functional.interpolate`: source index floor(i * in / out).

    This takes the top left pixel of each cell, not its centre.
    """
    rows = np.arange(size[0]) * x.shape[1] // size[0]
    cols = np.arange(size[1]) * x.shape[2] // size[1]
    return jnp.take(jnp.take(x, rows, axis=1), cols, axis=2)


def coverage(annotated: Float[Array, "b h w"], size: tuple[int, int]) -> Float[Array, "b H W"]:
    """Shrinks a sparse annotation so that every annotated pixel counts.

    A cell's weight is the share of its area that is annotated, relative to the mean share of the
    cells with any annotated pixel, and at most 1. So a single point weighs as much in its cell
    as a mask does in the cells that it fills, while a mask's rim weighs less.

    Args:
        annotated: Annotations, 0 or 1.
        size: (H, W) of the result.

    Returns:
        Weights in [0, 1]: above 0 where any pixel of the cell is annotated, 0 elsewhere.
    """
    rows = _area_weights(annotated.shape[1], size[0])
    cols = _area_weights(annotated.shape[2], size[1])
    share = _weigh(annotated[..., None], rows, cols)[..., 0]
    cells = (share > 0).sum((1, 2), keepdims=True)
    mean = share.sum((1, 2), keepdims=True) / jnp.maximum(cells, 1)
    return jnp.minimum(share / jnp.where(mean > 0, mean, 1), 1)


def _area_weights(n_in: int, n_out: int) -> Float[np.ndarray, "o i"]:
    """The (n_out, n_in) matrix that averages one axis over cells of n_in / n_out pixels."""
    edges = np.arange(n_out + 1)[:, None] * n_in / n_out
    pixels = np.arange(n_in)[None]
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.maximum(overlap * n_out / n_in, 0).astype(np.float32)


def linear_table(table: Float[Array, "n c"], length: int) -> Float[Array, "m c"]:
    """Linear interpolation of a table to `length` rows, with torch's `align_corners=False`."""
    if table.shape[0] == length:
        return table
    weights = jnp.asarray(bilinear_weights(table.shape[0], length, align_corners=False))
    return jnp.matmul(weights, table, precision=HIGHEST)


def annotation(
    annotated: Float[Array, "r H W"], size: tuple[int, int], rule: str
) -> Float[Array, "r h w"]:
    """Annotations at the features' size, weights in [0, 1], by a rule of `data.downsample`."""
    if rule == "coverage":
        return coverage(annotated, size)
    return nearest(annotated[..., None], size)[..., 0]
