"""Reads pictures and masks from files, Pillow images and arrays.

All pictures follow the same rules:

* They are rotated according to their EXIF data, as in viewers and annotation tools.
* Of 16 bits, the upper 8 are used. Fractions are refused, and so are levels so low that the upper 8
  bits would be black, as of cameras with 12 bits.
* Gray, CMYK, 1-bit and palette images become RGB; alpha is dropped; of several frames, the first is
  used.
* What cannot be read raises a `UserError` of one line, a missing file a `MissingFile`.

Masks are read by two rules: `read_mask` tells the pixels of one object, `read_labels` the class
numbers as they lie in the file.

Callers that need other rules pass arguments. This module needs only NumPy and Pillow.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageChops

from prosam_jax.errors import UserError
from prosam_jax.picture_files import File, called, opened, orientation

ImageLike = np.ndarray | Image.Image | str | os.PathLike[str]
Numbers = np.ndarray | Sequence[Any]

# What EXIF's numbers of an orientation ask for.
_QUARTERS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS = _QUARTERS | {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
}
_ROWS = 256
_BITS, _PLANAR = 258, 284  # tags of a TIFF
_MEND = "save it with 8 or 16 bits"
# Formats, and compressions of a TIFF, that change numbers.
_LOSSY = {"JPEG", "MPO", "JPEG2000", "jpeg", "webp"}


def read(
    image: ImageLike, name: str = "image", *, order: str = "RGB"
) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an array, a Pillow image or a file, RGB 0-255.

    Args:
        image: An array of height x width, or height x width x 1, 3 or 4, of uint8 or of floats
            in 0-1; a Pillow image; or the path of a file that Pillow reads. Alpha is dropped.
        name: Its name in messages, unless it is a file.
        order: Order of an array's channels, "RGB" or "BGR".

    Raises:
        UserError: It is none of these, or damaged.
        FileNotFoundError: There is no such file.
    """
    if isinstance(image, str | os.PathLike | Image.Image):
        name = called(image, name)
        with opened(image, name) as stored:
            return _pixels(_upright(_rgb(stored, name), stored))
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
    array = array[..., :3] if order == "RGB" else array[..., 2::-1]
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def load(
    file: File,
    name: str = "image",
    *,
    turn: bool = True,
    fit: tuple[int, int] | None = None,
    square: int = 0,
) -> Image.Image:
    """A file as a Pillow image, RGB.

    Args:
        file: Its path or its bytes.
        name: Name of the bytes in messages.
        turn: Whether to rotate it by its EXIF data. False for benchmarks, whose masks match the
            stored pixels. Pillow itself always rotates a TIFF.
        fit: (width, height) of its mask, which it must have. A picture is not rotated if only its
            stored pixels have that size.
        square: 0 decodes every pixel. Otherwise a JPEG is resized to a square of this side; if it
            has four times that size or more, it is decoded at 1/2, 1/4 or 1/8 of its size, the
            smallest that is still twice the square or more. The mean difference from the exact
            pixels is within 1 of 255 levels.

    Raises:
        UserError: The file cannot be read, or is of another size than `fit`.
        FileNotFoundError: There is no such file.
    """
    name = called(file, name)
    with opened(file, name) as stored:
        if fit:
            shown = _upright_size(stored) if turn else stored.size
            if fit not in (shown, stored.size):
                raise UserError(
                    f"{name} has {_by(shown)} pixels and its mask {_by(fit)}; both must have the "
                    "same size"
                )
            turn = turn and fit == shown
        drafted = stored.draft(None, (2 * square, 2 * square)) if square else None
        pixels = _rgb(stored, name)
        if drafted:  # a JPEG
            _, box = drafted  # the part with content: sizes that 8 does not divide are rounded up
            pixels = pixels.resize((square, square), Image.Resampling.BILINEAR, box)
        return _upright(pixels, stored) if turn else pixels


def size(file: File, name: str = "image", *, turn: bool = True) -> tuple[int, int]:
    """(width, height) of a file's picture.

    Args:
        file: Its path or its bytes.
        name: Name of the bytes in messages.
        turn: True for the size in a viewer, False for that of the stored pixels.

    Raises:
        UserError: The file cannot be read.
        FileNotFoundError: There is no such file.
    """
    with opened(file, called(file, name)) as image:
        return _upright_size(image) if turn else image.size


def frames(file: File, name: str = "image") -> tuple[tuple[int, int], tuple[int, int], bool]:
    """(width, height) in a viewer and as stored, and whether EXIF data turn or flip the picture.

    Raises:
        UserError: The file cannot be read.
        FileNotFoundError: There is no such file.
    """
    with opened(file, called(file, name)) as image:
        stored = image.size
        return _upright_size(image), stored, orientation(image) in _TURNS


