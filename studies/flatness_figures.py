"""Figures and Markdown tables of `studies.flatness`, from its JSON alone."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prosam_jax.report.figures import COLOURS, GRID
from studies.flatness_runs import CONTROL, METHODS

Held = Mapping[str, Any]
NAMES = {**METHODS, CONTROL: "before training"}
COLOUR = dict(zip(NAMES, (*COLOURS[:4], "#808890"), strict=True))
NOISES = {"gaussian": "Gaussian", "student_t": "Student-t"}
PATTERNS = {
    "own": "noise of its own on every prompt",
    "shared": "one noise on all prompts",
    "absolute": "of its own, in units instead of rms",
}


def draw(held: Held, folder: pathlib.Path) -> None:
    """Writes flatness_*.png for the parts that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Callable[[Held], Figure]] = {
        "proposition": proposition,
        "robustness": robustness,
        "curvature": curvature,
    }
    for name, figure in made.items():
        if name in held:
            figure(held).savefig(folder / f"flatness_{name}.png", dpi=90)


def proposition(held: Held) -> Figure:
    """The gap against the noise, measured and predicted; and their ratio."""
    part = held["proposition"]
    shares = 100 * np.array(part["shares"])
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    signs = {"positive": (COLOURS[0], "Laplacian > 0"), "negative": (COLOURS[4], "Laplacian < 0")}
    for sign, (colour, label) in signs.items():
        of = part[f"where_{sign}"]
        expected = np.array(of["predicted"])[:, 0]
        left.plot(shares, np.abs(expected), color=colour, lw=1.2, label=f"{label}, predicted")
        for noise, marker in (("gaussian", "o"), ("student_t", "^")):
            gap, *ends = np.array(of[noise]).T
            same = np.sign(gap) == np.sign(expected)
            bars = np.abs(np.array(ends) - gap)
            # An interval that includes 0 would reach down for ever.
            bars[0] = np.minimum(bars[0], 0.9 * np.abs(gap))
            for use, face in ((same, colour), (~same, "none")):
                left.errorbar(
                    shares[use],
                    np.abs(gap[use]),
                    bars[:, use],
                    fmt=marker,
                    ms=5,
                    color=colour,
                    mfc=face,
                    lw=0.8,
                    label=f"{label}, {NOISES[noise]}" if use is same else None,
                )
    left.set(xscale="log", yscale="log", xlabel="noise, % of the prompts' rms", ylabel="|gap|")
    left.set_title("E L(p + x) - L(p); hollow: of the other sign", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    for noise, colour in zip(NOISES, COLOURS, strict=False):
        _band(middle, shares, part[noise]["ratio"], colour, NOISES[noise])
        _band(right, shares, part[noise]["relative_error"], colour, NOISES[noise])
    middle.axhline(1, color="#808890", lw=1, ls="--")
    middle.set_title("measured over predicted, on average", fontsize=10)
    right.set_title("|measured - predicted| over |predicted|", fontsize=10)
    right.set_ylim(bottom=0)
    for axes in (middle, right):
        axes.set(xscale="log", xlabel="noise, % of the prompts' rms")
        axes.legend(fontsize=9, frameon=False, loc="upper left")
    for axes in (left, middle, right):
        axes.grid(color=GRID)
        axes.set_xticks(shares, [f"{x:g}" for x in shares])
        axes.minorticks_off()
    return figure


def robustness(held: Held) -> Figure:
    """How mIoU falls with the perturbation, and the change of mIoU against VRP-SAM's."""
    part = held["robustness"]
    levels = 100 * np.array(part["levels"])
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey="row")
    for column, (pattern, title) in enumerate(PATTERNS.items()):
        upper, lower = grid[:, column]
        for name, of in part[pattern].items():
            _band(upper, levels, of["miou"], COLOUR[name], NAMES[name])
            if name not in ("vrp", CONTROL):
                _band(lower, levels, of["fall_to_vrp"], COLOUR[name], NAMES[name])
        upper.set_title(title, fontsize=10)
        lower.axhline(0, color=COLOUR["vrp"], lw=1, ls="--")
        of = "1" if pattern == "absolute" else "the prompts' rms"
        lower.set_xlabel(f"noise, % of {of}")
    grid[0, 0].set_ylabel("mIoU on novel classes, %")
    grid[1, 0].set_ylabel("change of mIoU less VRP-SAM's, points")
    grid[0, 1].legend(fontsize=8, frameon=False)
    for axes in grid.ravel():
        axes.grid(color=GRID)
    return figure


def curvature(held: Held) -> Figure:
    """How the Laplacian is distributed, the top eigenvalues, and the runs' mean against mIoU."""
    part = held["curvature"]
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, of in part["methods"].items():
        below = np.linspace(0, 100, len(of["quantiles"]))
        left.plot(of["quantiles"], below, color=COLOUR[name], lw=1.4, label=NAMES[name])
    left.set_xscale("symlog", linthresh=0.1)
    left.axvline(0, color="#808890", lw=1, ls="--")
    left.set(xlabel="Laplacian x rms²", ylabel="% of episodes below")
    left.legend(fontsize=7.5, frameon=False)
    if "spectra" in held:
        for name, episodes in held["spectra"]["eigenvalues"].items():
            for of in np.array(episodes):
                order, colour = 1 + np.arange(len(of)), COLOUR[name]
                middle.plot(order, np.abs(of), color=colour, lw=0.9)
                for sign, face in ((of > 0, colour), (of < 0, "white")):
                    middle.plot(
                        order[sign], np.abs(of[sign]), "o", color=colour, mfc=face, ms=4.5, zorder=3
                    )
        middle.set(yscale="log", ylim=(2e-3, 1e-1), xlabel="rank by absolute value")
        middle.set(ylabel="|eigenvalue| x rms² (hollow: negative)")
    for name, runs in part["of_runs"].items():
        x, y = np.array(runs).T
        right.plot(x, 100 * y, "o", color=COLOUR[name], ms=4.5, alpha=0.8)
    right.set(xlabel="mean Laplacian x rms² of a run", ylabel="mean IoU of the same episodes, %")
    for axes in (left, middle, right):
        axes.grid(color=GRID)
    return figure


