"""Segmentation metrics from areas that are summed per class and divided once at the end."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer, Real

from prosam_jax.errors import UserError


class Areas(NamedTuple):
    """Numbers of pixels of each episode: background first, then foreground."""

    intersection: Real[Any, "b 2"]
    union: Real[Any, "b 2"]


def areas(
    prediction: Bool[Array, "b h w"], target: Bool[Array, "b h w"], ignore: Bool[Array, "b h w"]
) -> Areas:
    """Intersection and union of background and of foreground, without ignored pixels."""

    def count(a, b):
        return jnp.stack([(~a & ~b & ~ignore).sum((1, 2)), (a & b & ~ignore).sum((1, 2))], axis=1)

    intersection = count(prediction, target)
    union = count(prediction, prediction) + count(target, target) - intersection
    return Areas(intersection, union)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Intersection over union, each in [0, 1].

    Attributes:
        miou: Mean over classes of the foreground IoU.
        fb_iou: Mean of the background and the foreground IoU, whose areas are summed over classes.
        per_class: Foreground IoU of each class.
    """

    miou: float
    fb_iou: float
    per_class: dict[int, float]


class IoU:
    """Sums of areas per class; classes without an episode do not count.

    VRP-SAM's code counts such a class as 0, but its fixed lists include every class.
    """

    def __init__(self) -> None:
        self._areas: dict[int, np.ndarray] = {}

    def add(self, episodes: Areas, class_id: Integer[np.ndarray, " b"]) -> None:
        """Adds the areas of episodes to the sums of their classes."""
        for inter, union, c in zip(*map(np.asarray, episodes), class_id.tolist(), strict=True):
            self._areas[c] = self._areas.get(c, 0) + np.stack([inter, union])

    def scores(self) -> Scores:
        """The metrics of all episodes added so far.

        Raises:
            UserError: No episode was added.
        """
        if not self._areas:
            raise UserError("there is no episode to score: set eval.episodes to 1 or more")
        per_class = {c: float(_divide(a)[1]) for c, a in sorted(self._areas.items())}
        return Scores(
            miou=float(np.mean(list(per_class.values()))),
            fb_iou=float(_divide(np.sum(list(self._areas.values()), axis=0)).mean()),
            per_class=per_class,
        )


def _divide(summed: np.ndarray) -> np.ndarray:
    intersection, union = summed
    return intersection / np.maximum(union, 1)
