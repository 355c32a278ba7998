"""Figures of the study of uncertainty."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image

from prosam_jax import calibration
from prosam_jax.calibration import Reliability
from prosam_jax.equations import foreground
from studies.uncertainty_measures import Folds, mask_reliability, pixel_reliability
from studies.uncertainty_runs import (
    AVERAGED,
    BLURRED,
    BOTH,
    CERTAINTY,
    DISAGREEMENT,
    ENTROPY,
    EXPECTED,
    INSIDE,
    LEVELS,
    PAIRS,
    SAM,
    SEED_PAIRS,
    SEEDS,
    Found,
    examples,
    iou,
)

COVERAGE = np.linspace(0.05, 1, 96)


def mean_curve(folds: Folds, curve: Callable[[Found], calibration.RiskCoverage]) -> np.ndarray:
    """Risk at `COVERAGE`, averaged over folds and seeds."""
    curves = [curve(x) for _, models in folds for x in models]
    return np.mean([np.interp(COVERAGE, x.coverage, x.risk) for x in curves], axis=0)


def pixel_curve(name: str, one: Found) -> calibration.RiskCoverage:
    """Risk-coverage curve of a score of pixels."""
    count, wrong = one.levels[name].sum(0).astype(float)
    rate = np.divide(wrong, count, out=np.zeros_like(wrong), where=count > 0)
    found = calibration.risk_coverage(-np.arange(float(LEVELS)), rate, count)
    return calibration.RiskCoverage(*(x[count.cumsum() > 0] for x in found))


def mask_curve(name: str, one: Found) -> calibration.RiskCoverage:
    """The same for a score of masks; "" is the oracle."""
    loss = 1 - one.iou
    return calibration.risk_coverage(one.masks[name].astype(float) if name else -loss, loss)


SHORT = {
    ENTROPY: "entropy of the mean prompts' mask",
    BLURRED[10.0]: "entropy of averaged samples, $\\sigma$ x 10",
    DISAGREEMENT[1.0]: "disagreement of samples",
    DISAGREEMENT[10.0]: "disagreement of samples, $\\sigma$ x 10",
    BOTH: "entropy of averaged seeds",
    SEEDS: "disagreement of seeds",
    CERTAINTY: "mean entropy of the picture",
    INSIDE: "mean probability inside",
    SAM: "SAM's predicted IoU",
    EXPECTED: "expected IoU",
    PAIRS[3.0]: "IoU of pairs of samples, $\\sigma$ x 3",
    PAIRS[10.0]: "IoU of pairs of samples, $\\sigma$ x 10",
    SEED_PAIRS: "IoU of pairs of seeds",
    AVERAGED: "expected IoU by averaged seeds",
}


def draw_coverage(folds: Folds, path: pathlib.Path, title: str) -> None:
    """Risk-coverage curves of pixels and of masks."""
    plt = pyplot()
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name in (ENTROPY, BOTH, SEEDS, DISAGREEMENT[1.0], DISAGREEMENT[10.0]):
        risk = mean_curve(folds, functools.partial(pixel_curve, name))
        left.plot(COVERAGE, 100 * risk, label=SHORT[name])
    left.set(title="Pixels", xlabel="share of pixels kept", ylabel="of these wrong, %")
    left.set(yscale="log", ylim=(0.02, 10))
    for name in (CERTAINTY, INSIDE, SAM, EXPECTED, PAIRS[3.0], AVERAGED):
        risk = mean_curve(folds, functools.partial(mask_curve, name))
        right.plot(COVERAGE, 1 - risk, label=SHORT[name])
    oracle = mean_curve(folds, functools.partial(mask_curve, ""))
    right.plot(COVERAGE, 1 - oracle, "k:", label="oracle")
    right.set(title="Masks", xlabel="share of masks kept", ylabel="their mean IoU")
    for axes in (left, right):
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.3)
    fig.suptitle(title, fontsize=11)
    fig.savefig(path, dpi=90)
    plt.close(fig)


def draw_calibration(folds: Folds, grouped: Folds, path: pathlib.Path, title: str) -> None:
    """Reliability of pixels and of masks."""
    plt = pyplot()
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    lines = {
        "mean prompts": (folds, "none"),
        "temperature of base classes": (folds, "base"),
        "averaged samples, $\\sigma$ x 10": (folds, BLURRED[10.0]),
        "averaged samples, $\\sigma$ x 30": (folds, BLURRED[30.0]),
        "averaged seeds": (grouped, "none"),
    }
    for label, (of, name) in lines.items():
        each = [pixel_reliability(name, x, np.ones((1, len(x.iou)))) for _, m in of for x in m]
        pooled = Reliability(*(np.sum(x, 0)[0] for x in zip(*each, strict=True)))
        plot_reliability(left, pooled, label)
    left.set(title="Pixels", xlabel="probability of the label", ylabel="share of right labels")
    left.set(xlim=(0.48, 1.01), ylim=(0.45, 1.01))
    for name in (SAM, INSIDE, EXPECTED, PAIRS[10.0], AVERAGED):
        pooled = mask_reliability(name, folds)
        plot_reliability(right, Reliability(*(x[0] for x in pooled)), SHORT[name])
    right.set(title="Masks", xlabel="predicted IoU", ylabel="mean IoU")
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], "k:", lw=1)
        axes.legend(fontsize=8, frameon=False, loc="upper left")
        axes.grid(alpha=0.3)
    fig.suptitle(title, fontsize=11)
    fig.savefig(path, dpi=90)
    plt.close(fig)


def draw_examples(run: pathlib.Path, path: pathlib.Path, count: int = 3) -> None:
    """The first test episodes: where the mask is wrong, its entropy, and what samples say."""
    plt = pyplot()
    found = examples(run, count)
    mask, truth = foreground(found["logits"]), found["truth"]
    bits, samples = calibration.entropy(found["logits"]), found[DISAGREEMENT[1.0]]
    promised = np.asarray(calibration.expected_iou(jnp.asarray(found["logits"])))
    size = {"figsize": (2 * 5, 2.1 * count), "layout": "constrained"}
    fig, axes = plt.subplots(count, 5, squeeze=False, **size)
    for i, row in enumerate(axes):
        row[0].imshow(found["image"][i])
        row[0].contour(truth[i], [0.5], colors="white", linewidths=1.5)
        row[1].imshow(mask[i], cmap="gray")
        row[1].set_title(
            f"expected IoU {promised[i]:.2f}, true {iou(mask, truth)[i]:.2f}", fontsize=9
        )
        row[2].imshow(mask[i] != truth[i], cmap="gray")
        row[3].imshow(bits[i], cmap="inferno", vmin=0, vmax=1)
        row[4].imshow(samples[i], cmap="inferno", vmin=0, vmax=samples.max())
    heads = ("target, true mask", "", "wrong pixels", "entropy, 0 to 1 bit")
    heads += (f"disagreement of samples,\n0 to {samples.max():.2g} bit",)
    for column, head in zip(axes[0], heads, strict=True):
        column.set_title(head or column.get_title(), fontsize=9)
    for one in axes.ravel():
        one.set_axis_off()
    fig.savefig(path, dpi=72)
    plt.close(fig)
    with Image.open(path) as picture:  # fewer colours, since pictures of noise make a large file
        small = picture.convert("RGB").quantize(128)
    small.save(path, optimize=True)


def plot_reliability(axes: Any, sums: Reliability, label: str) -> None:
    """The line of one predictor; bins with less than 1 % of the items are left out."""
    bins = sums.weight > 0.01 * sums.weight.sum() if sums.weight.sum() < 1e4 else sums.weight > 0
    x, y = (of[bins] / sums.weight[bins] for of in (sums.predicted, sums.observed))
    axes.plot(x, y, "o-", ms=3, label=label)


def pyplot() -> Any:
    """Matplotlib without a window."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
