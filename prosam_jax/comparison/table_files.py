"""A table that was made again, as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prosam_jax.comparison import methods, reproduce
from prosam_jax.comparison.reproduce import MEAN, Line, Made, Value
from prosam_jax.evaluation import controls
from prosam_jax.evaluation.intervals import LEVEL

BETWEEN = " over "
"""Between the names of two rows whose difference is shown."""

COLUMNS = (
    "table", "row", "over", "fold", "paper", "ours", "low", "high", "less_paper",
    "less_paper_low", "less_paper_high", "seeds",
)  # fmt: skip


def markdown(made: Made) -> str:
    """The table, differences between its rows, controls, and how it was made."""
    table, columns = made.table, _columns(made)
    on = " and ".join(dict.fromkeys(made.preset.data(row.benchmark) for row in made.rows))
    heads = [*table.heads, "", *(x if x == MEAN else f"fold {x}" for x in columns)]
    parts = [
        f"# Table {table.number} of the paper on {on}: {table.title}",
        f"Each value is {table.unit}, in brackets its {100 * LEVEL:.0f} % interval over test "
        f"episodes. {_note(made)}",
        _grid(heads, _rows(reproduce.lines(made), columns, made)),
    ]
    if apart := reproduce.differences(made):
        parts += [
            "Differences on the same episodes, in percentage points:",
            _grid(heads, _rows(apart, columns, made, made.by_label)),
        ]
    if held := reproduce.controls_of(made):
        names = list(dict.fromkeys(name for _, of in held for name in of))
        parts += [
            "Controls and baselines of the same runs, mIoU in percent, mean over folds and seeds:",
            _grid(
                [*table.heads, *names],
                [[*row.labels, *(f"{of[x]:.2f}" for x in names)] for row, of in held],
            ),
            " ".join(f"*{name}*: {controls.MEANING[name]}." for name in names),
        ]
    parts.append(_made_by(made))
    return "\n\n".join(parts) + "\n"


def _columns(made: Made) -> list[str]:
    return [*map(str, made.folds), *([MEAN] if len(made.folds) > 1 else [])]


def _note(made: Made) -> str:
    first = next(iter(made.runs.values()))
    several = f" Values are means over {len(first)} seeds." if len(first) > 1 else ""
    if made.preset.paper:
        return f"Less the paper: ours minus the paper's value.{several}"
    return (
        "The paper's values are of other data and networks and stand here for the differences "
        f"between rows alone.{several}"
    )


def _rows(
    found: Sequence[Line],
    columns: Sequence[str],
    made: Made,
    others: Mapping[tuple[str, ...], Any] | None = None,
) -> list[list[str]]:
    cells = []
    for row, values in found:
        labels = list(row.labels)
        if others is not None and row.below is not None:
            labels = [
                a if a == b else f"{a}{BETWEEN}{b}" for a, b in zip(labels, row.below, strict=True)
            ]
        sign = "+" if others is not None else ""
        shown = [values[name] for name in columns]
        cells.append([*labels, "ours", *(_ours(x, sign) for x in shown)])
        blank = [""] * len(labels)
        cells.append([*blank, "paper", *(_number(x.paper, sign) for x in shown)])
        if made.preset.paper and others is None:
            cells.append([*blank, "less the paper", *map(_less, shown)])
    return cells


def _ours(value: Value, sign: str) -> str:
    low, high = value.interval
    return f"{value.ours:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


def _number(x: float | None, sign: str = "") -> str:
    return "not known" if x is None else f"{x:{sign}.2f}"


def _less(value: Value) -> str:
    if value.paper is None:
        return "not known"
    low, high = (x - value.paper for x in value.interval)
    return f"{value.ours - value.paper:+.2f} ({low:+.2f} to {high:+.2f})"


def _made_by(made: Made) -> str:
    runs = reproduce.together([made])
    held = [x for run in runs if (x := methods.results(run)) is not None]
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


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


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
                        made.table.number,
                        ", ".join(row.labels),
                        below,
                        column,
                        "" if x.paper is None else f"{x.paper:.4f}",
                        *(f"{y:.4f}" for y in (x.ours, *x.interval)),
                        *less,
                        " ".join(f"{y:.4f}" for y in x.seeds),
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

    return json.loads(
        json.dumps(
            {
                "table": made.table.number,
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
        )
    )
