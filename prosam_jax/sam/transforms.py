"""SAM's geometry, in NumPy: from an image's pixels to the encoder's input and back."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from prosam_jax import resize
from prosam_jax.config import SAMConfig
from prosam_jax.errors import UserError
from prosam_jax.images import Numbers, numbers

LEAST_POINTS = 8


class Prompt(NamedTuple):
    """Checked prompts of one image, in pixels of the encoder's input.

    Attributes:
        points: x and y of the clicks, and of the padding point that SAM appends.
        labels: 1 for foreground, 0 for background, -1 for that padding point.
        box: x0, y0, x1, y1, if given.
        mask: Mask logits, if given.
    """

    points: Float[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"]
    box: Float[np.ndarray, "4"] | None
    mask: Float[np.ndarray, "h w"] | None


class Prompts(NamedTuple):
    """Prompts of a batch in fixed shapes: data, not shape, says which of them are given.

    Attributes:
        points: Padded with zeros.
        labels: Padded with -1.
        boxes: Zeros where there is none.
        token_mask: Which of the points and of the box's two corners are given; the rest is padding.
        masks: Zeros where there is none.
        has_mask: Whether there is one.
    """

    points: Float[Any, "b n 2"]
    labels: Int[Any, "b n"]
    boxes: Float[Any, "b 4"]
    token_mask: Bool[Any, "b m"]
    masks: Float[Any, "b h w 1"]
    has_mask: Bool[Any, " b"]


@dataclasses.dataclass(frozen=True, eq=False)
class ResizeLongestSide:
    """Placement of an image in the encoder's input: scaled to fit, at the top left.

    Attributes:
        size: (height, width) of the image.
        inner: (height, width) that it is scaled to.
        rows: Matrix that resizes the rows of a low-resolution mask to those of the image.
        cols: The same for columns.
    """

    size: tuple[int, int]
    inner: tuple[int, int]
    rows: Float[np.ndarray, "H h"]
    cols: Float[np.ndarray, "W w"]

    @classmethod
    def fit(cls, size: tuple[int, int], cfg: SAMConfig) -> "ResizeLongestSide":
        """The placement of an image of `size`, scaled until one of its sides fills the input."""
        scale = min(whole / side for whole, side in zip(cfg.image_size, size, strict=True))
        height, width = (max(1, int(side * scale + 0.5)) for side in size)

        def weights(axis: int, inner: int) -> Float[np.ndarray, "o i"]:
            # Resize to the encoder's input, crop to the image, resize to its size: all linear.
            low, whole = 4 * cfg.embedding_size[axis], cfg.image_size[axis]
            up = resize.bilinear_weights(low, whole, align_corners=False)[:inner]
            return resize.bilinear_weights(inner, size[axis], align_corners=False) @ up

        return cls(size, (height, width), weights(0, height), weights(1, width))

    def scaled(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The image resized for the encoder, by Pillow's bilinear filter as in SAM."""
        height, width = self.inner
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized)

    def prompt(
        self,
        points: Numbers | None,
        labels: Numbers | None,
        box: Numbers | None,
        mask: Numbers | None,
    ) -> Prompt:
        """Checks prompts in pixels of the image and converts them to those of the encoder's input.

        As in SAM, points without a box are followed by one padding point, which is attended to.

        Raises:
            UserError: A shape, a value or a label is wrong, or points lack labels or vice versa.
        """
        if (points is None) != (labels is None):
            given, missing = ("labels", "coords") if points is None else ("coords", "labels")
            raise UserError(f"point_{given} without point_{missing}: pass both or neither")
        xy, marks = np.zeros((0, 2)), np.zeros(0)
        if points is not None and labels is not None:
            xy = numbers("point_coords", points, (None, 2))
            marks = numbers("point_labels", labels, (len(xy),))
            if not np.isin(marks, (0, 1)).all():
                raise UserError(
                    f"point_labels={marks.tolist()}: pass 1 for foreground, 0 for background"
                )
            if box is None:
                xy, marks = np.pad(xy, ((0, 1), (0, 0))), np.pad(marks, (0, 1), constant_values=-1)
        if box is not None:
            corners = numbers("box", box, (4,)).reshape(2, 2)
            if (corners[1] < corners[0]).any():
                raise UserError(
                    f"box={corners.ravel().tolist()} ends before it begins: pass x0, y0, x1, y1"
                )
            box = self.apply_coords(corners).ravel()
        if mask is not None:
            shape = self.rows.shape[1], self.cols.shape[1]
            mask = numbers("mask_input", mask, shape).astype(np.float32)
        return Prompt(self.apply_coords(xy), marks.astype(np.int32), box, mask)

    def apply_coords(self, xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Points in pixels of the image as float32 in those of the encoder's input."""
        factors = [inner / side for inner, side in zip(self.inner, self.size, strict=True)]
        return (xy * np.array([factors[::-1]])).astype(np.float32)

    def masks(self, logits: Float[np.ndarray, "m h w"]) -> Float[np.ndarray, "m H W"]:
        """Logits at the size of the image, as SAM's `postprocess_masks`.

        On the host, because a device would compile it again for every image size.
        """
        return self.rows @ logits @ self.cols.T


def stack(prompts: Sequence[Prompt], mask_size: tuple[int, int]) -> Prompts:
    """Pads prompts to a batch whose shape depends only on the padded number of points.

    That number is 8, 16, 32 and so on, so that functions of it compile only a few times.
    """
    batch, most = len(prompts), max(len(x.points) for x in prompts)
    padded = max(LEAST_POINTS, 1 << (most - 1).bit_length())
    points = np.zeros((batch, padded, 2), np.float32)
    labels = np.full((batch, padded), -1, np.int32)
    boxes = np.zeros((batch, 4), np.float32)
    token_mask = np.zeros((batch, padded + 2), np.bool_)
    masks = np.zeros((batch, *mask_size, 1), np.float32)
    has_mask = np.array([x.mask is not None for x in prompts])
    for i, prompt in enumerate(prompts):
        n = len(prompt.points)
        points[i, :n], labels[i, :n], token_mask[i, :n] = prompt.points, prompt.labels, True
        if prompt.box is not None:
            boxes[i], token_mask[i, padded:] = prompt.box, True
        if prompt.mask is not None:
            masks[i, ..., 0] = prompt.mask
    return Prompts(points, labels, boxes, token_mask, masks, has_mask)
