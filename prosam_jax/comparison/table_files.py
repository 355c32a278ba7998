"""A table that was made again, as Markdown, CSV and JSON."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from prosam_jax.comparison import methods, paper, reproduce
from prosam_jax.comparison.paper import Row
from prosam_jax.comparison.reproduce import MEAN, Line, Made, Value
from prosam_jax.evaluation import controls
from prosam_jax.evaluation.intervals import LEVEL, Interval

BETWEEN = " over "
"""Between the names of two rows whose difference is shown."""

APART = "Differences on the same episodes, in percentage points"
CONTROLS = "Controls and baselines of the same runs, mIoU in percent, mean over folds and seeds"

COLUMNS = (
    "table", "row", "over", "fold", "paper", "ours", "low", "high", "less_paper",
    "less_paper_low", "less_paper_high", "seeds", "over_seeds_low", "over_seeds_high",
)  # fmt: skip


class Grid(NamedTuple):
    """A table as text; the first `labels` cells of a row tell what it is."""

    labels: int
    head: list[str]
    rows: list[list[str]]


def markdown(made: Made) -> str:
    """The table, differences between its rows, controls, and how it was made."""
    parts = [f"# {title(made)}", note(made), _shown(value_grid(made))]
    if (apart := difference_grid(made)).rows:
        parts += [f"{APART}:", _shown(apart)]
    if (held := control_grid(made)).rows:
        parts += [
            f"{CONTROLS}:",
            _shown(held),
            " ".join(f"*{name}*: {meaning}." for name, meaning in meanings(held).items()),
        ]
    parts.append(made_by(made))
    return "\n\n".join(parts) + "\n"


def title(made: Made) -> str:
    """The table, what it is made on, and what it shows."""
    on = " and ".join(dict.fromkeys(made.preset.data(row.benchmark) for row in made.rows))
    if made.table.name in paper.TABLES:
        return f"Table {made.table.name} of the paper on {on}: {made.table.title}"
    return f"{made.table.title}, on {on}"


def note(made: Made) -> str:
    """What the values are."""
    first = next(iter(made.runs.values()))
    several = ""
    if len(first) > 1:
        several = (
            f" Values are means over {len(first)} seeds; *over seeds* is the interval that also "
            "counts how far the seeds are apart."
        )
    if not any(x is not None for row in made.rows for x in row.values.values()):
        beside = ""
    elif made.preset.paper:
        beside = " Less the paper: ours minus the paper's value."
    else:
        beside = (
            " The paper's values are of other data and networks and stand here for the differences "
            "between rows alone."
        )
    return (
        f"Each value is {made.table.unit}, in brackets its {100 * LEVEL:.0f} % interval over test "
        "pictures, which tells how far it depends on the pictures that were tested, not on the "
        f"seed of the training.{beside}{several}"
    )


def value_grid(made: Made) -> Grid:
    """The values of all rows, ours and the paper's."""
    return _grid(made, _rows(reproduce.lines(made), made))


def difference_grid(made: Made) -> Grid:
    """`APART`."""
    return _grid(made, _rows(reproduce.differences(made), made, apart=True))


def _grid(made: Made, rows: list[list[str]]) -> Grid:
    columns = [f"fold {fold}" for fold in made.folds] + [MEAN] * (len(made.folds) > 1)
    return Grid(len(made.table.heads) + 1, [*made.table.heads, "", *columns], rows)


def control_grid(made: Made) -> Grid:
    """`CONTROLS`, without labels in which rows of the same runs differ."""
    held = reproduce.controls_of(made)
    names = list(dict.fromkeys(name for _, of in held for name in of))

    def runs(row: Row) -> tuple[methods.Run, ...]:
        return made.runs[row.labels, made.folds[0]]

    kept = [
        i
        for i in range(len(made.table.heads))
        if all(
            other.labels[i] == row.labels[i]
            for row, _ in held
            for other in made.rows
            if runs(other) == runs(row)
        )
    ]
    return Grid(
        len(kept),
        [*(made.table.heads[i] for i in kept), *names],
        [[*(row.labels[i] for i in kept), *(f"{of[x]:.2f}" for x in names)] for row, of in held],
    )


def meanings(held: Grid) -> dict[str, str]:
    """What the controls of a grid mean."""
    return {name: controls.MEANING[name] for name in held.head if name in controls.MEANING}


