"""Draws examples of an evaluation."""

import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from prosam_jax.atomic import replacing
from prosam_jax.errors import printable
from prosam_jax.evaluation.results import Example, iou_of

Picture = Float[np.ndarray, "h w 3"]
"""With values in [0, 1]."""

MARK, PREDICTED, TRUTH = (1.0, 0.75, 0.0), (0.1, 0.5, 1.0), (0.1, 0.8, 0.3)
"""Colours of annotations, predictions and true masks in pictures."""


def draw_examples(path: pathlib.Path, examples: Sequence[Example]) -> None:
    """Draws a row per episode: reference with annotation, target, prediction, truth."""
    import matplotlib.figure  # here, because it would add a second to every command's start

    figure = matplotlib.figure.Figure(figsize=(2.5 * 4, 2.6 * len(examples)), layout="constrained")
    axes = figure.subplots(len(examples), 4, squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        episode, prediction = example.episode, example.prediction
        target = episode.target_image
        panels = (
            annotated(episode.reference_image[0], episode.reference_mask[0]),
            target,
            overlay(target, prediction, PREDICTED),
            overlay(target, episode.target_mask, TRUTH),
        )
        iou = f"IoU {100 * iou_of(episode, prediction):.0f} %"
        names = (
            f"reference: {printable(example.class_name)}",
            "target",
            f"prediction, {iou}",
            "truth",
        )
        for axis, panel, name in zip(row, panels, names, strict=True):
            axis.imshow(panel)
            axis.set_title(name, fontsize=9, parse_math=False)  # a "$" is no formula
            axis.set_axis_off()
    with (
        matplotlib.rc_context({"savefig.dpi": 110}),
        warnings.catch_warnings(),
        replacing(path) as part,
    ):
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font has not
        figure.savefig(part, format="png")


def annotated(image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> Picture:
    """The image with its annotation; marks of a single pixel each are enlarged to be seen."""
    padded = np.pad(mask, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    lone, shown, reach = mask & ~beside, mask.copy(), max(1, len(mask) // 64)
    if 2 * lone.sum() > mask.sum():  # points, not the ragged edge of an object
        for y, x in zip(*np.nonzero(lone), strict=True):
            shown[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
    return overlay(image, shown, MARK)


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    colour: tuple[float, float, float],
) -> Picture:
    """The image, dimmed outside the mask and tinted inside it."""
    image = image.astype(np.float32) / 255
    tinted = 0.35 * image + 0.65 * np.asarray(colour, np.float32).reshape(1, 1, 3)
    return np.where(mask[..., None], tinted, 0.5 * image)