def _band(
    axes: Axes, x: np.ndarray, values: Sequence[Sequence[float]], colour: str, label: str
) -> None:
    middle, low, high = np.array(values).T
    axes.plot(x, middle, "o-", color=colour, ms=3.5, lw=1.3, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.14, lw=0)


# Tables.


def tables(held: Held) -> str:
    """All tables of the parts that are there."""
    made = {
        "proposition": (proposition_table, trained_table),
        "kinks": (kinks_table,),
        "robustness": (robustness_table, fall_table),
        "curvature": (curvature_table, relation_table),
    }
    return "\n\n".join(make(held[name]) for name, of in made.items() if name in held for make in of)


def _cell(of: Sequence[float], form: str = ".2f", factor: float = 1) -> str:
    value, low, high = (format(factor * x, form) for x in of)
    return f"{value} ({low} to {high})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(x) + " |" for x in lines)


def proposition_table(part: Held) -> str:
    """A row for each share."""
    rows = []
    for i, share in enumerate(part["shares"]):
        row = [f"{share:.0%}"]
        for noise in NOISES:
            of = part[noise]
            row += [f"{of['gap'][i][0]:.2g}", _cell(of["ratio"][i])]
            row += [_cell(of["relative_error"][i])]
        rows.append(row)
    columns = [f"{noise}: {x}" for noise in NOISES.values() for x in ("gap", "ratio", "error")]
    return _table(["noise", *columns], rows)


def trained_table(part: Held) -> str:
    """A row for each method with a noise of its own."""
    rows = [
        [
            METHODS[name],
            _cell(of["size"], ".1f", 100),
            _cell(of["gap"], ".2g"),
            _cell(of["ratio"], ".3f"),
            _cell(of["of_loss"], ".3f", 100),
        ]
        for name, of in part["trained_noise"].items()
    ]
    return _table(["", "sigma, % of rms", "gap", "measured / predicted", "gap, % of loss"], rows)


SHOWN = (0, 0.2, 0.6, 1, 2)
"""Levels in tables."""


def robustness_table(part: Held) -> str:
    """The scores: a row for each pattern and method."""
    return _levels(part, "mIoU, %", list(NAMES), lambda name: ("miou", ".1f", NAMES[name]))


def fall_table(part: Held) -> str:
    """Change of mIoU from its value without noise, less the other's: a row for each pair."""
    several = [f"{name} vrp" for name in METHODS if name != "vrp"]
    several += [f"{name} vrp_2linear" for name in ("gaussian", "student_t")]

    def row(pair: str) -> tuple[str, str, str]:
        name, base = pair.split()
        than = "VRP-SAM" if base == "vrp" else "the two linear layers"
        return f"fall_to_{base}", "+.1f", f"{METHODS[name]}, against {than}"

    return _levels(part, "change of mIoU, points", several, row, SHOWN[1:])


def kinks_table(part: Held) -> str:
    """A row for each share."""
    names = ("gap", "smooth", "error_of_second", "error_of_smooth")
    rows = [
        [f"{share:.0%}", *(_cell(part[name][i]) for name in names)]
        for i, share in enumerate(part["shares"])
    ]
    head = ("noise", "gap", "its smooth part", "error of x'Hx / 2", "error of the smooth part")
    return _table(head, rows)


def _levels(
    part: Held,
    head: str,
    names: Sequence[str],
    row: Callable[[str], tuple[str, str, str]],
    levels: Sequence[float] = SHOWN,
) -> str:
    shown = [i for i, level in enumerate(part["levels"]) if level in levels]
    rows = []
    for pattern, title in PATTERNS.items():
        rows.append([f"*{title}*", *[""] * len(shown)])
        for name in names:
            key, form, label = row(name)
            of = part[pattern][name.split()[0]][key]
            rows.append([label, *(_cell(of[i], form) for i in shown)])
    return _table([head, *(f"{part['levels'][i]:.0%}" for i in shown)], rows)


def curvature_table(part: Held) -> str:
    """A row for each method."""
    rows = [
        [
            NAMES[name],
            _cell(of["laplacian"]),
            _cell(of["laplacian_to_vrp"], "+.2f"),
            _cell(of["median"]),
            _cell(of["negative"], ".0f", 100),
            _cell(of["surely_negative"], ".0f", 100),
            _cell(of["rms"]),
            f"{of['laplacian'][0] / of['rms'][0] ** 2:.2f}",
            f"{of['alike'][0]:.3f}",
        ]
        for name, of in part["methods"].items()
    ]
    head = "|Laplacian|less VRP-SAM's|median|negative, %|surely, %|rms|Laplacian / rms²|cosine"
    return _table(head.split("|"), rows)


def relation_table(part: Held) -> str:
    """A row for each measure of flatness."""
    rows = [
        [name, *(_cell(of[x], "+.2f") for x in ("within", "across", "means"))]
        for name, of in part["relation"].items()
    ]
    return _table(["", "episodes of a run", "runs, same episode", "runs of a fold"], rows)
