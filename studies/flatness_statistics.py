"""Statistics of `studies.flatness`, on the host, each in all draws of `studies.bootstrap`."""

from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Integer, Real

from prosam_jax.evaluation import intervals, metrics
from studies.bootstrap import Drawn


def mean(
    values: Sequence[Float[np.ndarray, "s n *x"]], drawn: Sequence[Drawn]
) -> Float[np.ndarray, "k *x"]:
    """Mean over folds of the mean over seeds and episodes, in each draw.

    Args:
        values: For each fold, a value (or an array of them) of each seed and episode. Where runs
            are not those of the drawn seeds (a control with one seed), all count alike.
        drawn: Of each fold.
    """
    found = []
    for x, (episodes, seeds) in zip(values, drawn, strict=True):
        of_episodes = episodes / episodes.sum(1, keepdims=True)
        of_seeds = _shares(seeds, len(x))
        found.append(np.einsum("ks,kn,sn...->k...", of_seeds, of_episodes, x, optimize=True))
    return np.mean(found, axis=0)


def miou(
    counts: Sequence[Real[np.ndarray, "s n l 4"]],
    class_id: Sequence[Integer[np.ndarray, " n"]],
    drawn: Sequence[Drawn],
) -> Float[np.ndarray, "k l"]:
    """Mean over folds and seeds of mIoU in [0, 1], in each draw, for each of l predictions.

    Args:
        counts: For each fold, pixels of each seed, episode and prediction, from `confusion`.
        class_id: For each fold, classes of the episodes; one that is not drawn does not count.
        drawn: Of each fold.
    """
    found = []
    for of_fold, classes, (episodes, seeds) in zip(counts, class_id, drawn, strict=True):
        there = np.stack([episodes[:, classes == c].any(1) for c in np.unique(classes)], axis=1)
        scores = [
            [
                metrics.foreground_iou(metrics.by_class(of_seed[:, i], classes, episodes)[1]).sum(1)
                / there.sum(1)
                for i in range(of_seed.shape[1])
            ]
            for of_seed in of_fold
        ]
        found.append(np.einsum("ks,slk->kl", _shares(seeds, len(of_fold)), np.array(scores)))
    return np.mean(found, axis=0)


def _shares(seeds: Integer[np.ndarray, "k s"], there: int) -> Float[np.ndarray, "k there"]:
    """What each of the runs that are `there` counts; another number of them is not drawn again."""
    times = seeds if seeds.shape[1] == there else np.ones((len(seeds), there))
    return times / times.sum(1, keepdims=True)


def signed_ratio(
    measured: Sequence[Float[np.ndarray, "s n *x"]],
    predicted: Sequence[Float[np.ndarray, "s n *x"]],
    sign: Sequence[Float[np.ndarray, "s n"]],
    drawn: Sequence[Drawn],
) -> Float[np.ndarray, "k *x"]:
    """Mean of sign x measured over the mean of sign x predicted, in each draw.

    Gaps of both signs nearly cancel in a plain mean, whose ratio is then mostly noise. The sign of
    an estimate that shares no random numbers with the two keeps them apart without a bias.
    """

    def signed(values: Sequence[np.ndarray]) -> np.ndarray:
        several = [
            np.sign(s).reshape(*s.shape, *(1,) * (x.ndim - 2)) * x
            for x, s in zip(values, sign, strict=True)
        ]
        return mean(several, drawn)

    return signed(measured) / signed(predicted)


