"""Draws examples of an evaluation."""

import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from prosam_jax.atomic import replacing
from prosam_jax.errors import printable
from prosam_jax.evaluation.results import Example, iou_of

MARK = (1.0, 0.75, 0.0)
"""Colour of annotations in pictures."""


def draw_examples(path: pathlib.Path, examples: Sequence[Example]) -> None:
    """Draws a row per episode: reference with annotation, target, prediction, truth."""
    import matplotlib.figure  # here, because it would add a second to every command's start

    figure = matplotlib.figure.Figure(figsize=(2.5 * 4, 2.6 * len(examples)), layout="constrained")
    axes = figure.subplots(len(examples), 4, squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        episode, prediction = example.episode, example.prediction
        target = episode.target_image
        panels = (
            overlay(episode.reference_image[0], episode.reference_mask[0], MARK),
            target,
            overlay(target, prediction, (0.1, 0.5, 1.0)),
            overlay(target, episode.target_mask, (0.1, 0.8, 0.3)),
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
        y, x = np.nonzero(_lone(episode.reference_mask[0]))
        row[0].scatter(x, y, s=14, color=MARK, edgecolors="black", linewidths=0.6)
    with (
        matplotlib.rc_context({"savefig.dpi": 110}),
        warnings.catch_warnings(),
        replacing(path) as part,
    ):
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font has not
        figure.savefig(part, format="png")


def _lone(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Annotated pixels without an annotated neighbour, too small to be seen in a picture."""
    padded = np.pad(mask, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask & ~beside


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    """The image, dimmed outside the mask and tinted inside it."""
    image = image.astype(np.float32) / 255
    tinted = 0.35 * image + 0.65 * np.asarray(colour, np.float32).reshape(1, 1, 3)
    return np.where(mask[..., None], tinted, 0.5 * image)
