"""Segmentation metrics as sums: areas per episode, added up per class, divided once at the end."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer, Real

from prosam_jax.errors import UserError


class Areas(NamedTuple):
    """Pixels of each episode, background first, then foreground."""

    intersection: Real[Any, "b 2"]
    union: Real[Any, "b 2"]


def areas(
    prediction: Bool[Array, "b h w"], target: Bool[Array, "b h w"], ignore: Bool[Array, "b h w"]
) -> Areas:
    """Intersection and union of background and of foreground; ignored pixels leave both."""

    def count(a, b):
        return jnp.stack([(~a & ~b & ~ignore).sum((1, 2)), (a & b & ~ignore).sum((1, 2))], axis=1)

    intersection = count(prediction, target)
    union = count(prediction, prediction) + count(target, target) - intersection
    return Areas(intersection, union)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Intersection over union, each in [0, 1].

    Attributes:
        miou: Mean over classes of the foreground's IoU.
        fb_iou: Mean of background's and foreground's IoU, both summed over the classes.
        per_class: The foreground's IoU of each class.
    """

    miou: float
    fb_iou: float
    per_class: dict[int, float]


class IoU:
    """Sums of areas per class. A class that was never added does not count.

    The reference implementation counts such a class as 0; its fixed lists draw every class.
    """

    def __init__(self) -> None:
        self._areas: dict[int, np.ndarray] = {}

    def add(self, episodes: Areas, class_id: Integer[np.ndarray, " b"]) -> None:
        """Adds the areas of some episodes to those of their classes."""
        for inter, union, c in zip(*map(np.asarray, episodes), class_id.tolist(), strict=True):
            self._areas[c] = self._areas.get(c, 0) + np.stack([inter, union])

    def scores(self) -> Scores:
        """The metrics of everything added so far.

        Raises:
            UserError: Nothing was added.
        """
        if not self._areas:
            raise UserError("no episode was added, so there is nothing to score")
        per_class = {c: float(_divide(a)[1]) for c, a in sorted(self._areas.items())}
        return Scores(
            miou=float(np.mean(list(per_class.values()))),
            fb_iou=float(_divide(np.sum(list(self._areas.values()), axis=0)).mean()),
            per_class=per_class,
        )


def _divide(summed: np.ndarray) -> np.ndarray:
    intersection, union = summed
    return intersection / np.maximum(union, 1)