def relative_error(
    measured: Sequence[Float[np.ndarray, "s n *x"]],
    predicted: Sequence[Float[np.ndarray, "s n *x"]],
    drawn: Sequence[Drawn],
) -> Float[np.ndarray, "k *x"]:
    """Mean distance of the measured from the predicted, over the mean size of the predicted."""
    off = [np.abs(m - p) for m, p in zip(measured, predicted, strict=True)]
    return mean(off, drawn) / mean([np.abs(p) for p in predicted], drawn)


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Rank correlation; 0 if either has one value only, as a draw of few episodes can."""
    x, y = (scipy.stats.rankdata(of) - (len(a) + 1) / 2 for of in (a, b))
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size else 0.0


def within_runs(
    a: Sequence[Float[np.ndarray, "s n"]],
    b: Sequence[Float[np.ndarray, "s n"]],
    drawn: Sequence[Drawn],
) -> Float[np.ndarray, " k"]:
    """`spearman` over the episodes of each run, and its mean over seeds and folds, in each draw."""

    def of_run(x: np.ndarray, y: np.ndarray, times: np.ndarray) -> list[float]:
        picked = [np.repeat(np.arange(len(x)), t) for t in times]
        return [spearman(x[i], y[i]) for i in picked]

    found = []
    for x, y, (episodes, seeds) in zip(a, b, drawn, strict=True):
        runs = [of_run(x[s], y[s], episodes) for s in range(len(x))]
        found.append(np.einsum("ks,sk->k", _shares(seeds, len(x)), np.array(runs)))
    return np.mean(found, axis=0)


def across_runs(
    a: Sequence[Float[np.ndarray, "m s n"]],
    b: Sequence[Float[np.ndarray, "m s n"]],
    drawn: Sequence[Drawn],
) -> Float[np.ndarray, " k"]:
    """`spearman` over the runs (methods and seeds) on each episode, and its mean, in each draw.

    What makes an episode hard for all runs cancels, since only runs of one episode are compared.
    Seeds are not drawn again: a run that is there twice would agree with itself.
    """
    found = []
    for x, y, (episodes, _) in zip(a, b, drawn, strict=True):
        n = x.shape[-1]
        each = [spearman(x[..., i].ravel(), y[..., i].ravel()) for i in range(n)]
        found.append(episodes @ np.array(each) / episodes.sum(1))
    return np.mean(found, axis=0)


def of_means(
    a: Sequence[Float[np.ndarray, "m s n"]],
    b: Sequence[Float[np.ndarray, "m s n"]],
    drawn: Sequence[Drawn],
) -> Float[np.ndarray, " k"]:
    """`spearman` over the runs of a fold of their means over episodes; mean over folds, by draw."""
    found = []
    for x, y, (episodes, _) in zip(a, b, drawn, strict=True):
        means = [np.einsum("kn,msn->kms", episodes, of).reshape(len(episodes), -1) for of in (x, y)]
        found.append([spearman(p, q) for p, q in zip(*means, strict=True)])
    return np.mean(found, axis=0)


def stated(draws: Float[np.ndarray, " k"], digits: int = 4) -> list[float]:
    """The sample's value and the interval's bounds, with so many significant digits."""
    low, high = intervals.interval(draws[1:])
    return [float(f"{x:.{digits}g}") for x in (draws[0], low, high)]


def each(draws: Float[np.ndarray, "k *x"]) -> list:
    """`stated` of every column, nested as they are."""
    if draws.ndim == 1:
        return stated(draws)
    return [each(draws[:, i]) for i in range(draws.shape[1])]


def split_mean(
    values: Sequence[Float[np.ndarray, "s n *x"]],
    chosen: Sequence[Bool[np.ndarray, "s n"]],
    drawn: Sequence[Drawn],
) -> Float[np.ndarray, "k *x"]:
    """Mean over the chosen runs and episodes of all folds, in each draw."""
    total, count = 0.0, 0.0
    for x, use, (episodes, seeds) in zip(values, chosen, drawn, strict=True):
        of_seeds = _shares(seeds, len(x))
        total = total + np.einsum("ks,kn,sn,sn...->k...", of_seeds, episodes, use, x, optimize=True)
        count = count + np.einsum("ks,kn,sn->k", of_seeds, episodes, use)
    count = np.maximum(count, 1)
    return total / np.reshape(count, (-1, *(1,) * (np.ndim(total) - 1)))


def median(
    values: Sequence[Float[np.ndarray, "s n"]], drawn: Sequence[Drawn]
) -> Float[np.ndarray, " k"]:
    """Median of all runs and episodes, of which every fold has the same weight, in each draw."""
    weights = []
    for x, (episodes, seeds) in zip(values, drawn, strict=True):
        of_fold = np.einsum("ks,kn->ksn", _shares(seeds, len(x)), episodes)
        weights.append(of_fold.reshape(len(of_fold), -1) / episodes.sum(1, keepdims=True))
    pooled, weight = np.concatenate([x.ravel() for x in values]), np.concatenate(weights, axis=1)
    order = np.argsort(pooled)
    reached = np.cumsum(weight[:, order], axis=1) >= len(values) / 2 - 1e-9
    return pooled[order][reached.argmax(1)]
