"""Segmentation metrics from numbers of pixels that are summed per class and divided at the end."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Real

from prosam_jax.errors import UserError

COUNTS = ("tp", "fp", "fn", "tn")
"""The last axis of `confusion`: object found, background taken for object, object missed, and
background left alone."""


def confusion(
    prediction: Bool[Array, "b h w"], target: Bool[Array, "b h w"], ignore: Bool[Array, "b h w"]
) -> Integer[Array, "b 4"]:
    """Numbers of pixels of each episode in the order of `COUNTS`, without ignored pixels."""
    cells = (prediction & target, prediction & ~target, ~prediction & target)
    tp, fp, fn = ((cell & ~ignore).sum((1, 2)) for cell in cells)
    return jnp.stack([tp, fp, fn, (~ignore).sum((1, 2)) - tp - fp - fn], axis=1)


class Rates(NamedTuple):
    """Rates over the pixels of all episodes, each in [0, 1].

    Attributes:
        tpr: Object pixels that are found, of all object pixels; 0 where there are none.
        tnr: Background left alone, of all background.
        fpr: Background taken for object, of all background: 1 - `tnr`.
        fnr: Object pixels that are missed, of all object pixels: 1 - `tpr`.
    """

    tpr: float
    tnr: float
    fpr: float
    fnr: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics of a list of episodes.

    Attributes:
        miou: Mean over classes of the foreground IoU, in [0, 1], as all below.
        fb_iou: Mean of the background and the foreground IoU, whose pixels are summed over classes.
        per_class: Foreground IoU of each class that counts.
        shares: Each of `COUNTS` as a share of all pixels of all episodes; they add up to 1.
    """

    miou: float
    fb_iou: float
    per_class: dict[int, float]
    shares: tuple[float, float, float, float]

    @property
    def rates(self) -> Rates:
        """The standard rates."""
        tp, fp, fn, tn = self.shares
        seen, rest = tp + fn or 1.0, tn + fp or 1.0
        return Rates(tpr=tp / seen, tnr=tn / rest, fpr=fp / rest, fnr=fn / seen)


def scores(
    counts: Real[np.ndarray, "n 4"],
    class_id: Integer[np.ndarray, " n"],
    absent: Collection[int] = (),
) -> Scores:
    """The metrics of n episodes.

    Args:
        counts: Pixels of each episode, from `confusion`.
        class_id: Their classes.
        absent: Classes that count as 0 where they have no episode, as in VRP-SAM's code; any other
            class without an episode does not count.

    Raises:
        UserError: There is no episode.
    """
    if not len(counts):
        raise UserError("there is no episode to score: set eval.episodes to 1 or more")
    classes, sums = by_class(counts, class_id, np.ones((1, len(counts)), np.int64))
    found = dict(zip(classes, foreground_iou(sums)[0].tolist(), strict=True))
    per_class = {c: found.get(c, 0.0) for c in sorted({*classes, *absent})}
    total = sums[0].sum(0)
    tp, fp, fn, tn = (total / max(total.sum(), 1)).tolist()
    return Scores(
        miou=float(np.mean(list(per_class.values()))),
        fb_iou=float(fb_iou(sums)[0]),
        per_class=per_class,
        shares=(tp, fp, fn, tn),
    )


def mean(several: Sequence[Scores]) -> Scores:
    """The mean of scores of several lists of episodes; that of a class is over those that have it.

    Raises:
        UserError: There is no list.
    """
    if not several:
        raise UserError("there is no list of episodes to score: set eval.seeds to 1 or more")
    classes = sorted({c for x in several for c in x.per_class})
    tp, fp, fn, tn = np.mean([x.shares for x in several], axis=0).tolist()
    return Scores(
        miou=float(np.mean([x.miou for x in several])),
        fb_iou=float(np.mean([x.fb_iou for x in several])),
        per_class={
            c: float(np.mean([x.per_class[c] for x in several if c in x.per_class]))
            for c in classes
        },
        shares=(tp, fp, fn, tn),
    )


def by_class(
    counts: Real[np.ndarray, "n 4"],
    class_id: Integer[np.ndarray, " n"],
    times: Integer[np.ndarray, "k n"],
) -> tuple[list[int], Real[np.ndarray, "k c 4"]]:
    """The classes, ascending, and their pixels, if episode j counts `times[i, j]` times."""
    classes, which = np.unique(class_id, return_inverse=True)
    sums = [times[:, which == i] @ counts[which == i] for i in range(len(classes))]
    return classes.tolist(), np.stack(sums, axis=1)


def foreground_iou(counts: Real[np.ndarray, "*k 4"]) -> Float[np.ndarray, "*k"]:
    """Intersection over union of the object; 0 where neither mask has a pixel of it."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return tp / np.maximum(tp + fp + fn, 1)


def fb_iou(sums: Real[np.ndarray, "k c 4"]) -> Float[np.ndarray, " k"]:
    """`Scores.fb_iou` from the pixels of each class."""
    total = sums.sum(1)
    background = total[..., ::-1]  # where it is the object, `COUNTS` are in the reverse order
    return (foreground_iou(total) + foreground_iou(background)) / 2
