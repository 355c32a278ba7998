"""From files' pixels to the model's squares, by the pixel rules of the reference protocol."""

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

IGNORE = 255
"""Label of pixels that belong to no class, such as the rims of objects."""


def resize_image(
    image: Image.Image | UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Brings an image to a square, RGB 0-255, its aspect ratio not kept.

    Pillow's bilinear filter averages where it shrinks, so it is not torch's `interpolate`.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: Shaped[np.ndarray, "h w"], size: int) -> Shaped[np.ndarray, "{size} {size}"]:
    """Brings labels to a square: output i takes input floor(i * in / out), torch's "nearest"."""
    height, width = mask.shape
    steps = np.arange(size)
    # Rows first, which are copied whole: several times faster than both axes at once.
    return mask[steps * height // size].take(steps * width // size, axis=1)


def class_mask(
    labels: UInt8[np.ndarray, "h w"], class_id: int
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Pixels of the class, and pixels to ignore (label 255), which are never the class's."""
    return labels == class_id, labels == IGNORE
