"""Whether probabilities and scores of masks mean what they say.

A score can be good in two ways. It is calibrated if it is right on average: of the pixels with
probability 0.8, 80 % are foreground. It ranks well if what it trusts least is what is wrong. The
two are independent: a temperature calibrates and leaves the ranking of pixels as it is.

`expected_iou` runs in the model, everything else on the host, where leading axes of weights are
draws of a bootstrap. What these measures say of trained models is in docs/uncertainty.md.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Array, Bool, Float, Shaped

from prosam_jax.equations import foreground


def entropy(logits: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Entropy of labels with these logits, in bits: 0 where sure, 1 at probability 1/2.

    It is (ln(1 + e) + z e / (1 + e)) / ln 2 with z = |logit| and e = exp(-z), which neither
    overflows nor rounds 1 - p to 0.
    """
    z = np.abs(logits)
    e = np.exp(-z)
    nats = np.log1p(e) + z * e / (1 + e)
    return np.minimum(nats / np.log(2).astype(logits.dtype), 1)  # which rounding can exceed


def expected_iou(logits: Float[Array, "*b h w"]) -> Float[Array, "*b"]:
    """The IoU that the pixels' probabilities promise each mask, in [0, 1].

    If pixels of the true mask M are independent with probabilities p, the mask P of `foreground`
    has E|M n P| / E|M u P| = sum_P p / (|P| + sum_{not P} p). This ratio of expectations is close
    to the expected ratio for masks of many pixels (Nowozin, CVPR 2014, compares the two). It is 0
    for an empty mask, as its true IoU is with any object.
    """
    p, mask = jax.nn.sigmoid(logits), foreground(logits)
    both = jnp.where(mask, p, 0).sum((-2, -1))
    either = jnp.where(mask, 1, p).sum((-2, -1))
    return both / jnp.maximum(either, 1e-30)


def fit_temperature(logits: Float[np.ndarray, "*n"], labels: Bool[np.ndarray, "*n"]) -> float:
    """The temperature T that makes sigmoid(logits / T) the most likely for the labels.

    Temperature scaling (Guo et al., ICML 2017, arXiv 1706.04599), for two classes. The negative
    log-likelihood is convex in 1 / T; its derivative, the mean of
    z (sigmoid(z / T) - y), rises with 1 / T, and its root is found by bisection and interpolation.
    T > 1 means that the logits were too sure.

    Raises:
        ValueError: No T in [1e-3, 1e3] is the most likely: the signs of the logits are all right,
            or they say nothing about the labels.
    """
    z = np.asarray(logits, np.float64).ravel()
    y = np.asarray(labels).ravel()

    def slope(log_inverse: float) -> float:
        return float(np.mean(z * (scipy.special.expit(z * np.exp(log_inverse)) - y)))

    ends = -np.log(1e3), np.log(1e3)
    if not slope(ends[0]) < 0 < slope(ends[1]):
        raise ValueError("no temperature between 0.001 and 1000 fits these labels best")
    root: Any = scipy.optimize.brentq(slope, *ends, xtol=1e-6)
    return float(np.exp(-root))


def log_loss(
    logits: Float[np.ndarray, "*n"], labels: Bool[np.ndarray, "*n"], temperature: float = 1.0
) -> float:
    """Mean negative log-likelihood, in nats, of labels with the probabilities sigmoid(z / T)."""
    z = np.asarray(logits, np.float64) / temperature
    return float(np.logaddexp(0, np.where(labels, -z, z)).mean())


class Reliability(NamedTuple):
    """Sums over the items in each bin of what was predicted; groups of items can be added.

    Attributes:
        weight: Total weight.
        predicted: Weighted sum of the predicted values.
        observed: Weighted sum of what came true.
    """

    weight: Float[np.ndarray, "*d bins"]
    predicted: Float[np.ndarray, "*d bins"]
    observed: Float[np.ndarray, "*d bins"]

    @property
    def error(self) -> Float[np.ndarray, "*d"]:
        """Expected calibration error: the mean over items of their bin's |predicted - observed|.

        Bins are weighted by their items (Naeini et al., AAAI 2015; Guo et al. 2017, Eq. 3). With
        few items in a bin, chance alone makes it positive.
        """
        return np.abs(self.predicted - self.observed).sum(-1) / self.weight.sum(-1)

    @property
    def bias(self) -> Float[np.ndarray, "*d"]:
        """Mean predicted less mean observed value: above 0 if too sure."""
        return (self.predicted - self.observed).sum(-1) / self.weight.sum(-1)


