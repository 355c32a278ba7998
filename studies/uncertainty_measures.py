"""Measures of the study of uncertainty, each with its bootstrap over pictures and seeds."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from prosam_jax import calibration
from prosam_jax.calibration import Reliability
from prosam_jax.evaluation import intervals
from studies import bootstrap
from studies.uncertainty_runs import CERTAINTY, ENTROPY, LEVELS, MASK_BINS, Found

DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Drawn:
    """How often a bootstrap draws the episodes and the seeds of a fold; row 0 is the result itself.

    Those of `bootstrap.draw`, with the seeds' counts as shares, the same for all methods and
    scores.
    """

    episodes: Float[np.ndarray, "d n"]
    seeds: Float[np.ndarray, "d s"]

    @classmethod
    def of(cls, target: np.ndarray, seeds: int, fold: int) -> "Drawn":
        """The draws for a list of episodes with these target pictures."""
        times = bootstrap.draw(target, seeds, DRAWS, np.random.default_rng(fold))
        return cls(times.episodes.astype(float), times.seeds / seeds)

    def only(self) -> "Drawn":
        """The same pictures, and one model, such as an ensemble, in place of the seeds."""
        return Drawn(self.episodes, np.ones((DRAWS + 1, 1)))


Folds = list[tuple[Drawn, list[Found]]]
"""For each fold its draws and the models of its seeds."""


def averaged(folds: Folds, value: Callable[[Found, np.ndarray], np.ndarray]) -> np.ndarray:
    """Mean over folds and seeds of a value of (a model, draws of its episodes), for each draw."""
    of_folds = [
        np.sum([drawn.seeds[:, i] * value(x, drawn.episodes) for i, x in enumerate(models)], axis=0)
        for drawn, models in folds
    ]
    return np.mean(of_folds, axis=0)


def mean_iou(one: Found, times: np.ndarray) -> np.ndarray:
    """Mean IoU over episodes."""
    return times @ one.iou / times.sum(1)


def pixel_area(name: str, one: Found, times: np.ndarray) -> np.ndarray:
    """Excess AURC of a score of pixels: 0 is the oracle's, 1 that of chance."""
    count, wrong = (times @ one.levels[name][:, i].astype(float) for i in (0, 1))
    rate = np.divide(wrong, count, out=np.zeros_like(wrong), where=count > 0)
    area = calibration.aurc(-np.arange(float(LEVELS)), rate, count)
    e = wrong.sum(1) / count.sum(1)
    oracle = e + (1 - e) * np.log1p(-e)
    return (area - oracle) / (e - oracle)


def mask_area(name: str, one: Found, times: np.ndarray) -> np.ndarray:
    """The same for a score of masks, whose loss is 1 - IoU."""
    loss = 1 - one.iou
    excess = calibration.excess_aurc(one.masks[name].astype(float), loss, times)
    return excess / (times @ loss / times.sum(1) - calibration.aurc(-loss, loss, times))


def pixel_reliability(name: str, one: Found, times: np.ndarray) -> Reliability:
    """Reliability of pixels in each draw."""
    return Reliability(*(times @ one.reliability[name][:, i] for i in range(3)))


def mask_reliability(name: str, folds: Folds) -> Reliability:
    """Reliability of masks in each draw, over all folds and seeds, since each has few masks."""
    total = Reliability(*np.zeros((3, DRAWS + 1, MASK_BINS)))
    for drawn, models in folds:
        for i, one in enumerate(models):
            of_episodes = np.array(
                [
                    calibration.reliability(a[None], b[None], MASK_BINS)
                    for a, b in zip(
                        np.clip(one.masks[name], 0, 1).astype(float), one.iou, strict=True
                    )
                ]
            )
            weight = drawn.seeds[:, i, None] * drawn.episodes
            total = Reliability(*(x + weight @ of_episodes[:, j] for j, x in enumerate(total)))
    return total


def shown(values: np.ndarray) -> list[float]:
    """The result and the bounds of its interval."""
    low, high = intervals.interval(values[1:])
    return [round(float(x), 5) for x in (values[0], low, high)]


def measured(folds: Folds, pixels: list[str], masks: list[str]) -> dict[str, Any]:
    """All numbers of one method."""
    found: dict[str, Any] = {
        "mean IoU": shown(averaged(folds, mean_iou)),
        "wrong pixels": shown(
            averaged(folds, lambda x, times: times @ x.wrong.mean((1, 2)) / times.sum(1))
        ),
    }
    for kind, names, area, simplest in (
        ("pixels", pixels, pixel_area, ENTROPY),
        ("masks", masks, mask_area, CERTAINTY),
    ):
        areas = {name: averaged(folds, functools.partial(area, name)) for name in names}
        found[kind] = {
            name: {"excess AURC": shown(x)}
            | ({"difference": shown(x - areas[simplest])} if simplest in areas else {})
            for name, x in areas.items()
        }
    found["calibration of pixels"] = {
        name: {
            "ECE": shown(averaged(folds, lambda x, t, n=name: pixel_reliability(n, x, t).error)),
            "bias": shown(averaged(folds, lambda x, t, n=name: pixel_reliability(n, x, t).bias)),
            "log loss": shown(averaged(folds, lambda x, t, n=name: t @ x.log_loss[n] / t.sum(1))),
        }
        for name in folds[0][1][0].reliability
    }
    found["calibration of masks"] = {}
    for name in masks:
        if name == CERTAINTY:
            continue
        pooled = mask_reliability(name, folds)
        found["calibration of masks"][name] = {
            "ECE": shown(pooled.error),
            "bias": shown(pooled.bias),
            "mean absolute error": shown(
                averaged(folds, lambda x, t, n=name: t @ np.abs(x.masks[n] - x.iou) / t.sum(1))
            ),
        }
    found["temperature"] = {
        name: [[round(x.temperature[name], 3) for x in models] for _, models in folds]
        for name in folds[0][1][0].temperature
    }
    return found
