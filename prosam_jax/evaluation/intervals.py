"""Confidence intervals over tested pictures, by the bootstrap.

The target pictures of a list are drawn again with repetition, each with all its episodes, `DRAWS`
times, and scored each time (Efron 1979; percentiles; whole pictures, because episodes with the same
target are not independent). An interval shows how far a score depends on which pictures were
tested, not on the seed of the training. Draws depend on the list alone, so scores of two methods on
one list are drawn together and their difference has an interval of its own.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float, Integer, Shaped

from prosam_jax.evaluation import metrics

DRAWS = 2000
LEVEL = 0.95


class Draws(NamedTuple):
    """Scores of each draw, in [0, 1]; see `metrics.Scores`."""

    miou: Float[np.ndarray, " k"]
    fb_iou: Float[np.ndarray, " k"]
    shares: Float[np.ndarray, "k 4"]


class Interval(NamedTuple):
    """The bounds of a `LEVEL` interval."""

    low: float
    high: float


class Listed(NamedTuple):
    """A list of n episodes.

    Attributes:
        counts: Pixels of each episode, from `metrics.confusion`.
        class_id: Their classes.
        target: What tells their target pictures apart.
    """

    counts: Integer[np.ndarray, "n 4"]
    class_id: Integer[np.ndarray, " n"]
    target: Shaped[np.ndarray, " n"]


def draws(lists: Sequence[Listed], digest: str, absent: Collection[int] = ()) -> Draws:
    """Mean scores of lists of episodes, whose target pictures are each time drawn again.

    A picture's episodes are drawn together, in all lists, since lists of one fold share pictures.

    Args:
        lists: One list or several of the same fold.
        digest: Hexadecimal digest of the first list, the seed of the draws.
        absent: As for `metrics.scores`: these count as 0 in a draw without an episode of theirs;
            any other class does not count in it.
    """
    target = np.concatenate([one.target for one in lists])
    _, first, which = np.unique(target, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))  # pictures in the order of the lists
    n, rng = len(first), np.random.default_rng(int(digest, 16))
    times = rng.multinomial(n, np.full(n, 1 / n), DRAWS)[:, place[which]]
    ends = np.cumsum([len(one.target) for one in lists])
    parts = np.split(times, ends[:-1], axis=1)
    several = [_scored(one, of, absent) for one, of in zip(lists, parts, strict=True)]
    return Draws(*(np.mean(x, axis=0) for x in zip(*several, strict=True)))


def _scored(one: Listed, times: Integer[np.ndarray, "k n"], absent: Collection[int]) -> Draws:
    """The scores of a list, if episode j counts `times[i, j]` times in draw i."""
    classes, sums = metrics.by_class(one.counts, one.class_id, times)
    drawn = np.stack([times[:, one.class_id == c].any(1) | (c in absent) for c in classes], axis=1)
    count = drawn.sum(1) + len({*absent} - {*classes})
    total = sums.sum(1)
    return Draws(
        # A short list beside others can have no episode in a draw.
        miou=metrics.foreground_iou(sums).sum(1) / np.maximum(count, 1),
        fb_iou=metrics.fb_iou(sums),
        shares=total / np.maximum(total.sum(1, keepdims=True), 1),
    )


def interval(values: Float[np.ndarray, " k"]) -> Interval:
    """The interval between the percentiles that leave (1 - `LEVEL`) / 2 of the draws outside."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def over_seeds(pictures: Interval, folds: Sequence[Float[np.ndarray, " s"]]) -> Interval | None:
    """The interval of a mean over folds and seeds that also counts how far seeds are apart.

    The seeds' part is Student's interval of the mean over the folds, each with its own mean over s
    seeds and one variance among seeds for all folds; it is joined to the pictures' in squares, as
    independent errors are. Half-widths are kept on each side, since the pictures' may be skewed.

    Args:
        pictures: The interval over pictures.
        folds: The values of the seeds of each fold.

    Returns:
        None if no fold has several seeds.
    """
    freedom = sum(len(x) - 1 for x in folds)
    if not freedom:
        return None
    variance = sum(np.square(x - x.mean()).sum() for x in folds) / freedom
    error = np.sqrt(variance * sum(1 / len(x) for x in folds)) / len(folds)
    reach = scipy.special.stdtrit(freedom, (1 + LEVEL) / 2) * error
    centre = float(np.mean([x.mean() for x in folds]))
    low, high = (float(np.hypot(x - centre, reach)) for x in pictures)
    return Interval(centre - low, centre + high)
