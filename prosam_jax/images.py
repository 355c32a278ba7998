"""A user's pictures and what is marked in them: from whatever they come as to the model's square.

NumPy and Pillow only. Everything is in pixels as a viewer shows them: the EXIF rotation of files
and Pillow images is applied.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from prosam_jax.data.transforms import resize_mask
from prosam_jax.errors import UserError
from prosam_jax.sam.transforms import ImageLike, Numbers, numbers, rgb

CUES = ("mask", "points", "box", "scribble")
MEND = "save it with 8 bits"


def read(image: ImageLike, name: str = "image") -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an array, of a Pillow image or of a file, RGB 0-255.

    Args:
        image: An array of height x width, or height x width x 1, 3 or 4, of uint8 or of floats
            in 0-1; a Pillow image; or the path of a file that Pillow reads. Alpha is left out, and
            of 16 bits the upper 8 count.
        name: What messages call it, if it is no file.

    Raises:
        ValueError: It is none of these, or damaged.
        FileNotFoundError: There is no such file.
    """
    if isinstance(image, str | os.PathLike | Image.Image):
        return _opened(image, name, _eight_bits, "a picture")
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    fits = array.ndim == 3 and array.shape[2] in (1, 3, 4) and array.size
    if not fits or not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
        raise UserError(
            f"{name} is {array.dtype} {array.shape}: pass height x width x 3, uint8 in 0-255 or "
            "floats in 0-1"
        )
    if array.dtype != np.uint8:
        _check_unit(array, name)
        array = np.round(array * 255).astype(np.uint8)
    array = array[..., :3]
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def read_mask(mask: ImageLike, name: str = "mask") -> Bool[np.ndarray, "h w"]:
    """Which pixels a mask marks.

    Args:
        mask: An array of height x width: bool, floats in 0-1 (0.5 and above is marked), or
            integers, 0 and one other number. Or a Pillow image or a file, white on black, where
            gray from 128 counts as white and transparent as black. Of a palette's two colours the
            brighter one is marked; with more of them, of 16 bits or all darker than 128 it is
            taken as integers.
        name: What messages call it, if it is no file.

    Raises:
        ValueError: It is none of these, damaged, has more than one number beside 0, or is a file
            that looks like a photo.
        FileNotFoundError: There is no such file.
    """
    if isinstance(mask, str | os.PathLike | Image.Image):
        array = _opened(mask, name, _levels, "a mask")
        name = str(mask) if isinstance(mask, str | os.PathLike) else name
    else:
        array = np.asarray(mask)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise UserError(f"{name} is {array.dtype} {array.shape}: pass height x width")
    if np.issubdtype(array.dtype, np.floating):
        _check_unit(array, name)
        return array >= 0.5
    if not (array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer)):
        raise UserError(f"{name} is {array.dtype}: pass bool, integers, or floats in 0-1")
    values = np.unique(array)
    if np.count_nonzero(values) > 1:
        shown = ", ".join(map(str, values[:6].tolist())) + (", ..." if len(values) > 6 else "")
        raise UserError(f"{name} holds {shown}: pass the mask of one object, such as labels == 1")
    return array != 0


