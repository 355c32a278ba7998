"""Figures of pages, as inline SVG that is visible on light and on dark pages."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prosam_jax.errors import printable
from prosam_jax.evaluation.intervals import Interval
from prosam_jax.report import html

COLOURS = ("#1f77d0", "#d9730d", "#2a9d5c", "#a04bc2", "#c23b5e")
_LINES = ("-", "--", ":", "-.")
"""Styles that tell methods of the same colour apart."""
GRID, GREY = "#80808050", "#808890"

_WIDTH = 5.4
"""In inches; text has then about the size of the page's on a phone."""
_NAMED = 3
"""How many points of a scatter carry their name."""

Lines = Sequence[Mapping[str, Any]]
"""Of `metrics.jsonl`."""


def training(runs: Mapping[str, Sequence[Lines]]) -> dict[str, Markup]:
    """Loss and mIoU over the steps, with a style for each method and a line for each run.

    Args:
        runs: The runs of each method, by its title.

    Returns:
        The figures, by what they show.
    """
    return {
        "Loss in training": _curves(runs, "train/loss"),
        "mIoU in training, %": _curves(runs, "train/miou", 100),
    }


def _curves(runs: Mapping[str, Sequence[Lines]], key: str, factor: float = 1) -> Markup:
    figure, axes = _plot(3)
    width = 1.8 if all(len(of) == 1 for of in runs.values()) else 1.0
    styles = itertools.cycle((line, colour) for line in _LINES for colour in COLOURS)
    for (line_style, colour), (title, of) in zip(styles, runs.items(), strict=False):
        for i, lines in enumerate(of):
            points = [(line["step"], factor * line[key]) for line in lines if key in line]
            label = "_" if i else title  # which the legend leaves out
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linestyle=line_style,
                linewidth=width,
                label=label,
            )
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.grid(axis="y", color=GRID)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return html.inline_svg(figure)


class Dot(NamedTuple):
    """A value with its interval, and the paper's value if it is shown."""

    label: str
    value: float
    interval: Interval
    paper: float | None


def dots(rows: Sequence[Dot], *, differences: bool = False) -> Markup:
    """Each row's value with its interval and the paper's value; what they are is told on hovering.

    Args:
        rows: From top to bottom.
        differences: Whether they are differences, which have a sign and a line at zero, and are
            grey where the interval includes zero.
    """
    figure, axes = _plot(0.5 * len(rows) + 0.5)
    hints, sign = {}, "+" if differences else ""
    for i, (label, value, (low, high), paper) in enumerate(rows):
        colour = GREY if differences and low <= 0 <= high else COLOURS[0]
        axes.plot([low, high], [i, i], color=colour, linewidth=2.4, gid=f"dot{i}")
        axes.plot([value], [i], "o", color=colour, markersize=7, gid=f"dot{i}")
        hints[f"dot{i}"] = f"{label}: {value:{sign}z.2f} ({low:{sign}z.2f} to {high:{sign}z.2f})"
        if paper is not None:
            axes.plot([paper], [i], "D", color="none", markeredgecolor=COLOURS[1], gid=f"paper{i}")
            hints[f"paper{i}"] = f"{label}, the paper: {paper:{sign}z.2f}"
        for x, text, side in ((0, label, "left"), (1, f"{value:{sign}z.2f}", "right")):
            axes.text(
                x, i - 0.2, text, ha=side, va="bottom", fontsize=9, parse_math=False,
                transform=axes.get_yaxis_transform(), in_layout=False,
            )  # fmt: skip
        if differences:  # not one line, which would cross the labels
            axes.plot([0, 0], [i - 0.17, i + 0.25], color=GREY, linewidth=1.2, gid=f"zero{i}")
    axes.set_ylim(len(rows) - 0.6, -0.8)
    axes.set_yticks([])
    axes.margins(x=0.08)
    axes.grid(axis="x", color=GRID)
    return html.inline_svg(figure, hints)


def scatter(points: Sequence[tuple[str, float, float]], names: tuple[str, str]) -> Markup:
    """Points above the diagonal where the first value, up, is higher than the second, across.

    Args:
        points: Name and values in percent; the name is told on hovering, and shown for those
            farthest from the diagonal.
        names: What has these values.
    """
    figure, axes = _plot(4.6)
    up, across = names
    shown = [x for _, *values in points for x in values]
    margin = 3 + 0.05 * (max(shown) - min(shown))
    ends = [max(min(shown) - margin, 0), min(max(shown) + margin, 100)]
    axes.plot(ends, ends, color=GREY, linewidth=1, gid="diagonal")
    far = sorted(range(len(points)), key=lambda i: -abs(points[i][1] - points[i][2]))[:_NAMED]
    hints = {}
    for i, (name, y, x) in enumerate(points):
        axes.plot([x], [y], "o", color=COLOURS[0], alpha=0.75, markersize=7, gid=f"point{i}")
        hints[f"point{i}"] = f"{printable(name)}: {up} {y:.1f} %, {across} {x:.1f} %"
        if i in far:
            left = x > sum(ends) / 2
            axes.annotate(
                printable(name), (x, y), (-7 if left else 7, 0), textcoords="offset points",
                ha="right" if left else "left", va="center", fontsize=9, parse_math=False,
            )  # fmt: skip
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel(f"IoU of {across}, %", parse_math=False)
    axes.set_ylabel(f"IoU of {up}, %", parse_math=False)
    axes.grid(color=GRID)
    return html.inline_svg(figure, hints)


def _plot(height: float) -> tuple[Figure, Axes]:
    """A figure of the page's width with one plot."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes
