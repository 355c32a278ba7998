"""Figures of `prompt_landscape`: one pair as in the paper's Fig. 4, and all pairs."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prosam_jax.atomic import replacing
from studies import tsne

SETS, SAMPLES, MEAN = "#d9730d", "#1f77d0", "#123a66"
START = {"25": "N(0, 25²)", "1": "N(0, 1)"}
SHOWN = 200  # points of each kind in a t-SNE

Found = Mapping[str, np.ndarray]
"""What `prompt_landscape.measured` gives."""


def one_pair(
    found: Found,
    image: UInt8[np.ndarray, "s s 3"],
    mask: Bool[np.ndarray, "s s"],
    path: pathlib.Path,
) -> None:
    """The pair, box plots of IoU and cross-entropy, and t-SNE with its control."""
    figure = Figure(figsize=(10.5, 5.8), layout="constrained")
    axes = figure.subplots(2, 3, width_ratios=(0.8, 1, 1))
    _picture(axes[0, 0], image, mask)
    for axis, kind, title in ((axes[0, 1], "iou", "IoU"), (axes[0, 2], "bce", "cross-entropy")):
        _boxes(axis, found, kind, title)
    axes[1, 0].axis("off")
    handles = [
        axes[1, 0].scatter([], [], color=colour, label=label)
        for colour, label in (
            (SETS, "learned sets of prompts"),
            (SAMPLES, "samples of the learned\ndistribution"),
            (MEAN, "its mean"),
        )
    ]
    axes[1, 0].legend(handles=handles, loc="center", frameon=False)
    sets, samples = found["25/sets/at"][:SHOWN], found["25/samples/at"][:SHOWN]
    mean = found["25/means/at"][0]
    _project(axes[1, 1], sets, samples, mean, "t-SNE, starts from N(0, 25²)")
    # Nothing of this was learned but sigma: other starts, and noise about one of them.
    rng = np.random.default_rng(0)
    drawn = 25 * rng.standard_normal((len(sets) + 1, *sets.shape[1:]))
    noise = samples - mean
    _project(
        axes[1, 2], drawn[1:], drawn[0] + noise, drawn[0], "the same before learning (control)"
    )
    _save(figure, path)


def _picture(axis: Axes, image: np.ndarray, mask: np.ndarray) -> None:
    axis.imshow(image)
    axis.contour(mask, [0.5], colors="white", linewidths=2.5)
    axis.contour(mask, [0.5], colors="#c23b5e", linewidths=1.2)
    axis.set_title("picture and mask", fontsize=10)
    axis.axis("off")


def _boxes(axis: Axes, found: Found, kind: str, title: str) -> None:
    data, labels, colours = [], [], []
    for sd in START:
        data += [found[f"{sd}/sets/{kind}"], found[f"{sd}/samples/{kind}"]]
        labels += [f"sets\n{START[sd]}", f"samples\n{START[sd]}"]
        colours += [SETS, SAMPLES]
    drawn = axis.boxplot(
        data, patch_artist=True, widths=0.6, whis=(5, 95), flierprops={"markersize": 2}
    )
    for box, colour in zip(drawn["boxes"], colours, strict=True):
        box.set(facecolor=colour, alpha=0.6)
    for line in drawn["medians"]:
        line.set(color="black")
    axis.set_xticks(range(1, len(labels) + 1), labels, fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="y", alpha=0.3)


def _project(
    axis: Axes,
    sets: Float[np.ndarray, "n q c"],
    samples: Float[np.ndarray, "k q c"],
    mean: Float[np.ndarray, "q c"],
    title: str,
) -> None:
    points = np.concatenate([sets, samples, mean[None]])
    flat = points.reshape(len(points), -1)
    placed = tsne.project(flat, min(30.0, (len(points) - 1) / 4))
    parts = np.split(placed, [len(sets), len(points) - 1])
    for part, colour, size in zip(parts, (SETS, SAMPLES, MEAN), (8, 8, 40), strict=True):
        axis.scatter(*part.T, s=size, color=colour, linewidths=0, alpha=0.8)
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])


COMPARED = tuple(
    (
        f"samples from {of} beat sets from {over}, IoU",
        f"samples {START[of]}\nover sets\n{START[over]}",
    )
    for of, over in (("25", "25"), ("1", "1"), ("25", "1"), ("1", "25"))
)


def all_pairs(
    pairs: Sequence[Mapping[str, float]],
    means: Mapping[str, Mapping[str, float]],
    path: pathlib.Path,
) -> None:
    """How often samples beat sets, IoU, centrality: a dot for each pair, means with intervals."""
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.7, 1.2, 0.8))
    _dots(left, COMPARED, pairs, means)
    left.axhline(0.5, color="gray", linewidth=1)
    left.axhline(0.75, color="gray", linewidth=1, linestyle=":")
    left.set_title("share of the sets that a sample beats (IoU)", fontsize=10)
    of_iou = [
        (f"{sd}: IoU of the {kind}", f"{kind}\n{START[sd]}")
        for sd in START
        for kind in ("sets", "samples")
    ]
    _dots(middle, of_iou, pairs, means)
    middle.set_title("median IoU", fontsize=10)
    of_centre = [(f"{sd}: centrality", name) for sd, name in START.items()]
    _dots(right, of_centre, pairs, means)
    right.axhline(1, color="gray", linewidth=1)
    right.set_ylim(bottom=0)
    right.set_title("centrality", fontsize=10)
    _save(figure, path)


def _dots(
    axis: Axes,
    columns: Sequence[tuple[str, str]],
    pairs: Sequence[Mapping[str, float]],
    means: Mapping[str, Mapping[str, float]],
) -> None:
    rng = np.random.default_rng(0)
    for x, (name, _) in enumerate(columns):
        values = [pair[name] for pair in pairs]
        beside = x + rng.uniform(-0.18, 0.02, len(values))
        axis.scatter(beside, values, s=12, color=SAMPLES, alpha=0.6, linewidths=0)
        of = means[name]
        bars = [[of["mean"] - of["low"]], [of["high"] - of["mean"]]]
        axis.errorbar(x + 0.22, of["mean"], bars, fmt="o", color=SETS, markersize=5, capsize=3)
    axis.set_xticks(range(len(columns)), [label for _, label in columns], fontsize=7.5)
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.grid(axis="y", alpha=0.3)


def _save(figure: Figure, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as out:
        figure.savefig(out, format="png", dpi=88)
