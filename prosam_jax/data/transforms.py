"""Resizing of images and masks to the model's squares, as the benchmarks' protocol has it."""

import numpy as np
from jaxtyping import Bool, Shaped, UInt, UInt8
from PIL import Image

IGNORE = 255
"""Label of pixels that belong to no class, such as the borders of objects.

Of labels with more than 8 bits it is their type's largest number.
"""


def resize_image(
    image: Image.Image | UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resizes an image to a square, RGB 0-255, without keeping its aspect ratio.

    Pillow's bilinear filter averages when it shrinks, unlike torch's `interpolate`.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: Shaped[np.ndarray, "h w"], size: int) -> Shaped[np.ndarray, "{size} {size}"]:
    """Resizes labels to a square: output i takes input floor(i * in / out), torch's "nearest"."""
    height, width = mask.shape
    steps = np.arange(size)
    # Rows first, because they are copied whole: several times faster than both axes at once.
    return mask[steps * height // size].take(steps * width // size, axis=1)


def class_mask(
    labels: UInt[np.ndarray, "h w"], class_id: int
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Pixels of the class, and pixels to ignore (see `IGNORE`), which belong to no class."""
    return labels == class_id, labels == ignored(labels.dtype)


def ignored(dtype: np.dtype) -> int:
    """The label of pixels to ignore, see `IGNORE`."""
    return np.iinfo(dtype).max
