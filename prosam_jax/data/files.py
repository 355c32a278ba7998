"""Pictures and masks of any make, as RGB and as class numbers; every fault in one line."""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from prosam_jax.data.transforms import decode
from prosam_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
"""File names that are taken for pictures, in small or capital letters."""

_WHOLE_NUMBERS = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # of more than 8 bits


class BadFile(UserError):
    """One line that names the file and says what is wrong with it."""


def read_image(path: pathlib.Path, size: tuple[int, int], square: int = 0) -> Image.Image:
    """A picture, RGB, turned so that it lies as its mask does.

    A camera's note to turn the picture is heeded, as viewers and annotation tools do, unless only
    the stored pixels fit the mask. Of 16 bits the upper 8 count, transparency is ignored, and of
    several frames the first counts.

    Args:
        path: The file.
        size: (width, height) of the mask.
        square: Side of the square that the picture is for, to decode JPEGs fast, or 0.

    Raises:
        BadFile: The file cannot be read, or is of another size.
    """
    with opened(path) as stored:
        if square and stored.format in ("JPEG", "MPO"):
            return _read_fast(path, stored, size, square)
        turned = ImageOps.exif_transpose(stored)
        image = stored if turned.size != size == stored.size else turned
        if image.size != size:
            raise _misfit(path, image.size, size)
        if image.mode in _WHOLE_NUMBERS:
            return _from_16_bits(path, image)
        if image.mode == "F":
            raise BadFile(f"{path} holds fractions; save it with 8 or 16 bits")
        if image.has_transparency_data:
            image = image.convert("RGBA")  # a palette's transparency has several forms
        return image.convert("RGB")


def read_mask(path: pathlib.Path) -> UInt8[np.ndarray, "h w"]:
    """The numbers in a mask of one channel.

    Raises:
        BadFile: The file cannot be read, has several channels, or numbers beyond 0-255.
    """
    with opened(path) as mask:
        if mask.mode not in ("1", "L", "P", *_WHOLE_NUMBERS):
            raise BadFile(
                f"{path} is of mode {mask.mode}; a mask has one channel of class numbers, with or "
                "without a palette"
            )
        numbers = np.array(mask)
    return _checked(path, numbers, 255, "a mask holds 0-255").astype(np.uint8)


def upright_size(path: pathlib.Path) -> tuple[int, int]:
    """(width, height) of a picture as a viewer shows it; BadFile if it cannot be read."""
    with opened(path) as image:
        return ImageOps.exif_transpose(image).size


def stored_size(path: pathlib.Path) -> tuple[int, int]:
    """(width, height) of the stored pixels, from the file's head; BadFile if it has none."""
    with opened(path) as image:
        return image.size


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """Opens a picture; whatever goes wrong while it is used becomes a BadFile."""
    try:
        with Image.open(path) as image:
            yield image
    except BadFile:
        raise
    except FileNotFoundError:
        raise BadFile(f"{path} is missing") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise BadFile(f"{path} has more than {most} million pixels; make it smaller") from None
    except Exception as error:  # Pillow raises all kinds on broken files
        line = " ".join(str(error).split()).replace(f" '{path}'", "") or type(error).__name__
        raise BadFile(f"cannot read {path}: {line}; copy the file again") from error


def _read_fast(
    path: pathlib.Path, stored: Image.Image, size: tuple[int, int], square: int
) -> Image.Image:
    lies = stored.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)  # by a quarter turn
    width, height = stored.size
    upright = (height, width) if lies else (width, height)
    if size not in (upright, stored.size):
        raise _misfit(path, upright, size)
    image = decode(stored, square)
    return ImageOps.exif_transpose(image) if size == upright else image


def _misfit(path: pathlib.Path, found: tuple[int, int], size: tuple[int, int]) -> BadFile:
    return BadFile(
        f"{path} has {_by(found)} pixels and its mask {_by(size)}; both must have one size"
    )


def _from_16_bits(path: pathlib.Path, image: Image.Image) -> Image.Image:
    numbers = _checked(path, np.asarray(image), 65535, "save it with 8 or 16 bits")
    return Image.fromarray((numbers >> 8).astype(np.uint8)).convert("RGB")


def _checked(path: pathlib.Path, numbers: np.ndarray, most: int, advice: str) -> np.ndarray:
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high > most:
        raise BadFile(f"{path} holds the number {low if low < 0 else high}; {advice}")
    return numbers


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