def read_labels(file: File, name: str = "mask") -> UInt8[np.ndarray, "h w"]:
    """The class numbers of a mask file: its stored pixels, or the indices of a palette.

    Gray of 1, 2 or 4 bits, or of another largest value, gives the numbers that lie in the file.

    Raises:
        UserError: The file cannot be read, has several channels or numbers outside 0-255, or a
            compression that changes numbers, such as JPEG's.
        FileNotFoundError: There is no such file.
    """
    name = called(file, name)
    with opened(file, name) as mask:
        if loss := _loss(mask):
            raise UserError(
                f"{name} is compressed with loss ({loss}), which changes class numbers: save the "
                "mask as PNG from its source, or list masks of one object with their classes in a "
                "CSV for prosam prepare folder --annotations"
            )
        if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
            raise UserError(
                f"{name} has mode {mask.mode}; save the mask with one channel of class numbers, "
                "with or without a palette"
            )
        spread = _spread(mask)
        labels = _stored(np.array(mask), spread)
    if labels.dtype != np.uint8:
        _check_range(labels, name, 255, "save the mask with numbers in 0-255")
    return labels.astype(np.uint8, copy=False)


def read_mask(mask: ImageLike, name: str = "mask", *, turn: bool = True) -> Bool[np.ndarray, "h w"]:
    """Which pixels belong to the object of a mask.

    Args:
        mask: An array of height x width: bool, floats in 0-1 (at least 0.5 for the object), or
            integers (0 and one other number). Or a Pillow image or a file, white on black: gray of
            128 or more counts as white, transparent as black; if all is black but for what
            is transparent, the opaque part is the object. The brighter one of a palette's two
            colours is the object. Palettes with more colours, 16-bit images, images with all
            levels below 128 and images with few levels that fill areas, as class numbers do, are
            treated as integers.
        name: Its name in messages, unless it is a file.
        turn: Whether to rotate a file by its EXIF data.

    Raises:
        UserError: It is none of these, is damaged, has more than one number besides 0, looks
            like a photo, or is a JPEG whose levels are all below 128.
        FileNotFoundError: There is no such file.
    """
    if isinstance(mask, str | os.PathLike | Image.Image):
        name = called(mask, name)
        with opened(mask, name) as image:
            array = _levels(image, name, turn=turn)
    else:
        array = np.asarray(mask)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or not array.size:
        raise UserError(f"{name} is {array.dtype} {array.shape}: pass height x width")
    if np.issubdtype(array.dtype, np.floating):
        _check_unit(array, name)
        return array >= 0.5
    if not (array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer)):
        raise UserError(f"{name} is {array.dtype}: pass bool, integers, or floats in 0-1")
    values = np.unique(array)
    if np.count_nonzero(values) > 1:
        shown = ", ".join(map(str, values[:6].tolist())) + (", ..." if len(values) > 6 else "")
        raise UserError(
            f"{name} contains {shown}: pass the mask of one object, such as labels == 1"
        )
    return array != 0