def reliability(
    predicted: Float[np.ndarray, " n"], observed: Shaped[np.ndarray, " n"], bins: int = 15
) -> Reliability:
    """What came true for each predicted value, in equal bins of [0, 1].

    Args:
        predicted: Values in [0, 1]: the probability that a pixel's label is right, or the IoU that
            a mask is said to have.
        observed: What they predict: whether it is right (bool), or the mask's IoU.
        bins: Number of bins. A value on a border belongs to the upper bin, 1 to the last.
    """
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    one = [np.bincount(which, x, bins) for x in (np.ones(len(which)), predicted, observed)]
    return Reliability(*one)


def expected_calibration_error(
    predicted: Float[np.ndarray, " n"], observed: Shaped[np.ndarray, " n"], bins: int = 15
) -> float:
    """`Reliability.error` of these values."""
    return float(reliability(predicted, observed, bins).error)


class RiskCoverage(NamedTuple):
    """The risk of the items that are kept, for each share that is.

    Attributes:
        coverage: Share of the weight that is kept, rising to 1; one point for each distinct score.
        risk: Mean loss of those items; nan where draws of a bootstrap keep nothing.
    """

    coverage: Float[np.ndarray, "*d k"]
    risk: Float[np.ndarray, "*d k"]


def risk_coverage(
    score: Float[np.ndarray, " n"],
    loss: Shaped[np.ndarray, "*#d n"],
    weight: Float[np.ndarray, "*#d n"] | None = None,
) -> RiskCoverage:
    """Keeps the items with the highest scores first (El-Yaniv and Wiener, JMLR 2010).

    Args:
        score: How far to trust each item; only the order counts.
        loss: At least 0: 1 for a wrong pixel, 1 - IoU for a mask.
        weight: Weight of each item, for example how often a bootstrap drew it; None for equal ones.
    """
    mass, lost = _by_score(score, loss, weight)
    kept = mass.cumsum(-1)
    with np.errstate(invalid="ignore"):
        return RiskCoverage(kept / kept[..., -1:], lost.cumsum(-1) / kept)


def aurc(
    score: Float[np.ndarray, " n"],
    loss: Shaped[np.ndarray, "*#d n"],
    weight: Float[np.ndarray, "*#d n"] | None = None,
) -> Float[np.ndarray, "*d"]:
    """Area under the risk-coverage curve, low if the order is good (Geifman et al., ICLR 2019).

    See arXiv 1805.08206. The area is that of the continuous curve, on which part of an item can be
    kept, and items of one score are kept in random order. So a constant score has exactly the mean
    loss, and a binary loss with mean e has at best e + (1 - e) ln(1 - e). Arguments as of
    `risk_coverage`.
    """
    mass, lost = _by_score(score, loss, weight)
    total = mass.sum(-1, keepdims=True)
    end = mass.cumsum(-1) / total
    start = end - mass / total
    before = (lost.cumsum(-1) - lost) / total
    rate = np.divide(lost, mass, out=np.zeros_like(lost), where=mass > 0)
    # Between two points risk(c) = (before + rate (c - start)) / c, and its integral is:
    first = start < 1e-12
    log = np.log(np.where(first, 1, end / np.where(first, 1, start)))
    return (rate * (end - start) + (before - rate * start) * log).sum(-1)


def excess_aurc(
    score: Float[np.ndarray, " n"],
    loss: Shaped[np.ndarray, " n"],
    weight: Float[np.ndarray, "*d n"] | None = None,
) -> Float[np.ndarray, "*d"]:
    """`aurc` less that of the oracle, which sorts by the loss itself (E-AURC, Geifman et al.)."""
    return aurc(score, loss, weight) - aurc(-loss.astype(np.float64), loss, weight)


def _by_score(
    score: np.ndarray, loss: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and weighted loss of each distinct score, the highest first."""
    weight = np.ones(len(score)) if weight is None else weight
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    sums = [np.add.reduceat(x[..., order], starts, axis=-1) for x in (weight, weight * loss)]
    mass, lost = np.broadcast_arrays(*(x.astype(np.float64) for x in sums))
    return mass, lost