def mark(
    size: tuple[int, int],
    side: int,
    *,
    mask: ImageLike | None = None,
    points: Numbers | None = None,
    box: Numbers | None = None,
    scribble: ImageLike | None = None,
) -> Bool[np.ndarray, "{side} {side}"]:
    """One annotation of a picture, brought to the model's square.

    As in training a mask is shrunk by `resize_mask`, a box is filled, and points are single
    pixels. Of a scribble every pixel counts, however thin it gets.

    Args:
        size: (height, width) of the picture.
        side: Side of the square in pixels.
        mask: See `read_mask`; as large as the picture.
        points: N x 2, x and y in pixels of the picture.
        box: x0, y0, x1, y1 in pixels of the picture; the last two are those after the box.
        scribble: The strokes, given like a mask.

    Raises:
        ValueError: Not one kind is given, or it marks nothing, or lies outside, or is not valid.
    """
    given = dict(zip(CUES, (mask, points, box, scribble), strict=True))
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        held = " and ".join(names) or "nothing"
        raise UserError(f"a reference is marked by {held}: pass one of {', '.join(CUES)}")
    if mask is not None:
        square = resize_mask(_fitting(mask, size, "mask"), side)
        if not square.any():
            raise UserError(
                f"mask is empty at {side} x {side}, the size that the model sees: mark a larger "
                "object, or cut the picture to it"
            )
        return square
    if box is not None:
        return _filled(box, size, side)
    square = np.zeros((side, side), np.bool_)
    if points is not None:
        rows, cols = _pixels(points, size)
    else:
        strokes = _fitting(scribble, size, "scribble")
        rows, cols = np.nonzero(strokes)
        if side > min(size):  # a pixel becomes several
            square = resize_mask(strokes, side)
    square[rows * side // size[0], cols * side // size[1]] = True
    return square


def _opened(
    image: Any, name: str, convert: Callable[[Image.Image], np.ndarray], what: str
) -> np.ndarray:
    try:
        if isinstance(image, Image.Image):
            return convert(ImageOps.exif_transpose(image))
        name = str(image)
        with Image.open(image) as file:
            return convert(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(
            f"{name} has more than {most:,} pixels, the most that Pillow reads: shrink it"
        ) from error
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged files
        known = not isinstance(error, UnidentifiedImageError)  # whose words name the file again
        reason = error if known else "its format is unknown"
        raise UserError(f"{name} cannot be read as {what}: {reason}") from error


def _eight_bits(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode.startswith("I"):
        levels = np.array(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise UserError(f"levels from {levels.min()} to {levels.max()}: {MEND}")
        if 0 < levels.max() < 4096:  # of 12 bits or fewer: its upper 8 of 16 would be black
            raise UserError(f"levels up to {levels.max()}, of 16 bits next to black: {MEND}")
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")  # a palette's transparency has several forms
    return rgb(image, "RGB")


def _levels(image: Image.Image) -> np.ndarray:
    """A picture of a mask as bool, or as its numbers if they are not gray in 0-255."""
    if image.mode.startswith(("I", "F")):
        return np.array(image)
    shown = image
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, "black")
        shown = Image.alpha_composite(black, image.convert("RGBA"))
    gray = np.array(shown.convert("L"))
    if image.mode == "P":  # in which packers number the colours as they like
        colours = len(shown.convert("RGB").getcolors(2) or [])
        if colours == 2 and gray.min() < gray.max():
            return gray == gray.max()
        indices = np.array(image)
        if colours != 1 or np.ptp(indices):
            return indices
    between = gray[(gray > 31) & (gray < 224)]
    if len(between) > gray.size / 4 and len(np.unique(between)) > 64:
        raise UserError(
            "it looks like a photo, for much of it is neither black nor white: pass one that is "
            "white on the object and black elsewhere"
        )
    return gray >= 128 if gray.max() >= 128 else gray


def _check_unit(array: np.ndarray, name: str) -> None:
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # NaN as well
        raise UserError(
            f"{name} is {array.dtype} from {low:.6g} to {high:.6g}: pass floats in 0-1, or uint8"
        )


def _fitting(mask: ImageLike | None, size: tuple[int, int], name: str) -> Bool[np.ndarray, "h w"]:
    assert mask is not None
    array = read_mask(mask, name)
    if array.shape != size:
        held, wanted = (f"{width} x {height}" for height, width in (array.shape, size))
        raise UserError(f"{name} is {held} pixels, the picture {wanted}: they must be the same")
    if not array.any():
        raise UserError(f"{name} is empty: no pixel is marked (in files, white on black)")
    return array


def _pixels(points: Numbers, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels in which the points lie."""
    xy = numbers("points", points, (None, 2))
    height, width = size
    if not len(xy):
        raise UserError("points is empty: pass at least one x, y")
    outside = ~((xy >= 0) & (xy < [[width, height]])).all(1)
    if outside.any():
        raise UserError(
            f"points has {xy[outside][0].tolist()}, outside the picture of {width} x {height} "
            "pixels: pass x, y in pixels of the picture"
        )
    x, y = xy.astype(np.int64).T
    return y, x


def _filled(box: Numbers, size: tuple[int, int], side: int) -> Bool[np.ndarray, "{side} {side}"]:
    x0, y0, x1, y1 = numbers("box", box, (4,)).tolist()
    height, width = size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UserError(
            f"box={[x0, y0, x1, y1]} must be x0 < x1, y0 < y1 inside the picture of {width} x "
            f"{height} pixels"
        )
    square = np.zeros((side, side), np.bool_)
    rows, cols = (
        slice(int(low * side / whole), int(np.ceil(high * side / whole)))
        for low, high, whole in ((y0, y1, height), (x0, x1, width))
    )
    square[rows, cols] = True
    return square