def _rows(found: Sequence[Line], made: Made, apart: bool = False) -> list[list[str]]:
    """The cells of lines; `apart` for differences of two rows."""
    cells, sign = [], "+" if apart else ""
    for row, values in found:
        labels = list(row.labels)
        if apart and row.below is not None:
            labels = [
                a if a == b else f"{a}{BETWEEN}{b}" for a, b in zip(labels, row.below, strict=True)
            ]
        shown = values.values()
        cells.append([*labels, "ours", *(_ours(x, sign) for x in shown)])
        blank = [""] * len(labels)
        if any(len(x.seeds) > 1 for x in shown):
            of_seeds = (", ".join(_number(y, sign) for y in x.seeds) for x in shown)
            cells.append([*blank, "each seed", *of_seeds])
            cells.append([*blank, "over seeds", *(_bounds(x.over_seeds, sign) for x in shown)])
        if all(x.paper is None for x in shown):
            continue
        cells.append([*blank, "paper", *(_number(x.paper, sign) for x in shown)])
        if made.preset.paper and not apart:
            cells.append([*blank, "less the paper", *map(_less, shown)])
    return cells


def _ours(value: Value, sign: str) -> str:
    return f"{value.ours:{sign}z.2f} {_bounds(value.interval, sign)}"


def _bounds(interval: Interval | None, sign: str) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"({low:{sign}z.2f} to {high:{sign}z.2f})"


def _number(x: float | None, sign: str = "") -> str:
    return "not printed" if x is None else f"{x:{sign}z.2f}"


def _less(value: Value) -> str:
    if value.paper is None:
        return "not printed"
    low, high = (x - value.paper for x in value.interval)
    return f"{value.ours - value.paper:+z.2f} ({low:+z.2f} to {high:+z.2f})"


def made_by(made: Made) -> str:
    """The runs, their episodes, versions and device."""
    runs = reproduce.together([made])
    held = [reproduce.held(run) for run in runs]
    seeds = sorted({run.cfg.seed for run in runs})
    steps = sorted({x["step"] for x in held})
    episodes = sorted({x["episodes"] for x in held})
    return (
        f"{len(runs)} run{'s' * (len(runs) > 1)} of {_listed(steps)} steps, {_listed(episodes)} "
        f"test episodes for each fold, the last checkpoint; seeds: {_listed(seeds)}; "
        f"{'; or '.join(dict.fromkeys(map(methods.made_by, held)))}."
    )


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(f"{x:,}" if x >= 10_000 else str(x) for x in numbers)


def _shown(grid: Grid) -> str:
    """As Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (grid.head, *grid.rows)]
    return "\n".join([lines[0], "|---" * len(grid.head) + "|", *lines[1:]])


def as_csv(made: Made) -> str:
    """One line for each value and each difference, see `COLUMNS`; unknown values are empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for over, found in ((False, reproduce.lines(made)), (True, reproduce.differences(made))):
        for row, values in found:
            below = ", ".join(row.below or ()) if over else ""
            for column, x in values.items():
                less = ("",) * 3
                if made.preset.paper and x.paper is not None:
                    less = tuple(f"{y - x.paper:.4f}" for y in (x.ours, *x.interval))
                writer.writerow(
                    [
                        made.table.name,
                        ", ".join(row.labels),
                        below,
                        column,
                        "" if x.paper is None else f"{x.paper:.4f}",
                        *(f"{y:.4f}" for y in (x.ours, *x.interval)),
                        *less,
                        " ".join(f"{y:.4f}" for y in x.seeds),
                        *((f"{y:.4f}" for y in x.over_seeds) if x.over_seeds else ("", "")),
                    ]
                )
    return file.getvalue()


def as_json(made: Made, command: str) -> dict[str, Any]:
    """All values, and for each run its settings, weights, versions, device and episodes."""

    def shown(found: Sequence[Line], over: bool) -> list[dict[str, Any]]:
        return [
            {
                "row": list(row.labels),
                **({"over": list(row.below or ())} if over else {}),
                "values": {
                    column: x._asdict() | {"interval": list(x.interval), "seeds": list(x.seeds)}
                    for column, x in values.items()
                },
            }
            for row, values in found
        ]

    return {
        "table": made.table.name,
        "title": made.table.title,
        "unit": made.table.unit,
        "preset": made.preset.name,
        "command": command,
        "interval_level": LEVEL,
        "rows": shown(reproduce.lines(made), False),
        "differences": shown(reproduce.differences(made), True),
        "controls": [
            {"row": list(row.labels), "miou": of} for row, of in reproduce.controls_of(made)
        ],
        "runs": list(reproduce.facts(made)),
    }