def numbers(name: str, value: Numbers, shape: tuple[int | None, ...]) -> Float[np.ndarray, "..."]:
    """Converts a value to finite float64 numbers of a shape.

    Args:
        name: The value's name in messages.
        value: The numbers; one extra leading axis of length 1 is dropped.
        shape: The expected shape; None stands for any length.

    Raises:
        UserError: `value` has another shape, or contains anything but finite numbers.
    """
    wanted = " x ".join("N" if side is None else str(side) for side in shape)
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be {wanted} numbers: {error}") from error
    inner = array[0] if array.ndim == len(shape) + 1 and len(array) == 1 else array
    fits = inner.ndim == len(shape) and all(
        side in (None, held) for side, held in zip(shape, inner.shape, strict=True)
    )
    if not fits:
        held = " x ".join(map(str, array.shape)) or "a single number"
        raise UserError(f"{name} is {held}: pass {wanted}")
    if not np.isfinite(inner).all():
        raise UserError(f"{name} contains NaN or infinity: pass finite numbers")
    return inner


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if image.format not in ("JPEG", "MPO"):  # their headers tell; Pillow turns a TIFF on loading
        image.load()
    width, height = image.size
    return (height, width) if _TURNS.get(orientation(image)) in _QUARTERS.values() else image.size


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """The pixels of a loaded picture as viewers show it."""
    method = _TURNS.get(orientation(image))
    return pixels if method is None else pixels.transpose(method)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """A picture's stored pixels; it is loaded afterwards."""
    if image.mode.startswith("F"):
        raise UserError(f"{name} contains fractions; {_MEND}")
    codec, mode, _ = _coded(image)
    tags = getattr(image, "tag_v2", {})
    if codec == "raw" and tags.get(_PLANAR) == 2 and max(tags.get(_BITS, (8,))) > 8:
        raise UserError(
            f"{name} stores 16-bit colours one after another, which Pillow takes for 8 bits; save "
            "it as PNG"
        )
    image.load()
    if image.mode.startswith("I"):
        levels = np.array(image)
        _check_range(levels, name, 65535, _MEND)
        _check_depth(name, levels.max().item())
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    elif ";16" in mode:  # Pillow has kept the upper 8 of each colour's 16 bits
        _check_depth(name, 256 * int(np.asarray(image.convert("RGB")).max()) + 255)
    if image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")  # a palette's transparency has several forms
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy of 100 megapixels counts


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """`np.array` of an RGB picture with a quarter of the memory, which large ones need."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _ROWS):
        rows = image.crop((0, top, width, min(top + _ROWS, height)))
        pixels[top : top + _ROWS] = np.asarray(rows)
    return pixels


def _levels(image: Image.Image, name: str, *, turn: bool) -> np.ndarray:
    """A picture of a mask as bool, or as numbers if it is not white on black."""
    spread, loss = _spread(image), _loss(image)
    image.load()
    image = _upright(image, image) if turn else image
    if image.mode.startswith(("I", "F")):
        return _stored(np.array(image), spread)
    shown = image
    if image.has_transparency_data:
        layered = image if image.mode == "RGBA" else image.convert("RGBA")
        shown, alpha = layered.convert("RGB"), layered.getchannel("A")
        shown.paste("black", mask=ImageChops.invert(alpha))
        opaque = np.array(alpha)
        if not np.array(shown.convert("L")).any() and opaque.min() < opaque.max():
            return opaque >= 128
    gray = np.array(shown.convert("L"))
    if image.mode == "P":  # where programs number the colours in any order
        colours = len(shown.convert("RGB").getcolors(2) or [])
        if colours == 2 and gray.min() < gray.max():
            return gray == gray.max()
        indices = np.array(image)
        if colours != 1 or np.ptp(indices):
            return indices
    between = gray[(gray > 31) & (gray < 224)]
    if len(between) > gray.size / 4 and len(np.unique(between)) > 64:
        raise UserError(
            f"{name} looks like a photo, because much of it is neither black nor white: pass a "
            "mask that is white on the object and black elsewhere"
        )
    if loss and 0 < gray.max() < 128:
        raise UserError(
            f"{name} is compressed with loss ({loss}), which changes its numbers 0-{gray.max()}: "
            "save the mask as PNG, or white on the object and black elsewhere"
        )
    if gray.max() < 128 or (not loss and _has_several_areas(gray)):
        return _stored(gray, spread)
    return gray >= 128


def _has_several_areas(gray: UInt8[np.ndarray, "h w"]) -> bool:
    """Whether few levels, some of them neither the darkest nor the brightest, fill 3 x 3 pixels.

    Class numbers do, such as 0, 1 and 255 where 255 is ignored; soft edges and the traces of an
    earlier JPEG do not, or have many levels.
    """
    levels = np.unique(gray)
    if not 2 < len(levels) <= 16:
        return False
    same = gray[:, 1:] == gray[:, :-1]
    rows = same[:, 1:] & same[:, :-1]
    alike = gray[1:] == gray[:-1]
    columns = (alike[1:] & alike[:-1])[:, 1:-1]
    flat = gray[1:-1, 1:-1][rows[:-2] & rows[1:-1] & rows[2:] & columns]
    return bool(np.isin(flat, levels[1:-1]).any())


def _coded(image: Image.Image) -> tuple[str, str, int]:
    """How a file's pixels lie in it, in Pillow's words: decoder, mode, the last argument.

    The mode is "" once the picture is loaded.
    """
    tiles = getattr(image, "tile", None)
    codec, _, _, given = tiles[0] if tiles else ("", (), 0, "")
    arguments = given if isinstance(given, tuple) and given else (given,)
    mode = arguments[0] if isinstance(arguments[0], str) else ""
    return codec, mode, arguments[-1] if isinstance(arguments[-1], int) else 0


def _spread(image: Image.Image) -> tuple[int, int] | None:
    """A gray file's largest number, and the level to which Pillow stretches it on loading."""
    codec, mode, last = _coded(image)
    if image.mode not in ("L", "I"):
        return None
    if found := re.fullmatch("L;([24])I?R?", mode):
        return 2 ** int(found[1]) - 1, 255
    if codec in ("ppm", "ppm_plain"):
        return last, 255 if image.mode == "L" else 65535
    return None


def _stored(levels: np.ndarray, spread: tuple[int, int] | None) -> np.ndarray:
    """The numbers in the file of levels that were stretched."""
    if not spread:
        return levels
    largest, level = spread
    return np.rint(levels.astype(np.float64) * largest / level).astype(levels.dtype)


def _loss(image: Image.Image) -> str:
    """The format or compression of a file that changes its numbers; "" if it keeps them."""
    kinds = image.format, image.info.get("compression")
    return next((kind for kind in kinds if kind in _LOSSY), "")


def _check_depth(name: str, highest: int) -> None:
    if 0 < highest < 4096:  # 12 bits or fewer: the upper 8 of 16 would be nearly black
        raise UserError(
            f"{name} has levels of at most {highest} of 65535, almost black; save it with 8 bits"
        )


def _check_unit(array: np.ndarray, name: str) -> None:
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # NaN as well
        raise UserError(
            f"{name} is {array.dtype} from {low:.6g} to {high:.6g}: pass floats in 0-1, or uint8"
        )


def _check_range(levels: np.ndarray, name: str, most: int, mend: str) -> None:
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > most:
        raise UserError(f"{name} contains the number {low if low < 0 else high}; {mend}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
